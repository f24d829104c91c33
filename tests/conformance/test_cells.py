"""The cells of a run: which one a case is in, and that those called reachable are the ones that cases come from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conformance.adapters.torch_run import lay_out
from conformance.coverage.cells import Cell, cell_of, clauses_by_flags, effective, reachable
from conformance.enumeration import small_cases
from conformance.items import Item, items
from conformance.strategies import cases
from spec import Case, agreement, applicable
from spec.contract import runs_backward
from spec.placements import Placement, Sharded

ITEMS = items()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "row P=2 batch=2x3 in=4 out=2 float32 bias skip_bias_add x=transposed g=expanded frozen=wb seed=7",
            Cell(2, 2, "row", "float32", "bias skip_bias_add frozen=wb", 2, "transposed", "expanded", "run"),
        ),
        (
            "row P=2 batch=1 in=4 out=2 float32 input_is_parallel=False reduce_output=False world=4 seed=7",
            Cell(
                4,
                2,
                "row",
                "float32",
                "input_is_parallel=False reduce_output=False",
                1,
                "contiguous",
                "contiguous",
                "run",
            ),
        ),
        (
            "column P=1 batch=none in=4 out=2 float32 autocast=bfloat16 seed=7",
            Cell(1, 1, "column", "float32 autocast=bfloat16", "none", 0, "contiguous", "contiguous", "run"),
        ),
        (
            "copy P=2 batch=3 in=4 float32 x=strided procedure=no-grad seed=7",
            Cell(2, 2, "copy", "float32", "none", 1, "strided", "none", "no-grad"),
        ),
        (
            "column P=1 batch=3 in=4 out=2 float32 procedure=init seed=7",
            Cell(1, 1, "column", "float32", "none", 1, "contiguous", "none", "init"),
        ),
    ],
)
def test_the_cell_of_a_case_is_pinned(line: str, expected: Cell) -> None:
    assert expected == cell_of(Case.parse(line))


@pytest.mark.parametrize(
    ("batch", "x", "g"),
    [
        ("none", "contiguous", "contiguous"),
        ("1", "transposed", "contiguous"),
        ("2", "transposed", "expanded"),
        ("1x2", "transposed", "contiguous"),
    ],
)
def test_a_layout_that_the_shape_has_no_room_for_is_not_visited(batch: str, x: str, g: str) -> None:
    case = Case.parse(f"row P=2 batch={batch} in=4 out=2 float32 x=transposed g=expanded seed=7")
    assert (x, g) == (cell_of(case).x, cell_of(case).g)


@pytest.mark.parametrize(
    ("layer", "x", "g"), [("gather", "contiguous", "expanded"), ("scatter", "expanded", "contiguous")]
)
def test_the_shape_that_counts_is_that_of_a_rank_s_own_part(layer: str, x: str, g: str) -> None:
    """Two ranks that have one row each of two cannot expand it."""
    case = Case.parse(f"{layer} P=2 batch=2x3 in=1 float32 dim=0 x=expanded g=expanded seed=7")
    assert (x, g) == (cell_of(case).x, cell_of(case).g)


@pytest.mark.parametrize(("P", "there"), [(1, False), (2, True)])
def test_a_cell_that_only_more_ranks_reach_is_reachable_there_alone(P: int, there: bool) -> None:
    """The one batch of three dimensions has a first one of 1, which cut along it is P."""
    cell = cell_of(Case.parse("scatter P=2 batch=2x2x3 in=1 float32 dim=0 x=expanded seed=7"))
    assert there == (cell.variant in {other.variant for other in reachable(Item("run", "scatter", P, "float32"))})


def here(placement: Placement, shape: tuple[int, ...], P: int) -> torch.Tensor:
    """A rank's part of a whole tensor of this shape."""
    whole = torch.zeros(shape)
    return whole.chunk(P, placement.dim)[0] if isinstance(placement, Sharded) and whole.numel() else whole


@settings(max_examples=300)
@given(st.data())
def test_a_layout_takes_effect_where_the_ranks_see_other_strides_than_without(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(ITEMS))))
    terms = agreement(case)
    assume(0 not in case.batch)  # a tensor without elements has no strides to tell apart
    x = here(terms.input.value, terms.input_shape, case.P)
    g = here(terms.output.gradient, terms.output_shape, case.P)

    assert (effective(case).x == "contiguous") == (lay_out(x, case.x)[0] is x)
    if runs_backward(case):
        assert (effective(case).g == "contiguous") == (lay_out(g, case.g)[0] is g)


@settings(max_examples=500)
@given(st.data())
def test_every_drawn_case_is_in_a_reachable_cell(data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(ITEMS))
    assert cell_of(data.draw(cases(item))) in set(reachable(item))


@pytest.mark.parametrize(
    "item",
    [
        Item("run", "column", 2, "float32"),
        Item("no-grad", "row", 1, "float32"),
        Item("twice", "pair", 4, "float32"),
        Item("accumulate", "row", 2, "float32", world=4),
        Item("refuse", "column", 2, "float32"),
        Item("run", "scatter", 1, "float64"),
        Item("run", "gather", 4, "bfloat16"),
        Item("inference", "reduce", 2, "float32"),
    ],
    ids=str,
)
def test_every_reachable_cell_of_few_dimensions_has_a_small_case_and_no_other_does(item: Item) -> None:
    expected = {cell for cell in reachable(item) if cell.rank <= 2}
    assert expected == {cell_of(case) for case in small_cases(item)}


def test_no_cell_is_counted_twice() -> None:
    cells = [cell for item in ITEMS for cell in reachable(item)]
    assert len(set(cells)) == len(cells)


@settings(max_examples=500)
@given(st.data())
def test_the_clauses_of_a_cell_are_those_that_apply_to_its_cases(data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(ITEMS))
    case = data.draw(cases(item))
    names = {clause.name for clause in applicable(case)}
    there = clauses_by_flags(item)[cell_of(case).flags]

    # Cells of precision hold several kinds of values, of which each has clauses of its own; those of qkv sizes with
    # copies of heads and without.
    several = item.procedure == "precision" or (item.layer == "qkv" and item.P > 1)
    assert names <= there if several else names == there


def test_the_clauses_of_a_cell_are_those_of_all_its_kinds_of_values() -> None:
    there = clauses_by_flags(Item("precision", "row", 2, "float16"))["none"]
    assert {"precision.forward", "row.forward.value"} <= there
