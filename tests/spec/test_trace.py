"""A trace is arithmetic that a hand can follow: here it is followed, in numbers and in the letters of SPEC.md."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spec.case import Case
from spec.contract import agreement
from spec.document import SPEC, by_hand
from spec.placements import Sharded, local
from spec.reference import truth
from spec.trace import trace, traced, verdict
from spec.values import inputs

ROW = re.compile(r"  (?P<label>\S.*?) +\[[\d, ]*\] +(?:[RSP](?:\(-?\d\))? +)?(?P<value>\[.*)$")
AGREES = "reference: the same output and gradients from one device, unsharded"


def read(text: str, **letters: float) -> list[tuple[str, np.ndarray]]:
    """The labelled tensors of a trace as numbers, with the given ones for letters, under the heading they stand in."""
    found: list[list[str]] = []
    heading = ""
    for line in text.split("\n"):
        if row := ROW.match(line):
            found.append([f"{heading}: {row['label'].split(' =')[0].split(',')[0]}", row["value"]])
        elif line.startswith("   ") and found:
            found[-1][1] += line
        elif line:
            heading = line.split(",")[0].split(" holds")[0]
    return [(label, np.array(eval(value, {"__builtins__": {}}, letters), float)) for label, value in found]


def block(layer: str) -> str:
    """The worked example of a layer as it stands in SPEC.md."""
    text = SPEC.read_text(encoding="utf-8").split(f"### {layer.capitalize()}-parallel, by hand")[1]
    return "".join(re.findall(r"```text\n(.*?)```", text.split("\n#")[0], re.DOTALL))


def letters_of(case: Case) -> dict[str, float]:
    data = inputs(case)
    assert data.weight is not None
    assert data.bias is not None
    named = ((("x1", "x2", "x3", "x4"), data.x), ("abcdefgh", data.weight), ("st", data.bias), ("uv", data.g))
    return {name: value for names, tensor in named for name, value in zip(names, tensor.flat, strict=True)}


def expected(case: Case) -> dict[str, np.ndarray]:
    """What a trace of a linear layer must show, from the JAX reference and slices of the whole tensors."""
    data, true = inputs(case), truth(case).runs[0]
    assert data.weight is not None
    column = case.layer == "column"
    cut = Sharded(0 if column else 1)
    last = Sharded(-1)
    shown: dict[str, Any] = {"Y": true.output, "dX": true.gradients["x"]}
    for r in range(case.P):
        shown[f"W_{r}"] = local(cut, data.weight, case.P, r)
        shown[f"dW_{r}"] = local(cut, true.gradients["weight"], case.P, r)
        if column:
            shown[f"Y_{r}"] = local(last, true.output, case.P, r)
            shown[f"db_{r}"] = local(Sharded(0), true.gradients["bias"], case.P, r)
        else:
            shown[f"X_{r}"] = local(last, data.x, case.P, r)
            shown[f"dX_{r}"] = local(last, true.gradients["x"], case.P, r)
            shown["db"] = true.gradients["bias"]
    return shown


@pytest.mark.parametrize("layer", ["column", "row"])
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_the_letters_of_the_document_are_right(layer: str, seed: int):
    """Put the numbers of a case for the letters of SPEC.md, and every tensor there is the reference's."""
    case = replace(by_hand(layer), seed=seed)
    shown = read(block(layer), **letters_of(case))
    names = {label.split(": ")[1] for label, _ in shown}
    wanted = expected(case)
    assert set(wanted) <= names
    for label, value in shown:
        name = label.split(": ")[1]
        if name in wanted:
            np.testing.assert_array_equal(value, wanted[name], err_msg=label)


def test_the_terms_of_the_document_add_up():
    row, column = by_hand("row"), by_hand("column")
    terms = dict(read(block("row"), **letters_of(row)))
    summed = terms["rank 0: T_0"] + terms["rank 1: T_1"] + terms["whole tensors: b"]
    np.testing.assert_array_equal(summed, truth(row).runs[0].output)
    terms = dict(read(block("column"), **letters_of(column)))
    summed = terms["rank 0: G_0 W_0"] + terms["rank 1: G_1 W_1"]
    np.testing.assert_array_equal(summed, truth(column).runs[0].gradients["x"])


