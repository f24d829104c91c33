"""What each operation makes of the cuts of its arguments. An operation without a rule proves nothing.

A rule takes the call and returns the cuts of its results, in order. Where what is cut meets what is not, or where an
operation runs across a cut, it says which labels are lost; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torch_tp.models.cuts import NONE, Cuts, Place, moved, through_view

aten = torch.ops.aten
Labels = Mapping[str, Place]


class Notes(Protocol):
    """Where a run notes what its operations say of labels."""

    def cuts_of(self, tensor: Tensor) -> Cuts:
        """The cuts of a value."""

    def spread_of(self, tensor: Tensor) -> frozenset[int]:
        """Dimensions of a value along which all its entries are equal."""

    def lose(self, labels: Collection[str], why: str) -> None:
        """These dimensions cannot be cut."""

    def meet(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in the same manner."""

    def contract(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in even slices, and a sum runs over them."""

    def single(self, label: str) -> bool:
        """Whether a label is to be seen as one block alone, with copies on all ranks."""

    def blocks(self, label: str, place: Place, count: int) -> int:
        """So many blocks lie in a dimension; returns how many copies of each the ranks hold."""

    def sliced(self, label: str, place: Place, size: int, start: int, stop: int) -> Place | None:
        """The place of a slice along a label's dimension of `size` entries, if there can be one."""


@dataclass(frozen=True)
class Call:
    """One operation as it was called."""

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tensors: Sequence[Tensor]
    results: Sequence[Tensor]
    notes: Notes

    @property
    def first(self) -> Cuts:
        """The cuts of the first argument."""
        return self.cuts_of(self.args[0])

    def cuts_of(self, tensor: Tensor) -> Cuts:
        """The cuts of an argument."""
        return self.notes.cuts_of(tensor)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def dim(self, position: int = 1, name: str = "dim", default: int = 0, extra: int = 0) -> int:
        """An argument that is a dimension of the first argument, counted from the front."""
        index: int = self.argument(position, name, default) % (self.args[0].dim() + extra)
        return index

    def without(self, cuts: Cuts, dims: Collection[int], why: str) -> dict[int, Labels]:
        """Cuts without these dimensions, whose labels are lost."""
        for dim in dims:
            self.notes.lose(cuts.get(dim, {}), why)
        return {dim: labels for dim, labels in cuts.items() if dim not in dims}


Rule = Callable[[Call], Sequence[Cuts]]
_RULES: dict[Any, Rule] = {}


def propagate(call: Call) -> Sequence[Cuts]:
    """The cuts of the results."""
    rule = _RULES.get(call.func.overloadpacket)
    if rule is None and torch.Tag.pointwise in call.func.tags and len(call.results) == 1:
        rule = _pointwise
    if rule is None:
        labels = {label for tensor in call.tensors for part in call.cuts_of(tensor).values() for label in part}
        call.notes.lose(labels, f"nothing is known of {call.func}")
        return [NONE] * len(call.results)
    return rule(call)


def _of(*operations: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operations, rule))
        return rule

    return register


def united(notes: Notes, parts: Sequence[Labels], why: str) -> Labels:
    """The common cut of dimensions that meet: all are cut alike, or none is."""
    places = [(label, place) for part in parts for label, place in part.items()]
    if not places:
        return {}
    if not all(parts) or len({place.outer for _, place in places}) > 1:
        notes.lose([label for label, _ in places], why)
        return {}
    notes.meet(places)
    return dict(places)


def contracted(notes: Notes, a: Labels, b: Labels, why: str) -> None:
    """A sum runs over a dimension of two values: both are cut along it, alike, or neither is."""
    places = [*a.items(), *b.items()]
    if a and b and len({place.outer for _, place in places}) == 1:
        notes.contract(places)
    else:
        notes.lose([label for label, _ in places], why)


def _pointwise(call: Call) -> Sequence[Cuts]:
    shape, found = call.results[0].shape, {}
    for dim in range(len(shape)):
        parts = []
        for tensor in call.tensors:
            own = dim - (len(shape) - tensor.dim())
            labels = call.cuts_of(tensor).get(own, {})
            if own >= 0 and labels and tensor.shape[own] != shape[dim]:
                parts.append(_spread(call, labels, shape[dim]))
            elif own >= 0 and (labels or tensor.shape[own] != 1):
                parts.append(labels)
        found[dim] = united(call.notes, parts, "its output meets a value that is not cut")
    return [found]


@_of(aten.clone, aten._to_copy, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh, aten.bernoulli_)
def _same(call: Call) -> Sequence[Cuts]:
    return [call.first]


