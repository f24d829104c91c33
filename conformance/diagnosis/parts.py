"""Known mistakes about layers of several parts: parts cut or joined as one, heads of other ranks, copies not summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from conformance.diagnosis import sentences as say
from spec.placements import Floats, Parts, bounds, local

Numbers = tuple[Floats | None, ...]


@dataclass(frozen=True)
class Layout:
    """How a tensor of a layer of several parts lies on the ranks.

    Attributes:
        held: the parts that ranks hold, or have joined, along the tensor's dimension.
        whole: the tensor without copies.
        own: of a gradient of what several ranks hold, each rank's own term.
    """

    held: Parts
    whole: Floats
    own: tuple[Floats, ...] = ()


def of_parts(layout: Layout, P: int, joined: bool) -> Iterator[tuple[str, Numbers]]:
    """(sentence, by rank what it predicts) for a tensor, the likeliest first; `joined` where every rank has all."""
    if joined:
        yield from _joined(layout, P)
        return
    if layout.own:
        yield from _unsummed(layout, P)
    yield from _cut(layout, P)


def _joined(layout: Layout, P: int) -> Iterator[tuple[str, Numbers]]:
    dim = layout.held.dim
    slices = [local(layout.held, layout.whole, P, r) for r in range(P)]
    yield say.JOINED_BY_RANK, (np.concatenate(slices, dim),) * P
    parts = np.split(layout.whole, np.cumsum(layout.held.sizes)[:-1], dim)
    for order in _orders(len(parts)):
        yield say.PARTS_PERMUTED, (np.concatenate([parts[i] for i in order], dim),) * P


def _cut(layout: Layout, P: int) -> Iterator[tuple[str, Numbers]]:
    held, whole = layout.held, layout.whole
    dim, size = held.dim % whole.ndim, whole.shape[held.dim]
    if size % P == 0:
        before = (slice(None),) * dim
        yield say.ONE_BLOCK, tuple(whole[(*before, bounds(size, P, r))] for r in range(P))
    ends = np.cumsum(held.sizes)
    parts = [np.take(whole, range(end - n, end), dim) for end, n in zip(ends, held.sizes, strict=True)]
    if max(held.copies) > 1:
        yield say.OTHER_COPY, tuple(_with_heads_of(held, whole, P, r, r % (P // max(held.copies))) for r in range(P))
        yield say.OTHER_COPY, tuple(_with_heads_of(held, whole, P, r, 0) for r in range(P))
    for order in _orders(len(parts)):
        shuffled = np.concatenate([parts[i] for i in order], dim)
        moved = Parts(held.dim, tuple(held.sizes[i] for i in order), tuple(held.copies[i] for i in order))
        yield say.PARTS_PERMUTED, tuple(local(moved, shuffled, P, r) for r in range(P))
        # The other way round: a master whose parts stand in another order is taken for one in this order.
        yield say.PARTS_PERMUTED, tuple(local(held, shuffled, P, r) for r in range(P))
    for number in range(len(parts)):
        for by in range(1, P):
            yield say.OTHER_PART, tuple(_with_part_of(held, whole, P, r, number, (r + by) % P) for r in range(P))
            others = [_with_part_of(held, whole, P, (r + by) % P, number, r) for r in range(P)]
            yield say.OTHER_PART, tuple(others)
    for width in range(1, min(held.sizes) + 1):
        yield say.HEADS_INTERLEAVED, _interleaved(held, whole, P, width)


def _with_heads_of(held: Parts, whole: Floats, P: int, r: int, head: int) -> Floats:
    """Rank r's own slices of what has no copies, and of the rest those of a certain number."""
    starts = np.cumsum([0, *held.sizes])
    own = zip(starts, held.sizes, held.copies, strict=False)
    numbers = [(start, bounds(size, P // c, head if c > 1 else r)) for start, size, c in own]
    return np.concatenate([np.take(whole, range(s + i.start, s + i.stop), held.dim) for s, i in numbers], held.dim)


def _with_part_of(held: Parts, whole: Floats, P: int, r: int, number: int, other: int) -> Floats:
    """Rank r's slices, but of one part another rank's."""
    mine, theirs = held.slices(P, r), held.slices(P, other)
    mine[number] = theirs[number]
    return np.concatenate([np.take(whole, range(s.start, s.stop), held.dim) for s in mine], held.dim)


def _interleaved(held: Parts, whole: Floats, P: int, width: int) -> Numbers:
    """The whole taken for groups of [slice of each part], the narrowest part having `width` in each group."""
    groups, rest = divmod(min(held.sizes), width)
    if rest or groups < 2 or any(size % groups for size in held.sizes):
        return (None,) * P
    each = [size // groups for size in held.sizes]
    starts = np.cumsum([0, *each])
    blocks = [range(group * sum(each), (group + 1) * sum(each)) for group in range(groups)]
    index = [n for part, width in enumerate(each) for block in blocks for n in block[starts[part] :][:width]]
    return tuple(local(held, np.take(whole, index, held.dim), P, r) for r in range(P))


def _unsummed(layout: Layout, P: int) -> Iterator[tuple[str, Numbers]]:
    """Of the rows that ranks hold alike, and of those that they do not, other sums than those of the holders."""
    held, own = layout.held, layout.own
    copies = max(held.copies)
    first = sum(size // P for size, c in zip(held.sizes, held.copies, strict=True) if c == 1)
    blocks = [range(r // copies * copies, r // copies * copies + copies) for r in range(P)]

    def given(queries: Sequence[Floats], shared: Sequence[Floats]) -> Numbers:
        return tuple(np.concatenate([q, s]) for q, s in zip(queries, shared, strict=True))

    queries, shared = [term[:first] for term in own], [term[first:] for term in own]
    summed = [np.sum([shared[s] for s in blocks[r]], axis=0) for r in range(P)]
    together = [np.sum([queries[s] for s in blocks[r]], axis=0) for r in range(P)]
    everywhere = [np.sum(shared, axis=0)] * P
    yield say.COPIES_NOT_SUMMED, given(queries, shared)
    yield say.COPIES_AVERAGED, given(queries, [total / copies for total in summed])
    if copies < P:
        yield say.COPIES_OF_ALL, given(queries, everywhere)
        other = [np.sum([shared[s] for s in range(r % (P // copies), P, P // copies)], axis=0) for r in range(P)]
        yield say.COPIES_OF_OTHERS, given(queries, other)
    yield say.QUERIES_SUMMED, given(together, summed)
    yield say.QUERIES_SUMMED, given([np.sum(queries, axis=0)] * P, everywhere)
    yield say.COPIES_OF_FIRST, given(queries, [shared[blocks[r][0]] for r in range(P)])
    yield say.COPIES_TWICE, given(queries, [copies * total for total in summed])
    keys = (shared[0].shape[0]) // 2
    for summed_part, kept in ((slice(None, keys), slice(keys, None)), (slice(keys, None), slice(None, keys))):
        mixed = []
        for r in range(P):
            value = shared[r].copy()
            value[summed_part] = summed[r][summed_part]
            mixed.append(value)
        name = "value" if kept.start else "key"
        yield say.COPIES_OF_ONE_PART.format(what=name), given(queries, mixed)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    own = tuple(range(count))
    yield from (order for order in permutations(own) if order != own)
