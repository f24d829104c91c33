"""The rules of operators that no line of dimensions can say: views, slices, indices, joins, and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch_tp.models.cuts import NONE, Cuts, moved, through_view
from torch_tp.models.rules import Call, Labels, Operand, contracted, repeated, spread, united

_MEETS = "its output meets a value that is not sharded"


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
        found[dim] = united(call.notes, [p for p in parts if p or shape[dim] != 1], _MEETS)
    return [found] * len(call.shapes)


def view(call: Call) -> Sequence[Cuts]:
    """The same elements in another shape."""
    x = call.first
    return [through_view(x.cuts, x.shape, call.shapes[0], call.notes, x.spread)]


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


def _within(call: Call, dim: int, start: int, stop: int, why: str) -> Cuts:
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
    return [_within(call, dim, start, start + shape[dim], "a slice is taken along its sharded dimension")]


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
        cuts.append(_within(call, dim, start, start + shape[dim], "its output is split along its sharded dimension"))
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


def reduction(position: int, name: str) -> Callable[[Call], Sequence[Cuts]]:
    """One number for all entries along some dimensions, or along all."""

    def rule(call: Call) -> Sequence[Cuts]:
        if len(call.operands) == 2:  # the larger, or smaller, of two values
            return pointwise(call)
        count, given = call.first.dim, call.argument(position, "dim")
        listed = range(count) if given is None else [given] if isinstance(given, int) else given or range(count)
        gone = {dim % count for dim in listed} if count else set[int]()
        rest = call.without(call.first.cuts, gone, f"{name} runs over its sharded dimension")
        kept = len(call.shapes[0]) == count
        return [{d if kept else d - sum(n < d for n in gone): rest[d] for d in rest}] * len(call.shapes)

    return rule


def norm(call: Call) -> Sequence[Cuts]:
    """A norm over the last dimensions, with a scale and an offset."""
    count = call.first.dim
    for x in call.operands[1:]:
        for labels in x.cuts.values():
            call.notes.lose(labels, "a norm runs over its sharded dimension")
    last = range(count - len(call.args[1]), count)
    return [call.without(call.first.cuts, last, "a norm runs over its sharded dimension")] * len(call.shapes)


def batch_norm(call: Call) -> Sequence[Cuts]:
    """A norm of each channel: channels are sharded with their scale, offset and statistics."""
    x, *others = call.operands
    rest = [dim for dim in x.cuts if dim != 1]
    call.without(x.cuts, rest, "a norm runs over its sharded dimension")
    labels = united(call.notes, [x.at(1), *(each.at(0) for each in others)], _MEETS)
    return [{1: labels} if len(shape) == x.dim else {0: labels} if len(shape) == 1 else NONE for shape in call.shapes]


def attention(call: Call) -> Sequence[Cuts]:
    """Scaled dot product attention, `[batch, heads, length, size]`; key and value may have fewer heads."""
    q, k, v = call.args[:3]
    masks = [m for m in (call.argument(3, "attn_mask"), call.argument(3, "attn_bias")) if isinstance(m, Operand)][:1]
    for x in (q, k, v):
        call.without(x.cuts, [2, 3], "attention runs over its sharded dimension")
    found: dict[int, Labels] = {}
    for dim in (0, 1):
        heads = q.shape[dim]
        parts = [q.at(dim)]
        for x in (k, v):
            fewer = x.shape[dim] != heads
            parts.append(repeated(call.notes, x.at(dim), x.shape[dim], heads) if fewer else x.at(dim))
        held = [(m.dim - 4 + dim, m) for m in masks]
        parts += [m.at(own) for own, m in held if own >= 0 and m.shape[own] != 1]
        found[dim] = united(call.notes, parts, "attention meets a value that is not sharded")
    # Besides the output, what the backward wants: of batch and heads in the same order, or without either.
    return [found if len(shape) >= 3 else NONE for shape in call.shapes]


def embedding(call: Call) -> Sequence[Cuts]:
    """Rows of a table."""
    rest = call.without(call.first.cuts, [0], "its rows are looked up")
    return [{len(call.shapes[0]) - 1: rest.get(1, {})}]


def index(call: Call) -> Sequence[Cuts]:
    """Entries chosen by tensors of indices."""
    x, indices = call.first, call.args[1]
    given = [dim for dim, each in enumerate(indices) if isinstance(each, Operand)]
    for each in (indices[dim] for dim in given):
        call.without(each.cuts, each.cuts, "it chooses entries of another value")
    run = _run_of(indices[given[0]], x.shape[given[0]]) if len(given) == 1 else None
    if run is not None:
        return [_within(call, given[0], *run, "entries are chosen along its sharded dimension")]
    rest = call.without(x.cuts, given, "entries are chosen along its sharded dimension")
    if given != list(range(given[0], given[0] + len(given))):
        return [call.without(rest, rest.keys(), "entries are chosen along dimensions that are not side by side")]
    more = len(call.shapes[0]) - x.dim
    return [{dim + more * (dim > given[0]): labels for dim, labels in rest.items()}]


def _run_of(chosen: Operand, size: int) -> tuple[int, int] | None:
    """The first of neighbouring entries and the one after the last, where an index in the code itself names them."""
    if chosen.entries is None or chosen.dim != 1 or not chosen.entries or isinstance(chosen.entries[0], bool):
        return None
    entries = [entry % size for entry in chosen.entries]
    return (entries[0], entries[-1] + 1) if entries == list(range(entries[0], entries[-1] + 1)) else None


def index_put(call: Call) -> Sequence[Cuts]:
    """Values written where tensors of indices say."""
    x, indices, values = call.first, call.args[1], call.args[2]
    given = [dim for dim, each in enumerate(indices) if isinstance(each, Operand)]
    rest = call.without(x.cuts, given, "entries are written along its sharded dimension")
    if given != list(range(given[0], given[0] + len(given))):
        call.without(values.cuts, values.cuts, "entries are written along dimensions that are not side by side")
        return [call.without(rest, rest.keys(), "entries are written along dimensions that are not side by side")]
    wide = max(indices[dim].dim for dim in given)
    full = x.dim - len(given) + wide
    found = dict[int, Labels]()
    for dim in range(x.dim):
        if dim in given:
            continue
        own = values.dim - full + (dim if dim < given[0] else dim - len(given) + wide)
        here = own >= 0 and not (values.shape[own] == 1 != x.shape[dim])
        found[dim] = united(call.notes, [rest.get(dim, {}), *([values.at(own)] if here else [])], _MEETS)
    chosen = range(values.dim - full + given[0], values.dim - full + given[0] + wide)
    call.without(values.cuts, [dim for dim in chosen if dim >= 0], "it is written along its sharded dimension")
    return [found]


def by_index(sources: int) -> Callable[[Call], Sequence[Cuts]]:
    """Entries read, or written, along one dimension by an index: all others are of one kind.

    Args:
        sources: 0 where the index is a vector, else the number of operands of the first one's dimensions.
    """

    def rule(call: Call) -> Sequence[Cuts]:
        dim = call.dimension()
        parts = [x for x in call.operands if x.dim == call.first.dim] if sources else [call.first]
        for x in call.operands:
            alone = x not in parts
            call.without(x.cuts, [d for d in x.cuts if alone or d == dim], "entries are chosen along its shards")
        found = {d: united(call.notes, [x.at(d) for x in parts], _MEETS) for d in range(call.first.dim) if d != dim}
        return [found]

    return rule


def pad(call: Call) -> Sequence[Cuts]:
    """Entries added at the ends of dimensions."""
    count, pads = call.first.dim, call.args[1]
    wide = [count - 1 - k // 2 for k, size in enumerate(pads) if size]
    return [call.without(call.first.cuts, wide, "its output is padded along its sharded dimension")]


def convolution(call: Call) -> Sequence[Cuts]:
    """Of channels: sharded channels in meet a kernel that is sharded likewise, and a sharded kernel gives channels."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    into, out = (0, 1) if transposed else (1, 0)
    call.without(x.cuts, range(2, x.dim), "a convolution runs over its sharded dimension")
    call.without(weight.cuts, range(2, weight.dim), "a convolution runs over its sharded dimension")
    channels = weight.at(out)
    if groups == 1:
        contracted(call.notes, x.at(1), weight.at(into), "a convolution sums over its sharded dimension")
    else:
        call.notes.lose(weight.at(into), "a convolution has groups of channels")
        channels = united(call.notes, [channels, x.at(1)], "a convolution by channels meets what is not sharded")
        if transposed or groups != x.shape[1] or weight.shape[0] != x.shape[1]:
            call.notes.lose(channels, "a convolution has groups of several channels")
            channels = {}
    if isinstance(bias, Operand):
        channels = united(call.notes, [channels, bias.at(0)], _MEETS)
    return [{0: x.at(0), 1: channels}]


def as_complex(call: Call) -> Sequence[Cuts]:
    """Pairs in the last dimension, as complex numbers."""
    last = call.first.dim - 1
    return [call.without(call.first.cuts, [last], "its pairs become complex numbers")]


def spatial(call: Call) -> Sequence[Cuts]:
    """What runs over all dimensions but batch and channels."""
    x = call.first
    free = x.dim - 2 if len(call.shapes[0]) == x.dim else 0
    rest = call.without(x.cuts, range(max(0, free), x.dim), "it runs over its sharded dimension")
    return [rest] * len(call.shapes)
