"""What is said of a wrong tensor: the right sentence for a known mistake, and nothing where none fits."""

from __future__ import annotations

import numpy as np
import pytest
from faulty import BiasBeforeReduction, GatherBackward, InputGradient, RowBiasGradient

from conformance.adapters.simulated import Simulated
from conformance.diagnosis import Diagnosis, diagnose, sentences
from conformance.observers import InProcess, Options
from conformance.suite import Suite
from spec import Case

COLUMN = "column P=4 batch=3 in=5 out=8 float32 bias seed=1"
GATHER = "gather P=4 batch=3 in=8 float32 seed=1"
ROW = "row P=4 batch=3 in=8 out=3 float32 bias seed=1"

MISTAKES = [
    (BiasBeforeReduction(), ROW, "output", "a bias that is counted P times"),
    (InputGradient(list), COLUMN, "gradient of x", "a reduction that is missing: each rank holds its own term"),
    (InputGradient(lambda t: [sum(t) / 4] * 4), COLUMN, "gradient of x", "a reduction that averages"),
    (InputGradient(lambda t: [sum(t) * 4] * 4), COLUMN, "gradient of x", "a reduction that is made twice"),
    (InputGradient(lambda t: [sum(t[:2]) + t[3]] * 4), COLUMN, "gradient of x", "a sum without the term of rank 2"),
    (
        InputGradient(lambda t: [sum(t) + t[1]] * 4),
        COLUMN,
        "gradient of x",
        "a sum in which the term of rank 1 is counted twice",
    ),
    (GatherBackward(lambda p: p[::-1]), GATHER, "gradient of x", "slices in reversed rank order"),
    (GatherBackward(lambda p: [p[0]] * 4), GATHER, "gradient of x", "rank 0's slice on every rank"),
    (GatherBackward(lambda p: [*p[1:], p[0]]), GATHER, "gradient of x", "slices that are shifted by one rank"),
    (GatherBackward(lambda p: [4 * s for s in p]), GATHER, "gradient of x", "a value that is P times too large"),
    (RowBiasGradient(1 / 4), ROW, "gradient of bias", "a value that is divided by P"),
    (RowBiasGradient(4), ROW, "gradient of bias", "a value that is P times too large"),
]


def diagnosis_of(implementation: Simulated, line: str) -> Diagnosis:
    suite = Suite(Options("numpy"))
    suite.observer = InProcess(implementation)
    verdict = suite.examine(Case.parse(line))
    if not verdict.findings:
        return Diagnosis()
    return diagnose(verdict, verdict.findings[0], suite.look, (1, 2, 4))


@pytest.mark.parametrize(("implementation", "line", "tensor", "sentence"), MISTAKES, ids=[m[3] for m in MISTAKES])
def test_a_known_mistake_is_recognised(implementation: Simulated, line: str, tensor: str, sentence: str) -> None:
    assert diagnosis_of(implementation, line).looks == (f"{tensor}: consistent with {sentence}",)


def test_a_mistake_that_the_smallest_case_cannot_show_is_read_from_a_larger_one() -> None:
    """One element at P = 2: nobody can tell P times from twice, a bias from a product."""
    diagnosis = diagnosis_of(BiasBeforeReduction(), "row P=2 batch=1 in=2 out=1 float32 bias seed=0")

    assert diagnosis.looks == ("output: consistent with a bias that is counted P times",)
    assert diagnosis.probe == Case.parse("row P=4 batch=5 in=24 out=7 float64 bias values=small seed=0")


@pytest.mark.parametrize("line", [COLUMN, ROW, GATHER])
def test_nothing_is_said_of_a_right_implementation(line: str) -> None:
    assert diagnosis_of(Simulated(), line) == Diagnosis()


def test_nothing_is_said_where_nothing_fits() -> None:
    noise = InputGradient(lambda terms: [sum(terms) + np.arange(terms[0].shape[-1]) + 1.5] * len(terms))

    assert diagnosis_of(noise, COLUMN).looks == ()


REAL = f"{ROW[:-7]} values=gaussian procedure=precision seed=1"


def test_a_real_valued_failure_says_error_bound_ratio_and_a_control() -> None:
    output = diagnosis_of(BiasBeforeReduction(), REAL).errors[0]

    assert (output.tensor, output.excessive) == ("output", True)
    assert output.ratio == output.error / output.limit > 1000
    assert output.control is not None
    assert output.control < output.limit
    assert output.control_ratio is not None
    assert 0 < output.control_ratio <= 1
    assert "more than rounding; a correct one errs by" in str(output)


def test_a_wrong_sum_is_no_rounding_however_it_was_found() -> None:
    assert diagnosis_of(BiasBeforeReduction(), REAL).looks == (
        "output: consistent with a bias that is counted P times",
    )


def test_what_is_only_rounded_is_called_rounding() -> None:
    """Of a failing case, the tensors that are right."""
    weight = next(error for error in diagnosis_of(BiasBeforeReduction(), REAL).errors if error.tensor == "weight")

    assert not weight.excessive
    assert ": rounding; a correct one errs by" in str(weight)


@pytest.mark.parametrize("text", [text for name, text in vars(sentences).items() if name.isupper() and name[0] != "_"])
def test_every_sentence_says_where_to_look_next(text: str) -> None:
    sentence = text.format(
        k=2,
        ranks="rank 0",
        rank="rank 0",
        digits="1 0",
        factor=3,
        order="1 0",
        other="x",
        dtype="float32",
        what="rank 0",
    )

    assert sentences.next_step(sentence)


def test_there_is_no_next_step_for_what_is_no_sentence() -> None:
    assert sentences.next_step("a value that is odd") == ""
