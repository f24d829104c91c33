"""Cases as Hypothesis strategies. P and per-rank sizes are drawn, never totals that must divide, never tensor elements.

Every alternative stands simplest first, because that is what Hypothesis shrinks to.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from conformance.items import Item
from spec import Case
from spec.case import FUNCTIONS
from spec.contract import runs_backward
from spec.faults import faults_of

BATCHES: Final = ((1,), (2,), (3,), (), (0,), (2, 3), (5,), (1, 2, 3), (3, 0), (2, 1, 3, 2))
LAYOUTS: Final = (
    ("contiguous", "contiguous"),
    ("transposed", "contiguous"),
    ("contiguous", "transposed"),
    ("strided", "strided"),
    ("expanded", "contiguous"),
    ("contiguous", "expanded"),
    ("offset", "offset"),
    ("transposed", "expanded"),
)
# Half of them with everything trainable, since a frozen tensor leaves less to judge.
FROZEN: Final = (*[""] * 7, "x", "w", "b", "xw", "xb", "wb", "xwb")
SIZES: Final = (1, 2, 3, 5, 7, 4)
LONG: Final = (1, 3, 64, 96, 96)
ROWS: Final = (1, 3, 64, 128, 512)
# The flags that leave their default, per layer.
FLAGS: Final = {
    "column": ((), ("gather_output",), ("skip_bias_add",)),
    "row": ((), ("input_is_parallel",), ("skip_bias_add",), ("reduce_output",), ("input_is_parallel", "skip_bias_add")),
    "pair": ((), ("gather_output", "input_is_parallel")),
}
# Procedures that need a gradient of x, or whose subject is something else: no layouts, nothing frozen.
_PLAIN: Final = frozenset(
    {"init", "state-dict", "refuse", "precision", "checkpoint-reentrant", "compile", "compile-inductor"}
)
_NO_FROZEN: Final = _PLAIN | {"no-grad", "inference", "accumulate", "pipeline", "update", "interleave", "delay"}

_seeds = st.integers(0, 2**16)


@cache
def cases(item: Item) -> st.SearchStrategy[Case]:
    """The cases of an item."""
    if item.layer in FUNCTIONS:
        return _function(item)
    return _precise(item) if item.procedure == "precision" else _layered(item)


def _fixed(item: Item) -> dict[str, Any]:
    fixed: dict[str, Any] = {"layer": item.layer, "P": item.P, "dtype": item.dtype, "procedure": item.procedure}
    if item.autocast:
        fixed["autocast"] = item.autocast
    if item.world:
        fixed["world"] = item.world
    return fixed


def _groups(item: Item, draw: Any) -> dict[str, Any]:
    return {"groups": draw(st.sampled_from(("neighbouring", "interleaved")))} if item.world > item.P > 1 else {}


@st.composite
def _layered(draw: Any, item: Item) -> Case:
    bias = draw(st.booleans())
    flags = _flags(draw(st.sampled_from(FLAGS[item.layer])), bias)
    sizes = _sizes(item, draw(st.sampled_from(SIZES[:4])), draw(st.sampled_from(SIZES)))
    if item.layer == "pair":
        sizes["out_features"] = draw(st.sampled_from(SIZES))
    fields = _fixed(item) | sizes | flags | {"batch": draw(st.sampled_from(BATCHES)), "bias": bias}
    if item.procedure not in _PLAIN:
        fields["x"], fields["g"] = draw(st.sampled_from(LAYOUTS))
    if item.procedure not in _NO_FROZEN:
        frozen = draw(st.sampled_from(FROZEN))
        fields["frozen"] = frozen if bias else frozen.replace("b", "")
    return _finished(draw, item, fields)


def _sizes(item: Item, per_rank: int, other: int) -> dict[str, int]:
    cut = item.P * per_rank
    if item.layer == "pair":
        return {"in_features": other, "hidden_features": cut}
    first, second = ("out_features", "in_features") if item.layer == "column" else ("in_features", "out_features")
    return {first: cut, second: other}


def _finished(draw: Any, item: Item, fields: dict[str, Any]) -> Case:
    """The case of these fields: its groups, its seed and, where it is to be refused, its fault."""
    fields |= _groups(item, draw)
    seed = draw(_seeds)
    if item.procedure != "refuse":
        return _canonical(Case(**fields, seed=seed))
    del fields["procedure"]
    fault = draw(st.sampled_from(faults_of(Case(**fields))))
    return Case(**fields, procedure="refuse", fault=fault, seed=seed)


def _flags(chosen: tuple[str, ...], bias: bool) -> dict[str, bool]:
    """Flags by name; reduce_output=False leaves no place for a bias but skip_bias_add."""
    flags = {name: name not in ("input_is_parallel", "reduce_output") for name in chosen}
    if "reduce_output" in chosen and bias:
        flags["skip_bias_add"] = True
    return flags


def _canonical(case: Case) -> Case:
    """Without a layout for an upstream gradient that the case does not have."""
    return case if runs_backward(case) else replace(case, g="contiguous")


@st.composite
def _precise(draw: Any, item: Item) -> Case:
    """Real values, mostly of one sign, with 64 and more terms in one to all of the sums: of Y, of dX, of dW and db."""
    cut, other, rows = (
        item.P * draw(st.sampled_from((64, 96))),
        draw(st.sampled_from(LONG)),
        draw(st.sampled_from(ROWS)),
    )
    sizes = {"in_features": cut, "out_features": other}
    if item.layer == "column":
        sizes = {"in_features": other, "out_features": cut}
    flags = draw(st.sampled_from(((), ("reduce_output",)))) if item.layer == "row" else ()
    bias = draw(st.booleans())
    kinds = ("positive", "gaussian", "positive", "positive")
    values = draw(st.sampled_from((*kinds, "cancel") if item.layer == "row" and item.P > 1 else kinds))
    chosen = {"batch": (rows,), "bias": bias, "values": values} | _flags(flags, bias)
    return Case(**_fixed(item), **sizes, **chosen, seed=draw(_seeds))


@st.composite
def _function(draw: Any, item: Item) -> Case:
    batch, width = draw(st.sampled_from(BATCHES)), draw(st.sampled_from(SIZES))
    fields = _fixed(item)
    if item.layer in ("gather", "scatter"):
        shape = [*batch, width]
        dim = draw(st.sampled_from(sorted(range(-len(shape), len(shape)), key=lambda d: (d != -1, abs(d)))))
        shape[dim] *= item.P
        batch, width = tuple(shape[:-1]), shape[-1]
        fields["dim"] = dim
    if item.procedure == "precision":
        fields["values"] = draw(st.sampled_from(("positive", "gaussian")))
    elif item.procedure not in _PLAIN:
        fields["x"], fields["g"] = draw(st.sampled_from(LAYOUTS))
    if item.procedure == "run":
        fields["frozen"] = draw(st.sampled_from(("", "", "", "x")))
    return _finished(draw, item, fields | {"batch": batch, "in_features": width})
