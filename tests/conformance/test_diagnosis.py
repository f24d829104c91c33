"""What is said of a wrong tensor: the right sentence for a known mistake, and nothing where none fits."""

from __future__ import annotations

import numpy as np
import pytest
from faulty import BiasBeforeReduction, GatherBackward, InputGradient, RowBiasGradient

from conformance.adapters.simulated import Simulated
from conformance.diagnosis import diagnose
from spec import Case
from spec.reference import truth

COLUMN = "column P=4 batch=3 in=5 out=8 float32 bias seed=1"
GATHER = "gather P=4 batch=3 in=8 float32 seed=1"
ROW = "row P=4 batch=3 in=8 out=3 float32 bias seed=1"

MISTAKES = [
    (BiasBeforeReduction(), ROW, "output", "a bias that is counted 4 times"),
    (InputGradient(list), COLUMN, "gradient of x", "a reduction that is missing: each rank holds its own term"),
    (InputGradient(lambda t: [sum(t) / 4] * 4), COLUMN, "gradient of x", "a reduction that averages"),
    (InputGradient(lambda t: [sum(t) * 4] * 4), COLUMN, "gradient of x", "a reduction that is made twice"),
    (InputGradient(lambda t: [sum(t[:2]) + t[3]] * 4), COLUMN, "gradient of x", "rank 2's term missing from the sum"),
    (InputGradient(lambda t: [sum(t) + t[1]] * 4), COLUMN, "gradient of x", "rank 1's term counted twice"),
    (GatherBackward(lambda p: p[::-1]), GATHER, "gradient of x", "slices in reversed rank order"),
    (GatherBackward(lambda p: [p[0]] * 4), GATHER, "gradient of x", "rank 0's slice on every rank"),
    (GatherBackward(lambda p: [*p[1:], p[0]]), GATHER, "gradient of x", "slices that are shifted by one rank"),
    (GatherBackward(lambda p: [4 * s for s in p]), GATHER, "gradient of x", "a value that is P times too large"),
    (RowBiasGradient(1 / 4), ROW, "gradient of bias", "a value that is divided by P"),
    (RowBiasGradient(4), ROW, "gradient of bias", "a value that is P times too large"),
]


def said_of(implementation: Simulated, line: str) -> list[str]:
    case = Case.parse(line)
    return diagnose(case, truth(case), implementation.run(case, 0))


@pytest.mark.parametrize(("implementation", "line", "tensor", "sentence"), MISTAKES, ids=[m[3] for m in MISTAKES])
def test_a_known_mistake_is_recognised(implementation: Simulated, line: str, tensor: str, sentence: str) -> None:
    assert said_of(implementation, line) == [f"{tensor}: consistent with {sentence}"]


@pytest.mark.parametrize("line", [COLUMN, ROW, GATHER])
def test_nothing_is_said_of_a_right_implementation(line: str) -> None:
    assert said_of(Simulated(), line) == []


def test_nothing_is_said_where_nothing_fits() -> None:
    noise = InputGradient(lambda terms: [sum(terms) + np.arange(5.0) + 1] * 4)

    assert said_of(noise, COLUMN) == []


def test_nothing_is_said_of_real_values() -> None:
    """A number that is nearly a known mistake's is no evidence."""
    assert said_of(BiasBeforeReduction(), f"{ROW[:-7]} values=gaussian procedure=precision seed=1") == []
