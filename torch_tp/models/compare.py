"""Two graphs side by side: the dense model's, and one with the shapes of a rank, which must do the same.

Everything is compared that computes: the operators, all their arguments, and which result goes into which. What only
lays elements out may be missing on one side, where it changes nothing: code leaves out a repetition by one, and torch
leaves out a copy that is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_tp.internals import pytree, without_modes
from torch_tp.models.failures import Parted
from torch_tp.models.graph import Graph, Node, Ref
from torch_tp.models.layouts import Layout, computes, layout_of
from torch_tp.models.recorder import Recorder
from torch_tp.models.sharding import Sharding

aten = torch.ops.aten

# Operators whose sizes show in the shape of what they make -> how many of their arguments may be or have such.
_SIZED: Mapping[Any, int] = {
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn), 1),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), 2),
}


@dataclass
class Comparison:
    """A run with the shapes of a rank, compared node by node with the dense model's graph while it is recorded.

    Args:
        sharding: of the dense graph.
        labels: those that are sharded in the run.

    Attributes:
        done: how many operations were the same.
        path: the modules that ran where the two part.
    """

    sharding: Sharding
    labels: frozenset[str]
    done: int = 0
    path: tuple[str, ...] = ()
    _same: dict[int, int] = field(default_factory=dict[int, int])  # value of the run -> value of the dense graph
    _run: dict[int, Layout] = field(default_factory=dict[int, Layout])
    _seen: dict[tuple[object, ...], bool] = field(default_factory=dict[tuple[object, ...], bool])

    def __post_init__(self) -> None:
        self._expected, self._dense = self.sharding.computed, self.sharding.layouts

    def see(self, node: Node, recorder: Recorder) -> None:
        """Compare one more node; raises `Parted`."""
        graph = recorder.live
        if not computes(node):
            self._run.update(layout_of(graph, node, self._run))
            return
        try:
            self._compare(graph, node)
        except Parted:
            self.path = graph.path(node.call)
            raise
        self.done += 1

    def end(self, graph: Graph) -> str:
        """Why the run ended otherwise than the dense one, or an empty string."""
        if self.done < len(self._expected):
            return "with the shapes of one rank the model makes fewer operations"
        mine, theirs = set(graph.plain), set(self.sharding.graph.plain)
        return f"with the shapes of one rank others see {sorted(mine ^ theirs)[0]}" if mine != theirs else ""

    def _compare(self, graph: Graph, node: Node) -> None:
        if self.done == len(self._expected):
            raise Parted("with the shapes of one rank the model makes more operations")
        dense = self._expected[self.done]
        what = f"with the shapes of one rank {node.name} ({_where(graph, node)})"
        shapes = tuple(map(self._local, dense.results))
        if (node.name, graph.shapes(node.results)) != (dense.name, shapes):
            raise Parted(
                f"{what} gives {_shown(graph.shapes(node.results))}, where {dense.name} should give {_shown(shapes)}"
            )
        mine, theirs = self._arguments(graph, node), self._arguments(self.sharding.graph, dense)
        if mine != theirs:
            raise Parted(f"{what} computes with other numbers: {_differ(mine, theirs)}")
        constant = getattr(node.operator, "overloadpacket", None) is aten.lift_fresh  # whose entries were compared
        for number, other in () if constant else zip(node.inputs, dense.inputs, strict=True):
            self._wired(graph, number, other, what)
        for number, other in zip(node.results, dense.results, strict=True):
            self._same[number] = other

    def _wired(self, graph: Graph, number: int, other: int, what: str) -> None:
        """The same value must go into both, laid out alike."""
        mine = self._run.get(number, Layout(number, ()))
        theirs = self._dense.get(other, Layout(other, ()))
        origins = graph.values[mine.origin], self.sharding.graph.values[theirs.origin]
        if mine.origin in self._same:
            alike = self._same[mine.origin] == theirs.origin
        else:  # both were there before the runs
            alike = (mine.origin, origins[0].identity) == (theirs.origin, origins[1].identity)
            alike = alike or (origins[0].identity == origins[1].identity != 0)
            alike = alike or (origins[0].shape == origins[1].shape and 0 in origins[0].shape)
        if not alike:
            raise Parted(f"{what} takes another value")
        if mine.steps != theirs.steps and not self._alike(mine, theirs, other):
            raise Parted(f"{what} takes a value that is laid out otherwise")

    def _alike(self, mine: Layout, theirs: Layout, other: int) -> bool:
        """Whether both lay their value out alike, seen with numbers: of a shard as the shard of the whole."""
        shape, cuts = self._shape(theirs.origin), (self._held(theirs.origin), self._held(other))
        key = (*map(str, mine.steps), "for", *map(str, theirs.steps), shape, str(cuts))
        if key not in self._seen:
            with without_modes():  # the run that is compared goes on
                whole = torch.arange(torch.Size(shape).numel()).view(shape)
                laid_out = theirs.apply(whole)
                self._seen[key] = all(
                    torch.equal(mine.apply(self._shard(whole, theirs.origin, rank)), self._shard(laid_out, other, rank))
                    for rank in range(self.sharding.ledger.P)
                )
        return self._seen[key]

    def _held(self, number: int) -> list[tuple[int, object, object]]:
        """How a value is sharded in the run, without the names of parameters."""
        ledger = self.sharding.ledger
        return [
            (dim, place, ledger.layout(label, place))
            for dim, labels in self.sharding.facts[number].cuts.items()
            for label, place in labels.items()
            if label in self.labels
        ]

    def _shape(self, number: int) -> tuple[int, ...]:
        return self.sharding.graph.values[number].shape

    def _shard(self, whole: torch.Tensor, number: int, rank: int) -> torch.Tensor:
        for dim, labels in self.sharding.facts[number].cuts.items():
            for label, place in labels.items():
                if label in self.labels:
                    chosen = self.sharding.ledger.entries(label, place, whole.shape[dim], rank)
                    whole = whole.index_select(dim, torch.tensor(chosen, dtype=torch.long))
                    break
        return whole

    def _local(self, number: int) -> tuple[int, ...]:
        shape = self._shape(number)
        return tuple(self.size(number, dim, size) for dim, size in enumerate(shape))

    def size(self, number: int, dim: int, size: int) -> int:
        """The size on a rank of a dimension of a value."""
        for label, place in self.sharding.facts[number].cuts.get(dim, {}).items():
            if label in self.labels:
                return int(size * self.sharding.ledger.share(label, place))
        return size

    def _arguments(self, graph: Graph, node: Node) -> list[str]:
        """All numbers and words that an operation is given, but for sizes that show in its result."""
        packet = getattr(node.operator, "overloadpacket", None)
        values = node.args[_SIZED.get(packet, 0) :]
        if packet is aten.convolution:
            values = node.args[:8]  # groups show in the shapes of kernel and result
        if packet is aten.lift_fresh:
            entries = graph.values[node.results[0]].entries
            return [str(entries)] if entries is not None else []
        leaves = pytree.tree_leaves((values, dict(node.kwargs)))
        return [repr(leaf) for leaf in leaves if not isinstance(leaf, Ref)]


def _where(graph: Graph, node: Node) -> str:
    path = graph.calls[node.call].path if node.call >= 0 else ""
    return f"in {path or 'the model'}, {node.line}"


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _differ(mine: Sequence[str], theirs: Sequence[str]) -> str:
    return f"{', '.join(mine)} for {', '.join(theirs)}"