@_of(aten.view, aten._unsafe_view, aten.reshape, aten.squeeze)
def _view(call: Call) -> Sequence[Cuts]:
    x, notes = call.args[0], call.notes
    return [
        through_view(
            call.first,
            x.shape,
            call.results[0].shape,
            lambda label, why: notes.lose([label], why),
            notes.blocks,
            notes.spread_of(x),
            notes.single,
        )
    ]


@_of(aten.expand)
def _expand(call: Call) -> Sequence[Cuts]:
    x, y = call.args[0], call.results[0]
    more = y.dim() - x.dim()
    return [
        {
            dim + more: labels if x.shape[dim] == y.shape[dim + more] else _spread(call, labels, y.shape[dim + more])
            for dim, labels in call.first.items()
        }
    ]


def _spread(call: Call, labels: Labels, size: int) -> Labels:
    """One block of which all ranks have a copy, repeated: each has its share of the repetitions."""
    found = {label: replace(place, held=False) for label, place in labels.items()}
    for label, place in found.items():
        call.notes.blocks(label, place, size)
    return found


@_of(aten.t)
def _t(call: Call) -> Sequence[Cuts]:
    return [moved(call.first, {0: 1, 1: 0} if call.args[0].dim() == 2 else {0: 0})]


@_of(aten.transpose)
def _transpose(call: Call) -> Sequence[Cuts]:
    a, b = call.dim(1, "dim0"), call.dim(2, "dim1")
    return [moved(call.first, {dim: dim for dim in call.first} | {a: b, b: a})]


@_of(aten.permute)
def _permute(call: Call) -> Sequence[Cuts]:
    count = call.args[0].dim()
    return [moved(call.first, {old % count: new for new, old in enumerate(call.args[1])})]


@_of(aten.unsqueeze)
def _unsqueeze(call: Call) -> Sequence[Cuts]:
    new = call.dim(extra=1)
    return [{dim + (dim >= new): labels for dim, labels in call.first.items()}]


def _within(call: Call, dim: int, start: int, stop: int, why: str) -> Cuts:
    """The cuts of a slice along a dimension."""
    x, kept = call.args[0], {}
    for label, place in call.first.get(dim, {}).items():
        found = call.notes.sliced(label, place, x.shape[dim], start, stop)
        if found is None:
            call.notes.lose([label], why)
        else:
            kept[label] = found
    return {**call.first, dim: kept}


