"""What each operation makes of the cuts of its arguments. An operation without a rule proves nothing.

A rule takes the call and returns the cuts of its results, in order. Rules that meet values of which one is cut and
another is not, or that compute across a cut, raise `Unprovable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_tp.planning.cuts import NONE, Cuts, Unprovable, moved, through_view

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One operation as it was called.

    Attributes:
        cuts_of: the cuts of a tensor.
        join: says that linears must be cut together.
        divide: says that a linear's output is several parts, of these sizes, of which each is cut by itself.
    """

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tensors: Sequence[Tensor]
    results: Sequence[Tensor]
    P: int
    cuts_of: Callable[[Tensor], Cuts]
    join: Callable[[Iterable[str]], None]
    divide: Callable[[str, Sequence[int]], None]

    @property
    def first(self) -> Cuts:
        """The cuts of the first argument."""
        return self.cuts_of(self.args[0])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def dim(self, position: int = 1, name: str = "dim", default: int = 0, extra: int = 0) -> int:
        """An argument that is a dimension of the first argument, counted from the front."""
        index: int = self.argument(position, name, default) % (self.args[0].dim() + extra)
        return index


Rule = Callable[[Call], Sequence[Cuts]]
_RULES: dict[Any, Rule] = {}


def propagate(call: Call) -> Sequence[Cuts]:
    """The cuts of the results.

    Raises:
        Unprovable: with the reason.
    """
    rule = _RULES.get(call.func.overloadpacket)
    if rule is None and torch.Tag.pointwise in call.func.tags and len(call.results) == 1:
        rule = _pointwise
    if rule is None:
        raise Unprovable(f"nothing is known of {call.func}")
    return rule(call)


def _of(*operations: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operations, rule))
        return rule

    return register


def _united(call: Call, parts: Sequence[Mapping[str, int]], why: str) -> Mapping[str, int]:
    """The common cut of dimensions that meet: all are cut alike, or none is."""
    if not any(parts):
        return {}
    if not all(parts) or len({outer for part in parts for outer in part.values()}) > 1:
        raise Unprovable(why)
    call.join(label for part in parts for label in part)
    return {label: outer for part in parts for label, outer in part.items()}


def _pointwise(call: Call) -> Sequence[Cuts]:
    shape, found = call.results[0].shape, {}
    for dim in range(len(shape)):
        parts = []
        for tensor in call.tensors:
            own = dim - (len(shape) - tensor.dim())
            if own >= 0 and (tensor.shape[own] != 1 or shape[dim] == 1):
                parts.append(call.cuts_of(tensor).get(own, {}))
        found[dim] = _united(call, parts, "it meets a value that is not cut")
    return [found]


@_of(aten.clone, aten._to_copy, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh, aten.bernoulli_)
def _same(call: Call) -> Sequence[Cuts]:
    return [call.first]


@_of(aten.view, aten._unsafe_view, aten.reshape, aten.squeeze)
def _view(call: Call) -> Sequence[Cuts]:
    return [through_view(call.first, call.args[0].shape, call.results[0].shape, call.P)]


@_of(aten.expand)
def _expand(call: Call) -> Sequence[Cuts]:
    more = call.results[0].dim() - call.args[0].dim()
    return [{dim + more: labels for dim, labels in call.first.items()}]


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


@_of(aten.slice)
def _slice(call: Call) -> Sequence[Cuts]:
    if call.dim() in call.first and call.results[0].shape != call.args[0].shape:
        raise Unprovable("a slice is taken along its cut")
    return [call.first]


@_of(aten.select)
def _select(call: Call) -> Sequence[Cuts]:
    gone = call.dim()
    if gone in call.first:
        raise Unprovable("one entry is taken along its cut")
    return [{dim - (dim > gone): labels for dim, labels in call.first.items()}]


@_of(aten.unbind)
def _unbind(call: Call) -> Sequence[Cuts]:
    return [*_select(call)] * len(call.results)


@_of(aten.split, aten.split_with_sizes, aten.chunk)
def _split(call: Call) -> Sequence[Cuts]:
    dim = call.dim(2)
    sizes = [part.shape[dim] for part in call.results]
    for label, outer in call.first.get(dim, {}).items():
        if outer != 1 or any(size % call.P for size in sizes):
            raise Unprovable(f"it is split into {sizes} along its cut, which P = {call.P} does not divide")
        call.divide(label, sizes)
    return [call.first] * len(sizes)


