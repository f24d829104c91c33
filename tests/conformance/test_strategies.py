"""The cases that are drawn: every item has some, all flags and shapes come up, and the simplest stands first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from conformance.items import Item, items
from conformance.space import BATCHES, LAYOUTS
from conformance.strategies import cases
from spec import Case, amplitude
from spec.case import FUSED, LAYERS
from spec.contract import runs_backward
from spec.faults import FAULTS, faults_of

ITEMS = items()
FINDING = settings(max_examples=500, database=None, derandomize=True)


def test_no_item_comes_twice() -> None:
    assert len({str(item) for item in ITEMS}) == len(set(ITEMS)) == len(ITEMS)


@pytest.mark.parametrize("world_sizes", [(1,), (2,), (1, 2), (4,)])
def test_items_have_the_world_sizes_that_were_asked_for(world_sizes: tuple[int, ...]) -> None:
    chosen = items(world_sizes)
    assert {max(item.P, item.world) for item in chosen} == set(world_sizes)
    assert [item for item in ITEMS if max(item.P, item.world) in world_sizes] == chosen


@pytest.mark.parametrize("fused", [(), ("merged",), ("merged", "qkv")])
def test_layers_of_several_parts_have_items_only_where_there_are_such_layers(fused: tuple[str, ...]) -> None:
    chosen = items((1, 2, 4), fused)
    assert {item.layer for item in chosen} == set(LAYERS) - set(FUSED) | set(fused)
    assert [item for item in ITEMS if item.layer not in FUSED or item.layer in fused] == chosen


@pytest.mark.parametrize(("P", "kv_heads"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4), (4, 8)])
def test_key_heads_come_up_below_at_and_above_the_ranks(P: int, kv_heads: int) -> None:
    assert find(cases(Item("run", "qkv", P, "float32")), lambda case: case.kv_heads == kv_heads, settings=FINDING)


def test_merged_layers_have_two_parts_and_three_and_unequal_ones() -> None:
    item = Item("run", "merged", 2, "float32")
    for wanted in (lambda case: len(case.parts) == 3, lambda case: case.parts[0] != case.parts[1]):
        assert find(cases(item), wanted, settings=FINDING)


def test_small_worlds_come_first() -> None:
    sizes = [max(item.P, item.world) for item in ITEMS]
    assert sorted(sizes) == sizes


@given(st.data())
def test_exact_cases_have_exact_values(data: st.DataObject) -> None:
    """No drawn case is too long for its dtype."""
    case = data.draw(cases(data.draw(st.sampled_from(ITEMS))))
    assert case.values not in ("exact", "small") or amplitude(case) >= 1


@given(st.data())
def test_an_upstream_gradient_has_a_layout_only_where_there_is_one(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(ITEMS))))
    assert runs_backward(case) or case.g == "contiguous"


@given(st.data())
def test_a_refused_case_has_a_fault_of_its_layer(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([item for item in ITEMS if item.procedure == "refuse"]))))
    plain = Case.parse(case.text.replace(f"procedure=refuse fault={case.fault} ", ""))
    assert case.fault in faults_of(plain)


@given(st.data())
def test_real_cases_have_a_long_sum(data: st.DataObject) -> None:
    layers = [item for item in ITEMS if item.procedure == "precision" and item.layer in ("column", "row")]
    case = data.draw(cases(data.draw(st.sampled_from(layers))))
    assert max(case.in_features, case.out_features, case.rows) >= 64


def drawn(item: Item, wanted: Callable[[Case], bool]) -> Case:
    """The simplest case of an item that is wanted; an error if there is none."""
    return find(cases(item), wanted, settings=FINDING)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item("run", "column", 2, "float32"), "column P=2 batch=1 in=1 out=2 float32 seed=0"),
        (Item("run", "row", 4, "bfloat16"), "row P=4 batch=1 in=4 out=1 bfloat16 seed=0"),
        (Item("twice", "copy", 2, "float32"), "copy P=2 batch=1 in=1 float32 procedure=twice seed=0"),
        (
            Item("refuse", "row", 2, "float32"),
            "row P=2 batch=1 in=2 out=1 float32 procedure=refuse fault=indivisible seed=0",
        ),
    ],
)
def test_the_simplest_case_of_an_item_is_pinned(item: Item, expected: str) -> None:
    assert expected == str(drawn(item, lambda case: True))


@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_comes_up(batch: tuple[int, ...]) -> None:
    assert batch == drawn(Item("run", "row", 2, "float32"), lambda case: case.batch == batch).batch


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_every_pair_of_layouts_comes_up(layouts: tuple[str, str]) -> None:
    case = drawn(Item("run", "column", 2, "float32"), lambda case: (case.x, case.g) == layouts)
    assert layouts == (case.x, case.g)


@pytest.mark.parametrize(
    ("layer", "flag"),
    [
        ("column", "bias"),
        ("column", "gather_output"),
        ("column", "skip_bias_add"),
        ("row", "bias"),
        ("row", "skip_bias_add"),
    ],
)
def test_every_flag_comes_up_with_and_without(layer: str, flag: str) -> None:
    for value in (False, True):
        item = Item("run", layer, 2, "float32")
        assert value == getattr(drawn(item, lambda case, value=value: getattr(case, flag) == value), flag)


@pytest.mark.parametrize("flag", ["input_is_parallel", "reduce_output"])
def test_every_flag_of_row_that_is_on_is_turned_off(flag: str) -> None:
    assert not getattr(drawn(Item("run", "row", 2, "float32"), lambda case: not getattr(case, flag)), flag)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_comes_up(fault: str) -> None:
    layer = FAULTS[fault].layers[0]
    assert fault == drawn(Item("refuse", layer, 2, "float32"), lambda case: case.fault == fault).fault


@pytest.mark.parametrize("dim", [-3, -2, -1])
def test_every_dimension_counted_from_the_end_comes_up(dim: int) -> None:
    item = Item("run", "scatter", 2, "float32")
    case = drawn(item, lambda case: len(case.batch) == 2 and case.dim == dim)
    assert dim == case.dim


@pytest.mark.parametrize("groups", ["neighbouring", "interleaved"])
def test_both_ways_to_form_groups_come_up(groups: str) -> None:
    item = Item("run", "row", 2, "float32", world=4)
    assert groups == drawn(item, lambda case: case.groups == groups).groups


@pytest.mark.parametrize(
    ("layer", "values"),
    [*product(("row", "column", "reduce", "copy"), ("positive", "gaussian", "subnormal")), ("row", "cancel")],
)
def test_every_kind_of_values_for_precision_comes_up(layer: str, values: str) -> None:
    item = Item("precision", layer, 2, "float16")
    assert item in ITEMS
    assert values == drawn(item, lambda case: case.values == values).values


@given(st.data())
def test_subnormal_values_come_up_in_float16_alone(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([item for item in ITEMS if item.procedure == "precision"]))))
    assert case.values != "subnormal" or case.dtype == "float16"
