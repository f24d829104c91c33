"""The contract's tables, pinned: who holds what, and which collectives run, for every layer and flag."""

from __future__ import annotations

import pytest

from spec import Case, Partial, Replicated, Sharded, agreement
from spec.case import LAYERS
from spec.contract import needs_gradient, runs_backward
from spec.placements import Parts

COLUMN = "column P=4 batch=2x3 in=5 out=8 float32"
ROW = "row P=4 batch=2x3 in=8 out=5 float32"
PAIR = "pair P=4 batch=2x3 in=5 hidden=8 out=3 float32"
MERGED = "merged P=4 batch=2x3 in=5 parts=8,4 float32"
QKV = "qkv P=4 batch=2x3 in=5 heads=4 head_size=3 float32"
FUNCTION = "P=4 batch=2x3 in=8 float32"
# line, input, output, parameters, forward, backward
TABLE = [
    (f"{COLUMN} bias", "R/R", "S(-1)/S(-1)", "S(0) S(0)", "", "all-reduce 120 B"),
    (f"{COLUMN} gather_output", "R/R", "R/R", "S(0)", "all-gather 48 B", "all-reduce 120 B"),
    (f"{COLUMN} bias skip_bias_add", "R/R", "S(-1)/S(-1)", "S(0) S(0)", "", "all-reduce 120 B"),
    (f"{COLUMN} frozen=x", "R/R", "S(-1)/S(-1)", "S(0)", "", ""),
    (f"{COLUMN} frozen=xw", "R/R", "S(-1)/S(-1)", "S(0)", "", ""),
    (f"{COLUMN} frozen=w", "R/R", "S(-1)/S(-1)", "S(0)", "", "all-reduce 120 B"),
    (f"{COLUMN} gather_output procedure=no-grad", "R/R", "R/R", "S(0)", "all-gather 48 B", ""),
    (f"{COLUMN} autocast=bfloat16", "R/R", "S(-1)/S(-1)", "S(0)", "", "all-reduce 60 B"),
    (f"{ROW} bias", "S(-1)/S(-1)", "R/R", "S(1) R", "all-reduce 120 B", ""),
    (f"{ROW} input_is_parallel=False", "R/R", "R/R", "S(1)", "all-reduce 120 B", "all-gather 48 B"),
    (f"{ROW} input_is_parallel=False frozen=x", "R/R", "R/R", "S(1)", "all-reduce 120 B", ""),
    (f"{ROW} input_is_parallel=False procedure=inference", "R/R", "R/R", "S(1)", "all-reduce 120 B", ""),
    (f"{ROW} reduce_output=False", "S(-1)/S(-1)", "P/R", "S(1)", "", ""),
    (f"{ROW} bias skip_bias_add", "S(-1)/S(-1)", "R/R", "S(1) R", "all-reduce 120 B", ""),
    (f"{MERGED} bias", "R/R", "S(-1: 8, 4)/S(-1: 8, 4)", "S(0: 8, 4) S(0: 8, 4)", "", "all-reduce 120 B"),
    (f"{MERGED} gather_output", "R/R", "R/R", "S(0: 8, 4)", "all-gather 72 B", "all-reduce 120 B"),
    (f"{QKV} kv=4", "R/R", "S(-1: 12, 12, 12)/S(-1: 12, 12, 12)", "S(0: 12, 12, 12)", "", "all-reduce 120 B"),
    (
        f"{QKV} kv=2 bias",
        "R/R",
        "S(-1: 12, 12, 12)/S(-1: 12, 12, 12)",
        "S(0: 12, 6 in 2 copies, 6 in 2 copies) S(0: 12, 6 in 2 copies, 6 in 2 copies)",
        "",
        "all-reduce 120 B; all-reduce 24 B; all-reduce 120 B",
    ),
    (
        f"{QKV} kv=1 frozen=x",
        "R/R",
        "S(-1: 12, 12, 12)/S(-1: 12, 12, 12)",
        "S(0: 12, 3 in 4 copies, 3 in 4 copies)",
        "",
        "all-reduce 120 B",
    ),
    (
        f"{QKV} kv=2 bias skip_bias_add frozen=w",
        "R/R",
        "S(-1: 12, 12, 12)/S(-1: 12, 12, 12)",
        "S(0: 12, 6 in 2 copies, 6 in 2 copies) S(0: 12, 6 in 2 copies, 6 in 2 copies)",
        "",
        "all-reduce 120 B",
    ),
    (f"{PAIR}", "R/R", "R/R", "S(0) S(1)", "all-reduce 72 B", "all-reduce 120 B"),
    (f"{PAIR} bias frozen=x", "R/R", "R/R", "S(0) S(1) S(0) R", "all-reduce 72 B", ""),
    (
        f"{PAIR} gather_output input_is_parallel=False",
        "R/R",
        "R/R",
        "S(0) S(1)",
        "all-gather 48 B; all-reduce 72 B",
        "all-gather 48 B; all-reduce 120 B",
    ),
    (f"copy {FUNCTION}", "R/R", "R/P", "", "", "all-reduce 192 B"),
    (f"reduce {FUNCTION}", "P/R", "R/R", "", "all-reduce 192 B", ""),
    (f"gather {FUNCTION}", "S(-1)/S(-1)", "R/R", "", "all-gather 48 B", ""),
    (f"scatter {FUNCTION}", "R/R", "S(-1)/S(-1)", "", "", "all-gather 48 B"),
    (f"copy {FUNCTION} frozen=x", "R/R", "R/P", "", "", ""),
    ("gather P=2 batch=2x3 in=5 float64 dim=0", "S(0)/S(0)", "R/R", "", "all-gather 120 B", ""),
    ("scatter P=2 batch=4 in=5 bfloat16 dim=-2", "R/R", "S(-2)/S(-2)", "", "", "all-gather 20 B"),
    ("row P=2 batch=0x3 in=4 out=2 float16", "S(-1)/S(-1)", "R/R", "S(1)", "all-reduce 0 B", ""),
    ("row P=2 batch=3 in=4 out=2 float16", "S(-1)/S(-1)", "R/R", "S(1)", "all-reduce 12 B", ""),
    ("column P=2 batch=none in=3 out=4 float64", "R/R", "S(-1)/S(-1)", "S(0)", "", "all-reduce 24 B"),
]