def test_a_wrong_letter_would_be_seen():
    case = by_hand("row")
    doctored = block("row").replace("x3*c + x4*d + s", "x3*c + x4*d + s + s")
    shown = dict(read(doctored, **letters_of(case)))
    assert not np.array_equal(shown["output: Y"], truth(case).runs[0].output)


LINES = [
    "column P=2 batch=3 in=3 out=4 bias values=small seed=1",
    "column P=4 batch=none in=3 out=8 gather_output values=small seed=2",
    "column P=1 batch=2 in=2 out=2 bias skip_bias_add",
    "column P=2 batch=0 in=3 out=4 bias",
    "row P=2 batch=2x3 in=4 out=3 bias input_is_parallel=False",
    "row P=4 batch=2 in=4 out=3 bias skip_bias_add reduce_output=False values=small",
    "row P=2 batch=2 in=4 out=3 frozen=w float64",
    "row P=2 batch=3 in=64 out=3 bias values=cancel procedure=precision",
    "column P=2 batch=3 in=8 out=4 bfloat16 values=gaussian procedure=precision",
    "column P=2 batch=3 in=3 out=4 bias procedure=accumulate",
    "row P=2 batch=3 in=2 out=4 bias x=expanded autocast=bfloat16 procedure=interleave",
    "row P=2 world=4 batch=3 in=2 out=4 bias procedure=no-grad",
    "pair P=2 batch=3 in=3 hidden=4 out=2 bias values=small",
    "pair P=2 batch=2 in=3 hidden=4 out=2 gather_output input_is_parallel=False frozen=x",
    "copy P=4 batch=2 in=3",
    "reduce P=4 batch=2 in=3",
    "gather P=2 batch=2x2 in=3 dim=1",
    "scatter P=2 batch=2 in=4",
]


@pytest.mark.parametrize("line", LINES)
def test_a_trace_agrees_with_the_reference(line: str):
    text = traced(Case.parse(line))
    assert text.startswith(f"{Case.parse(line)}\n\n")
    assert text.count("\nwhole tensors, and how the ranks hold them\n") == (2 if "run 2 of 2" in text else 1)
    assert text.endswith("\n\n" + AGREES)


@pytest.mark.parametrize("name", ["output", "x", "weight", "bias"])
@pytest.mark.parametrize("line", [LINES[0], LINES[7]])
def test_a_wrong_trace_is_seen(line: str, name: str):
    case = Case.parse(line)
    right = trace(case, inputs(case))
    assert verdict(case, [right]) == AGREES.removeprefix("reference: ")
    wrong = replace(right, results={**right.results, name: right.results[name] * 1.001 + 1e-3})
    assert verdict(case, [wrong]).startswith(f"DIFFERENT {name}, which is a fault of this program: [")


def test_collectives_are_those_of_the_contract():
    line = "column P=2 batch=3 in=4 out=2 gather_output"
    assert [str(entry) for entry in agreement(Case.parse(line)).forward] == ["all-gather 12 B"]
    assert "\n  forward   all-gather 12 B\n  backward  all-reduce 48 B\n" in traced(Case.parse(line))


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("row P=2 batch=2 in=2 out=2 frozen=x", "no gradient of the input: frozen"),
        ("row P=2 in=2 out=2 bias skip_bias_add", "no gradient of the bias: skip_bias_add leaves it to the caller"),
        ("row P=2 in=2 out=2 procedure=inference", "no gradients: procedure=inference"),
        (
            "row P=2 in=2 out=2 procedure=accumulate",
            "after both runs the gradients of the parameters are the sums of the two",
        ),
        ("copy P=1 world=2 in=2", "this is the first of 2 groups; the others have data of their own"),
    ],
)
def test_remarks_say_what_rows_do_not(line: str, remark: str):
    assert f"\n\n{remark}\n\n" in traced(Case.parse(line))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("row P=2 in=2 out=2 procedure=init", "procedure=init computes no values to trace; procedure=run does"),
    ],
)
def test_what_has_no_trace(line: str, reason: str):
    with pytest.raises(ValueError, match=re.escape(reason)):
        traced(Case.parse(line))