@_of(aten.cat)
def _cat(call: Call) -> Sequence[Cuts]:
    dims = call.results[0].dim()
    along = int(call.argument(1, "dim", 0)) % dims
    parts = [tensor for tensor in call.args[0] if tensor.dim() == dims]  # torch takes an empty vector as nothing
    if any(along in call.cuts_of(part) for part in parts):
        raise Unprovable("it is joined with others along its cut")
    return [
        {
            dim: _united(call, [call.cuts_of(part).get(dim, {}) for part in parts], "it is joined with what is not cut")
            for dim in range(dims)
        }
    ]


@_of(aten.stack)
def _stack(call: Call) -> Sequence[Cuts]:
    parts, dims = call.args[0], call.results[0].dim()
    new = int(call.argument(1, "dim", 0)) % dims
    return [
        {
            dim + (dim >= new): _united(
                call, [call.cuts_of(part).get(dim, {}) for part in parts], "it is stacked with what is not cut"
            )
            for dim in range(dims - 1)
        }
    ]


@_of(aten._softmax, aten._log_softmax, aten._safe_softmax)
def _softmax(call: Call) -> Sequence[Cuts]:
    if call.dim() in call.first:
        raise Unprovable("a softmax runs over its cut")
    return [call.first]


@_of(aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.any, aten.all)
def _reduction(call: Call) -> Sequence[Cuts]:
    count, given = call.args[0].dim(), call.argument(1, "dim")
    listed = range(count) if given is None else [given] if isinstance(given, int) else given or range(count)
    gone = {dim % count for dim in listed}
    if gone & call.first.keys():
        raise Unprovable(f"{call.func.overloadpacket} runs over its cut")
    kept = call.results[0].dim() == count
    return [{dim if kept else dim - sum(n < dim for n in gone): labels for dim, labels in call.first.items()}]


@_of(aten.native_layer_norm)
def _layer_norm(call: Call) -> Sequence[Cuts]:
    rest = call.args[0].dim() - len(call.args[1])
    if any(dim >= rest for dim in call.first):
        raise Unprovable("a layer norm runs over its cut")
    return [call.first] * 3


@_of(aten.mm, aten.bmm, aten.addmm, aten.baddbmm)
def _product(call: Call) -> Sequence[Cuts]:
    x, y = call.args[-2:]
    a, b, last = call.cuts_of(x), call.cuts_of(y), x.dim() - 1
    if last in a or last - 1 in b:
        raise Unprovable("a product sums over its cut")
    if len(call.args) == 3 and call.cuts_of(call.args[0]):
        raise Unprovable("a product is added to it")
    batch = (
        _united(call, [a.get(0, {}), b.get(0, {})], "a batch of products meets a value that is not cut")
        if last == 2
        else {}
    )
    return [{**({0: batch} if batch else {}), last - 1: a.get(last - 1, {}), last: b.get(last, {})}]


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
    if any(dim >= 2 for tensor in (q, k, v) for dim in call.cuts_of(tensor)):
        raise Unprovable("attention runs over its cut")
    found = {}
    for dim in (0, 1):
        held = [(mask.dim() - 4 + dim, mask) for mask in masks]
        wide = [call.cuts_of(mask).get(own, {}) for own, mask in held if own >= 0 and mask.shape[own] != 1]
        found[dim] = _united(
            call, [*(call.cuts_of(t).get(dim, {}) for t in (q, k, v)), *wide], "attention meets a value that is not cut"
        )
    # Besides the output, what the backward wants: of batch and heads in the same order, or without either.
    return [found if result.dim() >= 3 else NONE for result in call.results]


@_of(aten.native_dropout)
def _dropout(call: Call) -> Sequence[Cuts]:
    return [call.first, call.first]


_UNCUT: Sequence[Cuts] = [NONE]


@_of(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_empty, aten.new_zeros, aten.new_ones)
def _like(call: Call) -> Sequence[Cuts]:
    # Of the shape of a cut value, so cut as well, in a way that only a shape tells; new_* have a shape of their own.
    if "_like" in str(call.func):
        return [call.first]
    return _UNCUT