def _strided(call: Call, dim: int, start: int, step: int) -> Cuts:
    """Of every rank's entries the same ones are taken, if its slice has a whole number of steps."""
    size = call.args[0].shape[dim]
    whole = start < step and size % step == 0 and call.results[0].shape[dim] == size // step
    if not whole:
        return call.without(call.first, [dim], "a slice with a step is taken along its cut")
    for label, place in call.first[dim].items():
        call.notes.blocks(label, place, size // step // place.outer)
    return call.first


@_of(aten.slice)
def _slice(call: Call) -> Sequence[Cuts]:
    dim, x = call.dim(), call.args[0]
    if dim not in call.first or call.results[0].shape == x.shape:
        return [call.first]
    start, step = call.argument(2, "start") or 0, call.argument(4, "step", 1)
    start = max(0, start + x.shape[dim] if start < 0 else start)
    if step != 1:
        return [_strided(call, dim, start, step)]
    return [_within(call, dim, start, start + call.results[0].shape[dim], "a slice is taken along its cut")]


@_of(aten.select)
def _select(call: Call) -> Sequence[Cuts]:
    gone = call.dim()
    rest = call.without(call.first, [gone], "one entry is taken along its cut")
    return [{dim - (dim > gone): labels for dim, labels in rest.items()}]


@_of(aten.unbind)
def _unbind(call: Call) -> Sequence[Cuts]:
    return [*_select(call)] * len(call.results)


@_of(aten.split, aten.split_with_sizes, aten.chunk)
def _split(call: Call) -> Sequence[Cuts]:
    dim = call.dim(2)
    if dim not in call.first:
        return [call.first] * len(call.results)
    cuts, start = [], 0
    for part in call.results:
        cuts.append(_within(call, dim, start, start + part.shape[dim], "its output is split along its cut"))
        start += part.shape[dim]
    return cuts


@_of(aten.cat)
def _cat(call: Call) -> Sequence[Cuts]:
    dims = call.results[0].dim()
    along = int(call.argument(1, "dim", 0)) % dims
    parts = [tensor for tensor in call.args[0] if tensor.dim() == dims]  # torch takes an empty vector as nothing
    for part in parts:
        call.notes.lose(call.cuts_of(part).get(along, {}), "its output is joined with others along its cut")
    return [
        {
            dim: united(
                call.notes,
                [call.cuts_of(part).get(dim, {}) for part in parts],
                "its output is joined with what is not cut",
            )
            for dim in range(dims)
            if dim != along
        }
    ]


@_of(aten.stack)
def _stack(call: Call) -> Sequence[Cuts]:
    parts, dims = call.args[0], call.results[0].dim()
    new = int(call.argument(1, "dim", 0)) % dims
    return [
        {
            dim + (dim >= new): united(
                call.notes,
                [call.cuts_of(part).get(dim, {}) for part in parts],
                "its output is stacked with what is not cut",
            )
            for dim in range(dims - 1)
        }
    ]


@_of(aten._softmax, aten._log_softmax, aten._safe_softmax)
def _softmax(call: Call) -> Sequence[Cuts]:
    return [call.without(call.first, [call.dim()], "a softmax runs over its cut")]


@_of(aten.topk, aten.sort)
def _ordered(call: Call) -> Sequence[Cuts]:
    dim = call.dim(2 if call.func.overloadpacket is aten.topk else 1, default=-1)
    return [call.without(call.first, [dim], "entries are ordered along its cut")] * 2


@_of(
    aten.max,
    aten.min,
    aten.mean,
    aten.sum,
    aten.amax,
    aten.amin,
    aten.var,
    aten.any,
    aten.all,
    aten.linalg_vector_norm,
    aten.logsumexp,
)
def _reduction(call: Call) -> Sequence[Cuts]:
    count = call.args[0].dim()
    if call.func in (aten.max.other, aten.min.other):
        return _pointwise(call)
    given = call.argument(2 if call.func.overloadpacket is aten.linalg_vector_norm else 1, "dim")
    listed = range(count) if given is None else [given] if isinstance(given, int) else given or range(count)
    gone = {dim % count for dim in listed} if count else set()
    rest = call.without(call.first, gone, f"{call.func.overloadpacket} runs over its cut")
    kept = call.results[0].dim() == count
    found = {dim if kept else dim - sum(n < dim for n in gone): labels for dim, labels in rest.items()}
    return [found] * len(call.results)


@_of(aten.native_layer_norm, aten._fused_rms_norm)
def _norm(call: Call) -> Sequence[Cuts]:
    count = call.args[0].dim()
    rest = range(count - len(call.args[1]), count)
    for parameter in (each for each in call.args[2:4] if isinstance(each, Tensor)):
        for labels in call.cuts_of(parameter).values():
            call.notes.lose(labels, "a norm runs over its cut")
    return [call.without(call.first, rest, "a norm runs over its cut")] * len(call.results)


@_of(aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._grouped_mm)
def _product(call: Call) -> Sequence[Cuts]:
    grouped = call.func.overloadpacket is aten._grouped_mm
    x, y = call.args[:2] if grouped else call.args[-2:]
    return [product_cuts(call, x, y)]


def product_cuts(call: Call, x: Tensor, y: Tensor) -> Cuts:
    """The cuts of `x y`, of matrices or batches of them, with what is added to it."""
    notes, a, b, last = call.notes, call.cuts_of(x), call.cuts_of(y), x.dim() - 1
    contracted(notes, a.get(last, {}), b.get(y.dim() - 2, {}), "a product sums over its cut")
    found: dict[int, Labels] = {last - 1: a.get(last - 1, {}), last: b.get(y.dim() - 1, {})}
    if x.dim() == y.dim() == 3:
        found[0] = united(notes, [a.get(0, {}), b.get(0, {})], "a batch of products meets a value that is not cut")
    elif y.dim() == 3:
        notes.lose(b.get(0, {}), "a product chooses along its cut")
    if len(call.args) == 3 and isinstance(call.args[0], Tensor) and x is call.args[1]:
        added = call.args[0]
        for dim in range(call.results[0].dim()):
            own = dim - (call.results[0].dim() - added.dim())
            if own >= 0 and added.shape[own] != 1:
                parts = [found.get(dim, {}), call.cuts_of(added).get(own, {})]
                found[dim] = united(notes, parts, "its output is added to a product that is not cut")
    return found


@_of(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
)
def _attention(call: Call) -> Sequence[Cuts]:
    q, k, v = call.args[:3]
    given = (call.argument(3, "attn_mask"), call.argument(3, "attn_bias"))
    masks = [mask for mask in given if isinstance(mask, Tensor)][:1]
    for tensor in (q, k, v):
        call.without(call.cuts_of(tensor), [2, 3], "attention runs over its cut")
    found: dict[int, Labels] = {}
    for dim in (0, 1):
        held = [(mask.dim() - 4 + dim, mask) for mask in masks]
        wide = [call.cuts_of(mask).get(own, {}) for own, mask in held if own >= 0 and mask.shape[own] != 1]
        found[dim] = united(
            call.notes,
            [*(call.cuts_of(t).get(dim, {}) for t in (q, k, v)), *wide],
            "attention meets a value that is not cut",
        )
    # Besides the output, what the backward wants: of batch and heads in the same order, or without either.
    return [found if result.dim() >= 3 else NONE for result in call.results]


@_of(aten.native_dropout)
def _dropout(call: Call) -> Sequence[Cuts]:
    return [call.first, call.first]


@_of(aten.embedding)
def _embedding(call: Call) -> Sequence[Cuts]:
    rest = call.without(call.first, [0], "its rows are looked up")
    return [{call.results[0].dim() - 1: rest.get(1, {})}]


@_of(aten.index)
def _index(call: Call) -> Sequence[Cuts]:
    x, indices = call.args[:2]
    given = [dim for dim, index in enumerate(indices) if isinstance(index, Tensor)]
    run = _constant_run(indices[given[0]], x.shape[given[0]]) if len(given) == 1 else None
    if run is not None:
        return [_within(call, given[0], *run, "entries are chosen along its cut")]
    rest = call.without(call.first, given, "entries are chosen along its cut")
    if given != list(range(given[0], given[0] + len(given))):
        return [call.without(rest, rest.keys(), "entries are chosen along dimensions that are not side by side")]
    more = call.results[0].dim() - x.dim()
    return [{dim + more * (dim > given[0]): labels for dim, labels in rest.items()}]


def _constant_run(index: Tensor, size: int) -> tuple[int, int] | None:
    """The first of neighbouring entries and the one after the last, where an index in the code itself names them."""
    known = getattr(index, "constant", None)
    if known is None or known.dim() != 1 or not known.numel() or known.dtype == torch.bool:
        return None
    with _disable_current_modes():
        entries = [entry % size for entry in known.tolist()]
    return (entries[0], entries[-1] + 1) if entries == list(range(entries[0], entries[-1] + 1)) else None


@_of(aten.index_select)
def _index_select(call: Call) -> Sequence[Cuts]:
    return [call.without(call.first, [call.dim()], "entries are chosen along its cut")]


@_of(aten.cumsum)
def _cumsum(call: Call) -> Sequence[Cuts]:
    return [call.without(call.first, [call.dim()], "a running sum is taken along its cut")]


@_of(aten.constant_pad_nd)
def _pad(call: Call) -> Sequence[Cuts]:
    count, pad = call.args[0].dim(), call.args[1]
    wide = [count - 1 - k // 2 for k, size in enumerate(pad) if size]
    return [call.without(call.first, wide, "its output is padded along its cut")]


@_of(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like)
def _like(call: Call) -> Sequence[Cuts]:
    # Of the shape of a cut value, so cut as well, in a way that only a shape tells.
    return [call.first]


@_of(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full)
def _new(call: Call) -> Sequence[Cuts]:
    return [NONE]  # of a shape of its own


@_of(aten.convolution)
def _convolution(call: Call) -> Sequence[Cuts]:
    """Of channels: cut channels in need cut channels of the kernel, and cut kernels give cut channels."""
    x, weight, bias = call.args[:3]
    a, b = call.cuts_of(x), call.cuts_of(weight)
    groups = call.args[8]
    for cuts, dims in ((a, range(2, x.dim())), (b, range(1, weight.dim()))):
        call.without(cuts, dims, "a convolution runs over its cut")
    channels: Labels = b.get(0, {})
    if groups == 1:
        call.notes.lose(a.get(1, {}), "a convolution runs over its cut")
    else:
        channels = united(call.notes, [channels, a.get(1, {})], "a convolution by channels meets what is not cut")
        if groups != x.shape[1] or weight.shape[0] != x.shape[1]:
            call.notes.lose(channels, "a convolution has groups of several channels")
            channels = {}
    if isinstance(bias, Tensor):
        channels = united(
            call.notes, [channels, call.cuts_of(bias).get(0, {})], "its output is added to what is not cut"
        )
    return [{0: a.get(0, {}), 1: channels}]


# What follows from a sum of the ranks' terms is such a sum too: of one argument, in which it is linear.
LINEAR = frozenset(
    {
        *(aten.clone, aten._to_copy, aten.alias, aten.detach, aten.contiguous, aten.view, aten._unsafe_view),
        *(aten.reshape, aten.squeeze, aten.unsqueeze, aten.expand, aten.t, aten.transpose, aten.permute, aten.slice),
        *(aten.select, aten.unbind, aten.split, aten.split_with_sizes, aten.chunk, aten.neg, aten.sum, aten.mean),
        *(aten.index, aten.index_select, aten.cumsum),
    }
)
# Of two arguments: their sum, and their product where one of them is whole.
ADDS = frozenset({aten.add, aten.add_, aten.sub, aten.sub_})
MULTIPLIES = frozenset({aten.mul, aten.mul_})
DIVIDES = frozenset({aten.div, aten.div_})
