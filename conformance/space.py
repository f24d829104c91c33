"""What the cases of an item are made of: the tables, and which of them an item has.

The strategies draw from these tables, the cells of a report and the small cases of `deep` are counted off from them, so
none of the three can have what the others lack. Every alternative stands simplest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Final

from conformance.items import Item
from spec import Case
from spec.case import COLUMN_LIKE, FUNCTIONS
from spec.contract import runs_backward

Fields = dict[str, Any]
Words = tuple[str, ...]
# What a layer cuts: a size per rank; of merged one for each part; of qkv (key heads, query heads for each, head size).
Cut = int | tuple[int, ...]

# Four dimensions before three: whatever needs several shrinks past shapes that hide it.
BATCHES: Final = ((1,), (2,), (5,), (), (0,), (3, 0), (2, 3), (2, 1, 3, 2), (1, 2, 3))
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
# The flags that leave their default, per layer; for row none twice as often, since a returned bias tells little.
FLAGS: Final = {
    "column": ((), ("gather_output",), ("skip_bias_add",)),
    "row": (
        (),
        (),
        ("input_is_parallel",),
        ("skip_bias_add",),
        ("reduce_output",),
        ("input_is_parallel", "skip_bias_add"),
    ),
    "merged": ((), ("gather_output",), ("skip_bias_add",)),
    "qkv": ((), ("skip_bias_add",)),
    "pair": ((), ("gather_output", "input_is_parallel")),
}
# Procedures that need a gradient of x, or whose subject is something else: no layouts, nothing frozen.
_PLAIN: Final = frozenset(
    {"init", "state-dict", "refuse", "precision", "checkpoint-reentrant", "compile", "compile-inductor"}
)
_NO_FROZEN: Final = _PLAIN | {"no-grad", "inference", "accumulate", "pipeline", "update", "interleave", "delay"}


def fixed_of(item: Item) -> Fields:
    """The fields that every case of an item has in common."""
    fixed: Fields = {"layer": item.layer, "P": item.P, "dtype": item.dtype, "procedure": item.procedure}
    if item.autocast:
        fixed["autocast"] = item.autocast
    if item.world:
        fixed["world"] = item.world
    return fixed


def groups_of(item: Item) -> Words:
    """The ways to form groups of P ranks in the item's world."""
    return ("neighbouring", "interleaved") if item.world > item.P > 1 else ("neighbouring",)


def batches_of(item: Item) -> tuple[tuple[int, ...], ...]:
    """The shapes of the batch."""
    long = item.procedure == "precision" and item.layer not in FUNCTIONS
    return tuple((rows,) for rows in ROWS) if long else BATCHES


def long_batches_of(item: Item, cut: Cut) -> tuple[tuple[int, ...], ...]:
    """The shapes of the batch whose sums, with those over the copies of a head, are not longer than the longest."""
    copies = max(1, item.P // cut[0]) if item.layer == "qkv" and isinstance(cut, tuple) else 1
    return tuple(batch for batch in batches_of(item) if batch[0] * copies <= ROWS[-1])


def biases_of(item: Item) -> tuple[bool, ...]:
    """Without a bias and, where the layer has one, with it, which comes up more often."""
    return (False,) if item.layer in FUNCTIONS else (False, True, True)


def flags_of(item: Item) -> tuple[Words, ...]:
    """The flags that leave their default, together; what is to come up more often stands there more often."""
    if item.procedure == "precision":
        return ((), ("reduce_output",)) if item.layer == "row" else ((),)
    return FLAGS.get(item.layer, ((),))


def flag_fields(chosen: Words, bias: bool) -> Fields:
    """Flags and bias by name; reduce_output=False leaves no place for a bias but skip_bias_add."""
    flags: Fields = {name: name not in ("input_is_parallel", "reduce_output") for name in chosen}
    if "reduce_output" in chosen and bias:
        flags["skip_bias_add"] = True
    return flags | ({"bias": True} if bias else {})


def layouts_of(item: Item) -> tuple[tuple[str, str], ...]:
    """The layouts of x and of the upstream gradient, in pairs."""
    return LAYOUTS[:1] if item.procedure in _PLAIN else LAYOUTS


def frozen_of(item: Item, bias: bool) -> Words:
    """The tensors that are frozen together; what is to come up more often stands there more often."""
    if item.layer in FUNCTIONS:
        return ("", "", "", "x") if item.procedure == "run" else ("",)
    if item.procedure in _NO_FROZEN:
        return ("",)
    return FROZEN if bias else tuple(letters.replace("b", "") for letters in FROZEN)


def values_of(item: Item) -> Words:
    """The kinds of values; what is to come up more often stands there more often."""
    if item.procedure != "precision":
        return ("exact",)
    # They alone see a narrow quotient, and only this dtype has them.
    fixed_point = ("subnormal",) if item.dtype == "float16" else ()
    if item.layer in FUNCTIONS:
        return ("positive", "gaussian", *fixed_point)
    cancelling = ("cancel",) if item.layer == "row" and item.P > 1 else ()
    return ("positive", "gaussian", "positive", "positive", *cancelling, *fixed_point)


def cuts_of(item: Item, sizes: Sequence[int]) -> tuple[Cut, ...]:
    """What an item's layer can cut, of some sizes per rank."""
    if item.layer == "merged":
        return tuple(dict.fromkeys((*product(sizes, repeat=2), tuple(sizes[:3]))))
    if item.layer == "qkv":  # numbers of key heads below, at and above P
        heads = [number for number in (1, 2, 4, 8) if number <= 2 * item.P]
        return tuple(product(heads, (1, 2), sizes[:3]))
    return tuple(sizes)


def long_cuts_of(item: Item) -> tuple[Cut, ...]:
    """What is cut where a sum over it is to have 64 terms and more on every rank."""
    return cuts_of(item, {"merged": (64, 32), "qkv": (32,)}.get(item.layer, (64, 96)))


def layer_sizes(item: Item, cut_of: Cut, other: int, last: int) -> Fields:
    """The sizes of a layer with parameters: what is cut, what is not, and of a pair also its output."""
    if isinstance(cut_of, tuple):
        if item.layer == "merged":
            return {"in_features": other, "parts": tuple(item.P * size for size in cut_of)}
        kv_heads, queries, head_size = cut_of
        heads = max(item.P, kv_heads) * queries
        return {"in_features": other, "heads": heads, "kv_heads": kv_heads, "head_size": head_size}
    cut = item.P * cut_of
    if item.layer == "pair":
        return {"in_features": other, "hidden_features": cut, "out_features": last}
    first, second = ("out_features", "in_features") if item.layer in COLUMN_LIKE else ("in_features", "out_features")
    return {first: cut, second: other}


def dims_of(item: Item, batch: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions that a function can cut, counted from both ends; for a function that cuts none the default."""
    if item.layer not in ("gather", "scatter"):
        return (-1,)
    rank = len(batch) + 1
    return tuple(sorted(range(-rank, rank), key=lambda dim: (dim != -1, abs(dim))))


def function_sizes(item: Item, batch: tuple[int, ...], width: int, dim: int) -> Fields:
    """The whole shape of a function's tensor, of which every rank has this one, or a slice of P times it along dim."""
    if item.layer not in ("gather", "scatter"):
        return {"batch": batch, "in_features": width}
    shape = [*batch, width]
    shape[dim] *= item.P
    return {"batch": tuple(shape[:-1]), "in_features": shape[-1], "dim": dim}


def canonical(case: Case) -> Case:
    """Without a layout for an upstream gradient that the case does not have."""
    return case if runs_backward(case) else replace(case, g="contiguous")