@pytest.mark.parametrize(
    ("line", "before", "after", "parameters", "forward", "backward"), TABLE, ids=[entry[0] for entry in TABLE]
)
def test_the_tables_say_this_of_a_case(
    line: str, before: str, after: str, parameters: str, forward: str, backward: str
) -> None:
    terms = agreement(Case.parse(line))
    assert before == str(terms.input)
    assert after == str(terms.output)
    assert parameters == " ".join(map(str, terms.parameters.values()))
    assert forward == "; ".join(map(str, terms.forward))
    assert backward == "; ".join(map(str, terms.backward))


@pytest.mark.parametrize("layer", LAYERS)
def test_one_rank_communicates_nothing(layer: str) -> None:
    sizes = {
        "column": {"out_features": 4},
        "row": {"out_features": 4},
        "merged": {"parts": (4, 2)},
        "qkv": {"heads": 4, "kv_heads": 2, "head_size": 3},
        "pair": {"out_features": 4, "hidden_features": 4},
    }
    terms = agreement(Case(layer, 1, 4, batch=(3,), **sizes.get(layer, {})))
    assert terms.forward == terms.backward == ()


@pytest.mark.parametrize("layer", ["column", "row"])
def test_shapes_are_those_of_the_whole_tensors(layer: str) -> None:
    terms = agreement(Case(layer, 2, 4, out_features=6, batch=(2, 0, 3)))
    assert terms.input_shape == (2, 0, 3, 4)
    assert terms.output_shape == (2, 0, 3, 6)
    assert not terms.returns_bias


@pytest.mark.parametrize(
    ("line", "expected"),
    [(COLUMN, False), (f"{COLUMN} skip_bias_add", True), (f"{ROW} skip_bias_add", True), (PAIR, False)]
    + [(f"{name} {FUNCTION}", False) for name in ("copy", "reduce", "gather", "scatter")],
)
def test_a_bias_is_returned_with_skip_bias_add_alone(line: str, expected: bool) -> None:
    assert expected == agreement(Case.parse(line)).returns_bias


def test_a_gradient_is_placed_as_its_value_but_for_partial_ones() -> None:
    """The edges of the contract: R/R, R/P, S/S and P/R, and no other."""
    duals = {Replicated: (Replicated, Partial), Partial: (Replicated,), Sharded: (Sharded,), Parts: (Parts,)}
    for line, *_ in TABLE:
        terms = agreement(Case.parse(line))
        for edge in (terms.input, terms.output):
            assert type(edge.gradient) in duals[type(edge.value)]


@pytest.mark.parametrize(
    ("words", "needed", "backward"),
    [
        ("bias", {"x", "weight", "bias"}, True),
        ("", {"x", "weight"}, True),
        ("bias frozen=xw", {"bias"}, True),
        ("bias frozen=xw skip_bias_add", {"bias"}, False),
        ("bias frozen=xwb", set(), False),
        ("frozen=xw", set(), False),
        ("bias procedure=no-grad", {"x", "weight", "bias"}, False),
    ],
)
def test_what_is_frozen_decides_whether_there_is_a_backward(words: str, needed: set[str], backward: bool) -> None:
    """A bias that is only returned takes no part in the output."""
    case = Case.parse(f"row P=2 batch=3 in=4 out=2 float32 {words} seed=1")
    assert needed == needs_gradient(case)
    assert backward == runs_backward(case)
