"""The second pass over a graph, backwards: whose gradient is proper on every rank, and whose is a partial sum.

A gradient is proper where each rank has the right one of what it holds. The gradient of a value that is replicated, and
meets what is sharded, is partial: each rank has a term of it, and the gradient is the sum of these. A partial gradient
is summed where the value enters a module, by an all-reduce in the backward; what is proper and partial at once cannot
be summed, and the chains that make it so are given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch_tp.models.cuts import Cuts
from torch_tp.models.facts import NOTHING
from torch_tp.models.graph import Node
from torch_tp.models.operators import operator_of
from torch_tp.models.sharding import Sharding


@dataclass
class _Kind:
    """What is known of a value's gradient: proper contributions, those over chains, and those of what is added once."""

    proper: bool = False
    partial: set[str] = field(default_factory=set[str])
    once: set[str] = field(default_factory=set[str])

    def __ior__(self, other: _Kind) -> _Kind:
        self.proper |= other.proper
        self.partial |= other.partial
        self.once |= other.once
        return self

    @property
    def mixed(self) -> bool:
        return self.proper + bool(self.partial) + bool(self.once) > 1


@dataclass(frozen=True)
class Lost:
    """A chain that must be given up, by one of its roots, and why."""

    root: str
    why: str


@dataclass
class Gradients:
    """What happens at the edges of modules, for some chains.

    Attributes:
        copied: module -> names of replicated arguments whose gradients are summed, each with its chains.
        reduced: module -> positions of results that are partial sums, each with its chains.
        summed, once: parameters that are replicated and whose gradients are summed; that are added on one rank alone.
        lost: chains that cannot be.
    """

    copied: dict[str, dict[str, set[str]]] = field(default_factory=dict[str, dict[str, set[str]]])
    reduced: dict[str, dict[int, set[str]]] = field(default_factory=dict[str, dict[int, set[str]]])
    summed: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    once: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    lost: list[Lost] = field(default_factory=list[Lost])


def gradients_of(shardings: Sequence[Sharding], roots: Mapping[str, str]) -> Gradients:
    """What must be summed where, if some chains are sharded.

    Args:
        roots: the labels of these chains -> the root of each, by which the chain is known.
    """
    found = Gradients()
    ways: dict[tuple[str, object], list[tuple[str, frozenset[str]]]] = {}
    for sharding in shardings:
        _Pass(sharding, roots, found, ways).run()
    for (path, where), kinds in ways.items():
        chains = NOTHING.union(*(chains for kind, chains in kinds if kind in ("partial", "once")))
        if chains and len({kind for kind, _ in kinds}) > 1:
            what = path or "the model"
            found.lost += [Lost(root, f"{what} is called in different ways, by its {where}") for root in chains]
    return found


