"""The rules of operators that no line of dimensions can say: views, slices, joins, and what runs along a dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch_tp.models.cuts import NONE, Cuts, moved, through_view
from torch_tp.models.rules import Call, Labels, Operand, spread, united

MEETS = "its output meets a value that is not sharded"


def same(call: Call) -> Sequence[Cuts]:
    """Results that lie as the first argument does."""
    return [call.first.cuts] * len(call.shapes)


def fresh(call: Call) -> Sequence[Cuts]:
    """Results of a shape of their own."""
    return [NONE] * len(call.shapes)


def pointwise(call: Call) -> Sequence[Cuts]:
    """One result, of the arguments' common shape; dimensions of one entry are repeated."""
    shape, found = call.shapes[0], dict[int, Labels]()
    for dim in range(len(shape)):
        parts = []
        for x in call.operands:
            own = dim - (len(shape) - x.dim)
            if own < 0 or (x.shape[own] == 1 and not x.at(own) and shape[dim] != 1):
                continue
            labels = x.at(own)
            parts.append(spread(call.notes, labels, shape[dim]) if labels and x.shape[own] != shape[dim] else labels)
        found[dim] = united(call.notes, [p for p in parts if p or shape[dim] != 1], MEETS)
    return [found] * len(call.shapes)


def view(call: Call) -> Sequence[Cuts]:
    """The same elements in another shape."""
    x = call.first
    return [through_view(x.cuts, x.shape, call.shapes[0], call.notes, x.spread)]


def squeeze(call: Call) -> Sequence[Cuts]:
    """Dimensions of one entry left out: a rank that has one entry of more would leave out that dimension, too."""
    x, given = call.first, call.argument(1, "dim")
    listed = range(x.dim) if given is None else [given] if isinstance(given, int) else given
    wider = {dim % max(1, x.dim) for dim in listed if x.dim and x.shape[dim] != 1}
    rest = call.without(x.cuts, wider, "its sharded dimension would be left out where a rank has one entry of it")
    return [through_view(rest, x.shape, call.shapes[0], call.notes, x.spread)]


def expand(call: Call) -> Sequence[Cuts]:
    """Dimensions of one entry, repeated."""
    x, shape = call.first, call.shapes[0]
    more = len(shape) - x.dim
    return [
        {
            dim + more: labels if x.shape[dim] == shape[dim + more] else spread(call.notes, labels, shape[dim + more])
            for dim, labels in x.cuts.items()
        }
    ]


def repeat(call: Call) -> Sequence[Cuts]:
    """Every dimension repeated as a whole so often."""
    x, shape = call.first, call.shapes[0]
    more = len(shape) - x.dim
    found = dict[int, Labels]()
    for dim, labels in x.cuts.items():
        if x.shape[dim] == shape[dim + more]:
            found[dim + more] = labels
        elif x.shape[dim] == 1:
            found[dim + more] = spread(call.notes, labels, shape[dim + more])
        else:
            call.notes.lose(labels, "it is repeated along its sharded dimension")
    return [found]


def transpose(call: Call) -> Sequence[Cuts]:
    """Two dimensions exchanged."""
    a, b = call.dimension(1, "dim0"), call.dimension(2, "dim1")
    return [moved(call.first.cuts, {dim: dim for dim in call.first.cuts} | {a: b, b: a})]


def t(call: Call) -> Sequence[Cuts]:
    """The two dimensions of a matrix exchanged."""
    return [moved(call.first.cuts, {0: 1, 1: 0} if call.first.dim == 2 else {0: 0})]


def permute(call: Call) -> Sequence[Cuts]:
    """Dimensions in another order."""
    count = call.first.dim
    return [moved(call.first.cuts, {old % count: new for new, old in enumerate(call.args[1])})]


def unsqueeze(call: Call) -> Sequence[Cuts]:
    """One more dimension, of one entry."""
    new = call.dimension(extra=1)
    return [{dim + (dim >= new): labels for dim, labels in call.first.cuts.items()}]


def within(call: Call, dim: int, start: int, stop: int, why: str) -> Cuts:
    """The cuts of a slice along a dimension."""
    x, kept = call.first, dict[str, Any]()
    for label, place in x.at(dim).items():
        found = call.notes.sliced(label, place, x.shape[dim], start, stop)
        if found is None:
            call.notes.lose([label], why)
        else:
            kept[label] = found
    return {**x.cuts, dim: kept}


