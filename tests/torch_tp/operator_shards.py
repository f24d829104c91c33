"""What a law of an operator is made of: a call on real tensors, labels on its operands, and the shards of each rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_tp.models.cuts import Cuts, Place
from torch_tp.models.ledger import Ledger
from torch_tp.models.operators import Operator
from torch_tp.models.rules import Call, Operand

KINDS = ("even", "loose", "copies", "merged", "uneven", "grouped", "part", "outer", "wide")


@dataclass(frozen=True)
class Rank:
    """What a rank's code can say of its shapes.

    Attributes:
        inputs, results: the shapes of its tensors.
        held: which entries of the dimensions of the first tensor it has, where that is sharded.
    """

    inputs: Sequence[Sequence[int]]
    results: Sequence[Sequence[int]]
    held: Mapping[int, Sequence[int]]

    def within(self, dim: int, entry: int) -> int:
        """How many of the entries before `entry` the rank has."""
        return sum(k < entry for k in self.held[dim]) if dim in self.held else entry


@dataclass(frozen=True)
class Sample:
    """One call of an operator.

    Attributes:
        func: an overload.
        args, kwargs: real tensors, and whatever else it takes.
        local: changes the arguments of a rank, tensors included, to what that rank's code says; may return an operator
            that stands in for this one.
        shapes: it has random results, or no kernel for a CPU, so that shapes alone are compared.
        still: positions among the tensors of those that torch gives no gradient.
        written: positions among the tensors of indices that the code itself writes down.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    local: Callable[[list[Any], Rank], Any] | None = None
    shapes: bool = False
    written: frozenset[int] = frozenset()
    still: frozenset[int] = frozenset()

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it takes, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def run(self, tensors: Sequence[Tensor], rank: Rank | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Call it with other tensors; returns its results, and the tensors as they are afterwards."""
        given = [x.to("meta") if self.shapes else x.clone() for x in tensors]
        args, kwargs = self._filled(given)
        listed = list(args)
        other = self.local(listed, rank) if rank is not None and self.local is not None else None
        out = pytree.tree_leaves((other or self.func)(*listed, **kwargs))
        return [each for each in out if isinstance(each, Tensor)], given

    def call(self, operands: Sequence[Operand], notes: Any, shapes: Sequence[tuple[int, ...]]) -> Call:
        """The call as a rule sees it."""
        args, kwargs = self._filled(operands)
        return Call(args, kwargs, operands, shapes, notes)

    def _filled(self, tensors: Sequence[Any]) -> Any:
        rest = iter(tensors)
        return pytree.tree_map(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs))


def put(ledger: Ledger, label: str, kind: str, size: int) -> Place:
    """Note a label of a dimension that lies in some manner; evenly where the size allows no other."""
    P, half = ledger.P, size // 2
    ledger.sizes[label] = size
    if kind == "loose" and size % P == 0:
        return Place(held=False)
    if kind == "outer" and size % (2 * P) == 0:
        ledger.sizes[label] = half
        return Place(outer=2)
    if kind == "wide" and size % (2 * P) == 0:
        ledger.sizes[label] = half
        ledger.blocks(label, Place(), half)
    elif kind == "part":
        ledger.sizes[label] = 2 * size
        ledger.sliced(label, Place(), 2 * size, size, 2 * size)
        return ledger.sliced(label, Place(), 2 * size, 0, size) or Place()
    elif kind == "copies" and size % (P // 2) == 0:
        ledger.blocks(label, Place(), P // 2)
    elif kind in ("merged", "uneven", "grouped") and size % 4 == 0 and (kind != "uneven" or size % 8 == 0):
        ledger.sliced(label, Place(), size, 0, half)
        for low, high in [(half, half + half // 2), (half + half // 2, size)] if kind == "uneven" else [(half, size)]:
            part = ledger.sliced(label, Place(), size, low, high)
            if part is not None and kind == "grouped" and half % (P // 2) == 0:
                ledger.blocks(label, part, P // 2)
    return Place()


@dataclass(frozen=True)
class Trial:
    """A call whose operands have labels, of which none was lost.

    Attributes:
        whole: the whole results.
        after: the whole operands after the call, which may have written to them.
        cuts: of the results, as the rule says.
        terms: the labels over which a sum has run.
    """

    sample: Sample
    operator: Operator
    ledger: Ledger
    operands: Sequence[Operand]
    whole: Sequence[Tensor]
    after: Sequence[Tensor]
    cuts: Sequence[Cuts]
    terms: frozenset[str]

    def held(self, cuts: Cuts, shape: Sequence[int], rank: int) -> dict[int, list[int]]:
        """Which entries of each sharded dimension a rank has; all labels of a dimension must say the same."""
        found: dict[int, list[int]] = {}
        for dim, labels in cuts.items():
            said = [self.ledger.entries(label, place, shape[dim], rank) for label, place in labels.items()]
            assert all(each == said[0] for each in said), f"labels that meet lie in different shards: {cuts}"
            found |= {dim: said[0]} if said else {}
        return found

    def shard(self, x: Tensor, cuts: Cuts, rank: int) -> Tensor:
        """A rank's part of a tensor."""
        for dim, entries in self.held(cuts, x.shape, rank).items():
            x = x.index_select(dim, torch.tensor(entries, dtype=torch.long))
        return x

    def joined(self, parts: Sequence[Tensor], cuts: Cuts, shape: Sequence[int]) -> Tensor:
        """The sum of all ranks' parts, each where it lies in the whole."""
        total = torch.zeros(torch.Size(shape), dtype=parts[0].dtype)
        for rank, part in enumerate(parts):
            place: list[Tensor] = [torch.arange(size) for size in shape]
            for dim, entries in self.held(cuts, shape, rank).items():
                place[dim] = torch.tensor(entries, dtype=torch.long)
            grid = torch.meshgrid(*place, indexing="ij") if place else ()
            total.index_put_(grid, part, accumulate=True) if place else total.add_(part)
        return total

    def local(self, rank: int) -> tuple[list[Tensor], Rank]:
        """A rank's operands, and its shapes."""
        parts = [self.shard(x, o.cuts, rank) for x, o in zip(self.sample.tensors, self.operands, strict=True)]
        results = []
        for y, cuts in zip(self.whole, self.cuts, strict=True):
            held = self.held(cuts, y.shape, rank)
            results.append([len(held.get(dim, range(size))) for dim, size in enumerate(y.shape)])
        first = self.operands[0]
        return parts, Rank([x.shape for x in parts], results, self.held(first.cuts, first.shape, rank))

    def says(self) -> str:
        """The trial in words."""
        given = [f"{list(x.shape)} {dict(x.cuts)}" for x in self.operands]
        rest = [leaf for leaf in pytree.tree_leaves((self.sample.args, self.sample.kwargs)) if not _tensor(leaf)]
        return f"{self.sample.func} of {given} and {rest} as {[dict(c) for c in self.cuts]}, P = {self.ledger.P}"


def _tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def trials(
    operator: Operator, sample: Sample, P: int, kinds: Sequence[str], seen: tuple[bool, bool]
) -> Iterator[Trial]:
    """All ways in which each operand has a label on one dimension, or none, such that no label is lost.

    Args:
        kinds: how the labels lie, by operand.
        seen: whether labels are seen as one block alone, or inside of outer parts, where they can be.
    """
    tensors = sample.tensors
    whole, after = sample.run(tensors)
    for dims in itertools.product(*([None, *(d for d, size in enumerate(x.shape) if size)] for x in tensors)):
        if all(dim is None for dim in dims):
            continue
        names = [f"{k}@{dim}" for k, dim in enumerate(dims) if dim is not None]
        flags = [frozenset(names) if each else frozenset[str]() for each in seen]
        ledger = Ledger(P, {}, alone=flags[0], inside=flags[1])
        operands = []
        for k, (x, dim) in enumerate(zip(tensors, dims, strict=True)):
            kind = kinds[k % len(kinds)]
            cuts = {} if dim is None else {dim: {f"{k}@{dim}": put(ledger, f"{k}@{dim}", kind, x.shape[dim])}}
            entries = tuple(x.flatten().tolist()) if k in sample.written else None
            operands.append(Operand(k, tuple(x.shape), cuts, entries=entries))
        cuts = operator.rule(sample.call(operands, ledger, [tuple(y.shape) for y in whole]))
        ledger.judge()
        crossed = any(sum(bool(labels) for labels in each.values()) > 1 for each in cuts)
        if not ledger.lost and not crossed:
            yield Trial(sample, operator, ledger, operands, whole, after, cuts, ledger.take_contracted())