class _Pass:
    """One graph, backwards."""

    def __init__(
        self,
        sharding: Sharding,
        roots: Mapping[str, str],
        found: Gradients,
        ways: dict[tuple[str, object], list[tuple[str, frozenset[str]]]],
    ) -> None:
        self.sharding, self.roots, self.found, self.ways = sharding, roots, found, ways
        self.graph, self.facts = sharding.graph, sharding.facts
        self.kinds = [_Kind() for _ in self.graph.values]
        self.users: dict[int, list[Node]] = {}
        self.made: dict[int, int] = {}  # value -> the position of the node that made it
        self.written: dict[int, list[tuple[int, int]]] = {}  # memory -> position and call of each node that writes it
        for position, node in enumerate(self.graph.nodes):
            self.made |= dict.fromkeys(node.results, position)
            for number in node.inputs:
                self.users.setdefault(number, []).append(node)
            for number in node.writes:
                self.written.setdefault(self.graph.values[number].memory, []).append((position, node.call))
        self.memories: dict[int, _Kind] = {}
        self.line = ""

    def run(self) -> None:
        """Go through the graph."""
        for each in self.graph.exits:
            self.kinds[each.value].proper = True
        for position, node in reversed([*enumerate(self.graph.nodes)]):
            self.line = f" ({node.line})" if node.line else ""
            for number in node.results:
                if node.writes:
                    self.kinds[number] |= self.memories.get(self.graph.values[number].memory, _Kind())
                self._check(number)
            if node.operator == "enter":
                self._enter(node)
            elif node.operator == "leave":
                self._leave(node)
            elif node.operator == "linear":
                self._linear(node)
            elif node.operator in ("attention", "function"):
                self._opaque(node)
            else:
                self._operation(node)
            self._read(position, node)
        self.line = ""
        for number, value in enumerate(self.graph.values):
            if number not in self.made:
                kind, name = self.kinds[number], value.parameter
                where = f"{name} is used outside the module that holds it" if name else "an input of the model"
                sharded = any(True for _ in self._chains(number))
                if (kind.partial or kind.once) and self.facts[number].differentiable and not sharded:
                    self._lose(kind.partial | kind.once, f"the gradient of a value is a partial sum: {where}")

    # What is known of a value.

    def _chains(self, number: int) -> Iterator[str]:
        """The chains that a value is sharded by, or to be summed over."""
        fact = self.facts[number]
        yield from (self.roots[label] for label in fact.terms if label in self.roots)
        yield from _of(fact.cuts, self.roots)

    def _lose(self, chains: set[str] | frozenset[str], why: str) -> None:
        self.found.lost += [Lost(root, why) for root in sorted(chains)]

    def _check(self, number: int) -> None:
        kind = self.kinds[number]
        if not (kind.partial or kind.once):
            return
        if kind.mixed and self.facts[number].differentiable:
            self._lose(
                kind.partial | kind.once,
                f"a value that is not sharded, but has a gradient, meets its output, and is used otherwise{self.line}",
            )
            self.kinds[number] = _Kind(proper=True)
        elif number in self.graph.hooked:
            self._lose(kind.partial, f"its gradient is seen by {self.graph.hooked[number]}")

    def _read(self, position: int, node: Node) -> None:
        """Whoever wrote into a memory gets the gradient of what is read of it through a value that is older."""
        for number in node.inputs:
            memory, made = self.graph.values[number].memory, self.made.get(number, -1)
            if any(made < written < position for written, _ in self.written.get(memory, ())):
                self.memories.setdefault(memory, _Kind()).__ior__(self.kinds[number])

    # Nodes.

    def _enter(self, node: Node) -> None:
        """A value enters a module: a partial gradient can be summed here."""
        (before,), (after,) = node.inputs, node.results
        _, path, names = node.args
        name = ", ".join(names)
        kind, parameter = self.kinds[after], self.graph.values[after].parameter
        sharded = set(self._chains(after))
        if not self.facts[after].differentiable:
            return
        chains = kind.partial | kind.once
        if not parameter:
            way = "sharded" if sharded else "partial" if kind.partial else "proper" if kind.proper else ""
            if way:
                for each in names:
                    known = self.ways.setdefault((path, f"argument {each}"), [])
                    known.append((way, frozenset(sharded | kind.partial)))
        if chains and not sharded:
            if (reason := self._unfit(path, node, after, bool(parameter))) or (
                parameter and (reason := self._elsewhere(parameter, after, bool(kind.once)))
            ):
                self._lose(chains, reason)
            elif parameter:
                (self.found.once if kind.once else self.found.summed).setdefault(parameter, set()).update(chains)
            elif kind.once:
                self._lose(chains, "a value is added to a sum over the ranks that is still to come")
            else:
                for each in names:
                    self.found.copied.setdefault(path, {}).setdefault(each, set()).update(chains)
            self.kinds[before].proper = True
        else:
            if chains - sharded:
                what = parameter or f"the argument {name} of {path or 'the model'}"
                self._lose(chains - sharded, f"{what} is sharded, and meets what is sharded along another dimension")
            self.kinds[before] |= kind
        if parameter and not sharded:
            way = "partial" if kind.partial else "once" if kind.once else "proper" if kind.proper else ""
            if way:
                self.ways.setdefault((path, f"parameter {name}"), []).append((way, frozenset(chains)))

    def _unfit(self, path: str, node: Node, number: int, parameter: bool) -> str:
        """Why nothing can be changed at a module's edge, or an empty string."""
        what = path or "the model"
        call = node.call if parameter else self._entered(node)
        if self.graph.calls[call].replayed:
            return f"{what} has a backward of its own in it"
        if any(self._within(each, call) for _, each in self.written.get(self.graph.values[number].memory, ())):
            return f"{what} writes to what it is given"
        if path in self.sharding.known.watched and not parameter:
            return self.sharding.known.watched[path]
        return ""

    def _elsewhere(self, parameter: str, number: int, once: bool) -> str:
        """Why a parameter cannot be another one inside of its module, or an empty string."""
        if self.sharding.known.holders.get(parameter, 1) > 1:
            return f"{parameter} is held in several places"
        waiting = [number] if once else []
        while waiting:  # on all ranks but one it is zeros, which nothing but the sum may see
            each = waiting.pop()
            for node in self.users.get(each, ()):
                if any(self.facts[result].terms for result in node.results):
                    continue
                operator = operator_of(node.operator, 0, len(node.results))
                if operator is None or operator.linear != {0} or not operator.gradient:
                    return f"{parameter} is added to a sum over the ranks, and used otherwise"
                waiting += node.results
        return ""

    def _within(self, inner: int, outer: int) -> bool:
        while inner > outer:
            inner = self.graph.calls[inner].parent
        return inner == outer

    def _entered(self, node: Node) -> int:
        """The number of the call that an argument enters: the first one of that module that its caller makes next."""
        path = node.args[1]
        return next(n for n, call in enumerate(self.graph.calls) if n > node.call and call.path == path)

    def _leave(self, node: Node) -> None:
        """A value leaves a module: a partial sum is summed here."""
        (before,), (after,) = node.inputs, node.results
        _, path, positions = node.args
        terms = {self.roots[label] for label in self.facts[before].terms if label in self.roots}
        if terms and any(True for _ in _of(self.facts[before].cuts, self.roots)):
            self._lose(terms, f"{path or 'the model'} returns a value that is sharded and a partial sum")
        way = "sharded" if set(self._chains(before)) - terms else "partial" if terms else "replicated"
        for position in positions:
            self.ways.setdefault((path, f"result {position}"), []).append((way, frozenset(self._chains(before))))
        if terms:
            if self.graph.calls[node.call].replayed:
                self._lose(terms, f"{path or 'the model'} has a backward of its own in it")
            for position in positions:
                self.found.reduced.setdefault(path, {}).setdefault(position, set()).update(terms)
            self.kinds[before].proper = True
        else:
            self.kinds[before] |= self.kinds[after]

    def _linear(self, node: Node) -> None:
        """A linear: a layer sums its input's gradient itself, but takes its parameters' as they are."""
        x, *parameters = node.inputs
        (y,) = node.results
        weight = self.graph.values[parameters[0]].parameter
        out, last = self.facts[y].cuts, self.graph.values[y].dim - 1
        starts = any(label in self.roots for label in out.get(last, {}))
        taken = any(label in self.roots for label in self.facts[x].cuts.get(self.graph.values[x].dim - 1, {}))
        rest = {self.roots[label] for d, labels in out.items() if d != last for label in labels if label in self.roots}
        kind = _Kind(proper=True) if starts or taken else self.kinds[y]
        self.kinds[x] |= kind if not rest else _Kind(proper=True)
        for number in parameters:
            own = rest if not starts else set[str]()
            self.kinds[number] |= (
                _Kind(partial=set(own)) if own else _Kind(bool(starts or kind.proper), set(kind.partial))
            )
        if rest and (starts or taken):
            self._lose(rest, f"{weight} meets what is sharded along another dimension")

    def _opaque(self, node: Node) -> None:
        """An operation whose backward is not known, or an attention layer: partial gradients end here."""
        for number in node.results:
            self._lose(self.kinds[number].partial, f"a backward that is not known takes up its gradient{self.line}")
        for number in node.inputs:
            self.kinds[number].proper = True

    def _operation(self, node: Node) -> None:
        dims = sum(self.graph.values[number].dim for number in node.inputs[:2])
        operator = operator_of(node.operator, dims, len(node.results))
        if operator is not None and not operator.gradient:
            return
        into = {chain for number in node.results for chain in self._chains(number)}
        terms = {self.roots[t] for n in node.results for t in self.facts[n].terms if t in self.roots}
        kind = _Kind()
        for number in node.results:
            if self.facts[number].differentiable:
                kind |= self.kinds[number]
        for position, number in enumerate(node.inputs):
            if not self.facts[number].differentiable:
                continue
            own = set(self._chains(number))
            more = into - own
            adds = operator is not None and (operator.jointly or operator.added == position)
            if more & terms and adds:
                self.kinds[number] |= _Kind(once=more & terms, partial=(more - terms) | kind.partial)
            elif more:
                self.kinds[number] |= _Kind(partial=more | kind.partial)
            else:
                self.kinds[number] |= _Kind(kind.proper or bool(into), set(kind.partial), set(kind.once))


def _of(cuts: Cuts, roots: Mapping[str, str]) -> Iterator[str]:
    for labels in cuts.values():
        yield from (roots[label] for label in labels if label in roots)