def _strided(call: Call, dim: int, start: int, step: int) -> Cuts:
    """Of every rank's entries the same ones are taken, if its shard has a whole number of steps."""
    size, taken = call.first.shape[dim], call.shapes[0][dim]
    if start >= step or size % step or taken != size // step:
        return call.without(call.first.cuts, [dim], "a slice with a step is taken along its sharded dimension")
    for label, place in call.first.at(dim).items():
        call.notes.blocks(label, place, taken // place.outer)
    return call.first.cuts


def slice_(call: Call) -> Sequence[Cuts]:
    """Neighbouring entries, or every n-th."""
    dim, x, shape = call.dimension(), call.first, call.shapes[0]
    if not x.at(dim) or shape == x.shape:
        return [x.cuts]
    start, step = call.argument(2, "start") or 0, call.argument(4, "step", 1)
    start = max(0, start + x.shape[dim] if start < 0 else start)
    if step != 1:
        return [_strided(call, dim, start, step)]
    return [within(call, dim, start, start + shape[dim], "a slice is taken along its sharded dimension")]


def select(call: Call) -> Sequence[Cuts]:
    """One entry, without its dimension: a part by itself where the dimension is one of parts, else it is lost."""
    gone = call.dimension()
    rest = call.without(call.first.cuts, [gone], "one entry is taken along its sharded dimension")
    return [{dim - (dim > gone): labels for dim, labels in rest.items()}] * len(call.shapes)


def split(call: Call) -> Sequence[Cuts]:
    """Neighbouring entries in several results."""
    dim = call.dimension(2)
    if not call.first.at(dim):
        return [call.first.cuts] * len(call.shapes)
    cuts, start = [], 0
    for shape in call.shapes:
        cuts.append(within(call, dim, start, start + shape[dim], "its output is split along its sharded dimension"))
        start += shape[dim]
    return cuts


def cat(call: Call) -> Sequence[Cuts]:
    """Several values one behind the other."""
    dims = len(call.shapes[0])
    along = int(call.argument(1, "dim", 0)) % dims
    parts: list[Operand] = [x for x in call.args[0] if x.dim == dims]  # torch takes an empty vector as nothing
    for x in parts:
        call.notes.lose(x.at(along), "its output is joined with others along its sharded dimension")
    why = "its output is joined with what is not sharded"
    return [{d: united(call.notes, [x.at(d) for x in parts], why) for d in range(dims) if d != along}]


def stack(call: Call) -> Sequence[Cuts]:
    """Several values, side by side in a dimension of their own."""
    parts, dims = call.args[0], len(call.shapes[0])
    new = int(call.argument(1, "dim", 0)) % dims
    why = "its output is stacked with what is not sharded"
    return [{d + (d >= new): united(call.notes, [x.at(d) for x in parts], why) for d in range(dims - 1)}]


def along(position: int, name: str, why: str, default: Any = 0) -> Callable[[Call], Sequence[Cuts]]:
    """Results that lie as the first argument does, of an operator that runs along the dimensions in an argument.

    No dimensions are all of them.
    """

    def rule(call: Call) -> Sequence[Cuts]:
        given = call.argument(position, name, default)
        listed = [given] if isinstance(given, int) else given or range(call.first.dim)
        dims = {dim % max(1, call.first.dim) for dim in listed}
        return [call.without(call.first.cuts, dims, why)] * len(call.shapes)

    return rule


def reduction(position: int, name: str, default: Any = None) -> Callable[[Call], Sequence[Cuts]]:
    """One number for all entries along some dimensions, or along all."""

    def rule(call: Call) -> Sequence[Cuts]:
        if len(call.operands) == 2:  # the larger, or smaller, of two values
            return pointwise(call)
        count, given = call.first.dim, call.argument(position, "dim", default)
        listed = range(count) if given is None else [given] if isinstance(given, int) else given or range(count)
        gone = {dim % count for dim in listed} if count else set[int]()
        rest = call.without(call.first.cuts, gone, f"{name} runs over its sharded dimension")
        kept = len(call.shapes[0]) == count
        return [{d if kept else d - sum(n < d for n in gone): rest[d] for d in rest}] * len(call.shapes)

    return rule


def pad(call: Call) -> Sequence[Cuts]:
    """Entries added at the ends of dimensions."""
    count, pads = call.first.dim, call.args[1]
    wide = [count - 1 - k // 2 for k, size in enumerate(pads) if size]
    return [call.without(call.first.cuts, wide, "its output is padded along its sharded dimension")]


def as_complex(call: Call) -> Sequence[Cuts]:
    """Pairs in the last dimension, as complex numbers."""
    last = call.first.dim - 1
    return [call.without(call.first.cuts, [last], "its pairs become complex numbers")]


def cross(call: Call) -> Sequence[Cuts]:
    """Pairs of vectors along one dimension; in all others as pointwise."""
    dim = call.dimension(2, default=-1) - call.first.dim
    for x in call.operands:
        call.notes.lose(x.at(x.dim + dim), "vectors lie along its sharded dimension")
    return [call.without(found, [len(call.shapes[0]) + dim], "") for found in pointwise(call)]


def unfold(call: Call) -> Sequence[Cuts]:
    """Overlapping windows along one dimension, in a new last one."""
    return [call.without(call.first.cuts, [call.dimension()], "windows are taken along its sharded dimension")]


def diagonal(call: Call) -> Sequence[Cuts]:
    """The diagonal of two dimensions, in a new last one."""
    gone = {call.dimension(2, "dim1", 0), call.dimension(3, "dim2", 1)}
    rest = call.without(call.first.cuts, gone, "its diagonal is taken along its sharded dimension")
    return [{d - sum(n < d for n in gone): labels for d, labels in rest.items()}]
