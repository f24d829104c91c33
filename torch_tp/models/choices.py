"""The rules of operators that read or write the entries that an index names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_tp.models.cuts import Cuts
from torch_tp.models.rules import Call, Labels, Operand, united
from torch_tp.models.specials import MEETS, within


def embedding(call: Call) -> Sequence[Cuts]:
    """Rows of a table."""
    _lose_indices(call, [x for x in call.operands if x is not call.first])
    rest = call.without(call.first.cuts, [0], "its rows are looked up")
    return [{len(call.shapes[0]) - 1: rest.get(1, {})}]


def _lose_indices(call: Call, indices: Sequence[Operand]) -> None:
    for each in indices:
        call.without(each.cuts, each.cuts, "it chooses entries of another value")


def index(call: Call) -> Sequence[Cuts]:
    """Entries chosen by tensors of indices, or by a mask."""
    x, indices, why = call.first, call.args[1], "entries are chosen along its sharded dimension"
    given = [dim for dim, each in enumerate(indices) if isinstance(each, Operand)]
    _lose_indices(call, [indices[dim] for dim in given])
    run = _run_of(indices[given[0]], x.shape[given[0]]) if len(given) == 1 else None
    if run is not None:
        return [within(call, given[0], *run, why)]
    more = len(call.shapes[0]) - x.dim
    if len(given) == 1 and more == 1 - indices[given[0]].dim:  # a mask of several dimensions, or a vector
        given = list(range(given[0], given[0] + indices[given[0]].dim))
    elif more != max(indices[dim].dim for dim in given) - len(given):
        return [call.without(x.cuts, x.cuts, "entries are chosen by masks and indices together")]
    rest = call.without(x.cuts, given, why)
    if not _neighbours(given):
        return [call.without(rest, rest.keys(), "entries are chosen along dimensions that are not side by side")]
    return [{dim + more * (dim > given[0]): labels for dim, labels in rest.items()}]


def _neighbours(dims: Sequence[int]) -> bool:
    return list(dims) == list(range(dims[0], dims[0] + len(dims)))


def _run_of(chosen: Operand, size: int) -> tuple[int, int] | None:
    """The first of neighbouring entries and the one after the last, where an index in the code itself names them."""
    if chosen.entries is None or chosen.dim != 1 or not chosen.entries or isinstance(chosen.entries[0], bool):
        return None
    entries = [entry % size for entry in chosen.entries]
    return (entries[0], entries[-1] + 1) if entries == list(range(entries[0], entries[-1] + 1)) else None


def index_put(call: Call) -> Sequence[Cuts]:
    """Values written where tensors of indices, or a mask, say."""
    x, indices, values = call.first, call.args[1], call.args[2]
    given = [dim for dim, each in enumerate(indices) if isinstance(each, Operand)]
    _lose_indices(call, [indices[dim] for dim in given])
    wide, apart = max(indices[dim].dim for dim in given), not _neighbours(given)
    if any(_masklike(x, dim, indices[dim]) for dim in given):
        apart = apart or len(given) > 1
        given, wide = list(range(given[0], given[0] + wide)), 1
    if apart:
        call.without(values.cuts, values.cuts, "entries are written along dimensions that are not side by side")
        return [call.without(x.cuts, x.cuts, "entries are written along dimensions that are not side by side")]
    rest = call.without(x.cuts, given, "entries are written along its sharded dimension")
    ahead = {dim: dim - given[0] - wide - (x.dim - given[-1] - 1) for dim in range(given[0])}
    behind = {dim: dim - x.dim for dim in range(given[-1] + 1, x.dim)}
    found, left = dict[int, Labels](), dict(values.cuts)
    for dim, end in {**ahead, **behind}.items():  # of the values' dimensions, counted from the back
        own = values.dim + end
        if own >= 0 and values.shape[own] == x.shape[dim]:
            found[dim] = united(call.notes, [rest.get(dim, {}), left.pop(own, {})], MEETS)
        else:
            found[dim] = rest.get(dim, {})
    call.without(left, left.keys(), "it is written along its sharded dimension")
    return [found]


def _masklike(x: Operand, first: int, index: Operand) -> bool:
    """Whether an index could be a mask of several dimensions: then it has their shape."""
    return index.dim > 1 and index.shape == x.shape[first : first + index.dim]


def by_index(sources: int) -> Callable[[Call], Sequence[Cuts]]:
    """Entries read, or written, along one dimension by an index: all others are of one kind.

    Args:
        sources: 0 where the index is a vector, else the number of operands of the first one's dimensions.
    """

    def rule(call: Call) -> Sequence[Cuts]:
        dim, first = call.dimension(), call.first
        parts = [x for x in call.operands if x.dim == first.dim] if sources else [first]
        for x in call.operands:
            alone = all(x is not part for part in parts)
            call.without(x.cuts, [d for d in x.cuts if alone or d == dim], "entries are chosen along its shards")
        found = dict[int, Labels]()
        for d in range(first.dim):
            labels = [x.at(d) for x in parts]
            if d != dim and len({x.shape[d] for x in parts}) > 1:
                labels.append({})  # some entries alone: a rank would have others
            if d != dim:
                found[d] = united(call.notes, labels, MEETS)
        return [found]

    return rule


def looked_up(call: Call) -> Sequence[Cuts]:
    """Each entry by itself, by what all ranks have."""
    _lose_indices(call, [x for x in call.operands if x is not call.first])
    return [call.first.cuts]
