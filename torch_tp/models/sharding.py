"""The first pass over a graph: how every value is sharded, and over what it is still to be summed.

Every dimension of every parameter is followed as if it were sharded, until the computation says that it cannot be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from torch_tp.internals import pytree
from torch_tp.models.cuts import NONE, Cuts, Place, label_of, split_label
from torch_tp.models.facts import NOTHING, Fact, Known
from torch_tp.models.graph import Graph, Node, Ref
from torch_tp.models.layouts import Layout, computes, layouts
from torch_tp.models.ledger import Ledger, Told
from torch_tp.models.operators import Operator, operator_of
from torch_tp.models.rules import Call, Operand, contracted

aten = torch.ops.aten
_UNIFORM = frozenset({aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full})


@dataclass
class Sharding(Told):
    """The facts of a graph's values, in order, and what operators said meanwhile.

    Attributes:
        known: what is known of the model's parameters and modules.
        index: the graph's number among those of one analysis.
        products: parameters that products multiply with -> paths of the modules that hold them and run then.
        attention: paths of attention modules that a layer can replace, and that were called.
    """

    graph: Graph
    ledger: Ledger
    known: Known
    index: int
    facts: list[Fact] = field(default_factory=list[Fact])
    products: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    attention: set[str] = field(default_factory=set[str])
    _written: set[int] = field(default_factory=set[int])
    _node: Node | None = None

    def run(self) -> None:
        """Go through the graph."""
        made = {number for node in self.graph.nodes for number in node.results}
        self.facts = [Fact()] * len(self.graph.values)
        for number, value in enumerate(self.graph.values):
            if number not in made:
                self.facts[number] = self._initial(number, value.parameter)
        for node in self.graph.nodes:
            self._node = node
            self._step(node)
        self._node = None
        for each in self.graph.exits:
            self._leaves(each.value, each.where)
        for name in self.graph.leaked:
            weight = self.known.own.get(name, name)
            self.lose([label_of(weight, d) for d in range(4)], f"{name} is used by other references than its modules'")
        for number, what in self.graph.hooked.items():
            self.lose(self.labels(number), f"its gradient is seen by {what}")

    def _initial(self, number: int, name: str) -> Fact:
        value = self.graph.values[number]
        if not value.floating:
            return Fact(given=value.given)
        if not name:
            return Fact(given=True, differentiable=not value.identity or value.requires_grad)
        if name in self.known.watched:
            weight = self.known.own.get(name, name)
            self.lose([label_of(weight, d) for d in (0, 1, 2, 3)], self.known.watched[name])
        cuts: Cuts = NONE if name in self.known.own else {d: {label_of(name, d): Place()} for d in range(value.dim)}
        differentiable = name not in self.known.buffers
        return Fact(cuts, sources=frozenset([name]), straight=differentiable, differentiable=differentiable)

    def _leaves(self, number: int, where: str) -> None:
        """A value can be seen from outside, and so must be the dense model's."""
        value = self.graph.values[number]
        if value.parameter in self.known.own:
            self._used_otherwise(value.parameter, f"it is seen from outside, in {where}")
        owner = self.graph.values[value.memory].parameter
        if owner in self.known.buffers and not self.terms(number):
            return  # what is written into a sharded buffer is in it
        self.lose(self.labels(number), f"it is seen from outside, in {where}")

    @cached_property
    def computed(self) -> Sequence[Node]:
        """The nodes that do more than lay elements out."""
        return [node for node in self.graph.nodes if computes(node)]

    @cached_property
    def layouts(self) -> Mapping[int, Layout]:
        """How each value that is only laid out is made of one that was computed."""
        return layouts(self.graph)

    # What is known of a value.

    def cuts(self, number: int) -> Cuts:
        """How a value is sharded, where that is not lost."""
        lost = self.ledger.lost
        found = self.facts[number].cuts
        return {d: kept for d, labels in found.items() if (kept := {k: v for k, v in labels.items() if k not in lost})}

    def terms(self, number: int) -> frozenset[str]:
        """The labels over which a value is still to be summed."""
        return frozenset(self.facts[number].terms - self.ledger.lost.keys())

    def labels(self, number: int) -> frozenset[str]:
        """All labels of a value."""
        return self.terms(number).union(*self.cuts(number).values())

    # What the ledger is told; the notes of rules.

    def lose(self, labels: Collection[str], why: str) -> None:
        """These cannot be sharded; the place is added to the reason."""
        node = self._node
        if node is not None and labels:
            path = self.graph.calls[node.call].path if node.call >= 0 else ""
            place = f"in {path}" if path else ""
            packet = str(getattr(node.operator, "overloadpacket", "")) if node.operator != "linear" else ""
            why = f"{why} ({', '.join(filter(None, (packet, place, node.line)))})"
        self.ledger.lose(labels, why)

    # Operations.

    def _step(self, node: Node) -> None:
        self._reread(node)
        if node.operator == "linear":
            self._linear(node)
        elif node.operator == "attention":
            self._attention(node)
        elif node.operator in ("enter", "leave"):
            self._edge(node)
        elif node.operator == "function":
            self._function(node)
        else:
            self._operation(node)

    def _reread(self, node: Node) -> None:
        """What was written into memory through one value has a gradient in all others of that memory."""
        for number in node.inputs:
            fact, memory = self.facts[number], self.graph.values[number].memory
            if memory in self._written and (fact.sources or not fact.differentiable):
                self.facts[number] = replace(fact, differentiable=True, given=True, sources=NOTHING, straight=False)

    def _edge(self, node: Node) -> None:
        """A module is called with a value, or returns one: inside and outside it is the same."""
        (before,), (after,) = node.inputs, node.results
        fact, path = self.facts[before], node.args[1]
        if path in self.known.watched and not self.graph.values[after].parameter:
            self.lose(self.labels(before), self.known.watched[path])
        name = self.graph.values[before].parameter
        if name in self.known.own and not self.graph.values[after].parameter:
            self._used_otherwise(name, "it is an argument, or a result, of a module")
        if node.operator == "leave":
            fact = replace(fact, terms=NOTHING)  # the module gives the sum
        self.facts[after] = fact

    def _used_otherwise(self, name: str, how: str) -> None:
        weight = self.known.own[name]
        self.lose([label_of(weight, 0), label_of(weight, 1)], how)

    def _linear(self, node: Node) -> None:
        """A linear for which a layer can stand: its weight takes up what is sharded in its input, and starts shards."""
        x, weight, *_ = node.inputs
        (y,) = node.results
        name = self.graph.values[weight].parameter
        last, cuts = self.graph.values[x].dim - 1, dict(self.cuts(x))
        taken = cuts.pop(last, {})
        if node.call < 0 or self.graph.calls[node.call].path != self.known.layers[name]:
            self._used_otherwise(name, f"its weight is used outside {self.known.layers[name] or 'the model'}")
        self.lose(self.terms(x), "a linear takes up a sum over the ranks that is still to come")
        if taken:
            contracted(self, taken, {label_of(name, 1): Place()}, "its blocks are not those of a linear's input")
            self.ledger.take_contracted()
        self.products.setdefault(name, set()).add(self.known.layers[name])
        self.ledger.started.add(label_of(name, 0))
        out: Cuts = {**cuts, self.graph.values[y].dim - 1: {label_of(name, 0): Place()}}
        self.facts[y] = Fact(out, given=True, differentiable=True)
        if (path := self.known.layers[name]) in self.known.watched:
            self.lose(self.labels(x) | self.labels(y), self.known.watched[path])
        self._crossed(y)

    def _attention(self, node: Node) -> None:
        """An attention module for which a layer can stand: it takes and gives whole values."""
        path = self.graph.calls[node.call].path
        for number in node.inputs:
            self.lose(self.labels(number), f"{path or 'the model'} takes it up whole")
        self.attention.add(path)
        for number in node.results:
            self.facts[number] = Fact(given=True, differentiable=True)

    def _function(self, node: Node) -> None:
        """An `autograd.Function` has run: its backward must leave shards what they are, and gets no partial sums."""
        name, given, made = node.args
        back = node.kwargs["back"]
        alike = back is not None and len(given) == len(made) == 1 and not self.terms(made[0].value)
        alike = alike and self.cuts(back.value) == self.cuts(made[0].value) == self.cuts(given[0].value)
        for ref in () if alike else (*given, *made):
            self.lose(self.labels(ref.value), f"{name} has a backward of its own")
        for number, inner in zip(node.results, made, strict=True):
            fact = self.facts[inner.value]
            floating = self.graph.values[number].floating
            self.facts[number] = Fact(fact.cuts, spread=fact.spread, given=True, differentiable=floating)

    def _operation(self, node: Node) -> None:
        if node.operator is aten._local_scalar_dense.default:
            self.lose(self.labels(node.inputs[0]), "control flow may depend on its values")
            return
        for number in node.inputs:
            if (name := self.graph.values[number].parameter) in self.known.own:
                self._used_otherwise(name, f"{node.name} uses its weight or bias too")
        dims = sum(self.graph.values[number].dim for number in node.inputs[:2])
        operator = operator_of(node.operator, dims, len(node.results))
        labels = NOTHING.union(*map(self.labels, node.inputs))
        found: Sequence[Cuts] = [NONE] * len(node.results)
        terms = NOTHING
        if operator is not None:
            self._starts(node, operator)
        if labels and node.results:
            if operator is None:
                self.lose(labels, f"nothing is known of {node.name}")
            else:
                found = operator.rule(self._call(node))
                terms = self._summed(node, operator)
        if getattr(node.operator, "overloadpacket", None) in _UNIFORM:
            found = [self._uniform(node.results[0])]
        for written in node.writes:
            if terms != self.terms(written):
                self.lose(terms | self.terms(written), f"{node.name} writes a sum over the ranks that is to come")
        self._keep(node, operator, found, terms)

    def _call(self, node: Node) -> Call:
        def operand(leaf: object) -> object:
            if not isinstance(leaf, Ref):
                return leaf
            value = self.graph.values[leaf.value]
            cuts, spread = self.cuts(leaf.value), self.facts[leaf.value].spread
            return Operand(leaf.value, value.shape, cuts, spread, value.entries)

        args, kwargs = pytree.tree_map(operand, (tuple(node.args), dict(node.kwargs)))
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Operand)]
        return Call(args, kwargs, operands, self.graph.shapes(node.results), self)

    def _starts(self, node: Node, operator: Operator) -> None:
        """The parameters that a product multiplies with, and those of their dimensions that it does not sum over."""
        for position, dim in operator.starts:
            number = node.inputs[position]
            for name in self.facts[number].sources:
                labels = self.cuts(number).get(dim % self.graph.values[number].dim, {})
                self.ledger.started.update(label for label in labels if split_label(label)[0] == name)
                self.products.setdefault(name, set()).update(self._holding(name, node.call))

    def _holding(self, name: str, call: int) -> list[str]:
        """The running modules that hold a parameter themselves."""
        holder = name.rpartition(".")[0]
        return [path for path in self.graph.path(call) if path == holder]

    def _uniform(self, number: int) -> Cuts:
        """The cuts of a value whose entries are all equal: code that makes it can make a rank's as well."""
        shape = self.graph.values[number].shape
        labels = {d: f"#{self.index}.{number}@{d}" for d, size in enumerate(shape) if size % self.ledger.P == 0}
        self.ledger.sizes |= {label: shape[d] for d, label in labels.items()}
        return {d: {label: Place()} for d, label in labels.items()}

    def _summed(self, node: Node, operator: Operator) -> frozenset[str]:
        """The labels over which the results are still to be summed."""
        given = [k for k, number in enumerate(node.inputs) if self.terms(number)]
        new = self.ledger.take_contracted()
        before = NOTHING.union(*(self.terms(node.inputs[k]) for k in given))
        if not new and not before:
            return NOTHING
        added = (
            node.inputs[operator.added] if operator.added is not None and operator.added < len(node.inputs) else None
        )
        if added is not None and not self.facts[added].straight:
            self.lose(new | before, "a value is added to a sum over the ranks that is still to come")
            return NOTHING
        floating = all(self.graph.values[number].floating for number in node.results)
        exact = node.kwargs.get("rounding_mode") is None and not self._narrows(node)
        if floating and not before:
            return new
        if floating and exact and not new and len(given) == 1 and given[0] in operator.linear:
            return before
        if floating and operator.jointly and not new and len({self.terms(node.inputs[k]) for k in given}) == 1:
            rest = [number for k, number in enumerate(node.inputs) if k not in given]
            scaled = all(self.facts[number].straight for number in rest)
            if len(node.inputs) > 1 and scaled:
                return before
        self.lose(before | new, f"a sum over the ranks is still to come where {node.name} needs it")
        return NOTHING

    def _narrows(self, node: Node) -> bool:
        """Whether a conversion rounds: a sum of what was rounded is not the rounded sum."""
        if getattr(node.operator, "overloadpacket", None) is not aten._to_copy:
            return False
        values = [self.graph.values[numbers[0]] for numbers in (node.inputs, node.results)]
        if not all(value.floating for value in values):
            return True
        before, after = (torch.finfo(value.dtype) for value in values)
        return after.eps > before.eps or after.max < before.max

    def _keep(self, node: Node, operator: Operator | None, found: Sequence[Cuts], terms: frozenset[str]) -> None:
        """Note the facts of the results."""
        facts = [self.facts[number] for number in node.inputs]
        gradient = [fact for fact in facts if fact.differentiable]
        flows = bool(gradient) and (operator is None or operator.gradient)
        chosen = operator is not None and operator.chooses and len(gradient) == 1
        given = any(fact.given for fact in facts)
        alone = flows and all(fact.sources for fact in gradient) and not node.writes and (chosen or not given)
        linear = (operator is not None and operator.linear == {0}) or chosen
        straight = alone and linear and all(fact.straight for fact in gradient)
        for position, number in enumerate(node.results):
            floating = self.graph.values[number].floating
            self.facts[number] = Fact(
                found[position] if position < len(found) else NONE,
                terms,
                NOTHING.union(*(fact.sources for fact in gradient)) if alone else NOTHING,
                straight,
                _spread(self.graph, self.facts, node, number),
                given,
                flows and floating,
            )
            if not alone:
                self._crossed(number)
        if flows:
            self._written |= {self.graph.values[number].memory for number in node.writes}

    def _crossed(self, number: int) -> None:
        """Of two dimensions of one value, at most one may be sharded."""
        dims = list(self.cuts(number).values())
        for k, labels in enumerate(dims):
            for others in dims[k + 1 :]:
                self.ledger.exclusive.add((next(iter(labels)), next(iter(others))))


def _spread(graph: Graph, facts: Sequence[Fact], node: Node, number: int) -> frozenset[int]:
    """Dimensions along which all entries of a result are equal."""
    packet = getattr(node.operator, "overloadpacket", None)
    if packet is aten.expand:
        x, y = graph.values[node.inputs[0]].shape, graph.values[number].shape
        more = len(y) - len(x)
        return frozenset(d for d in range(len(y)) if y[d] > 1 and (d < more or x[d - more] == 1))
    if packet in (aten.clone, aten._to_copy, aten.contiguous) and node.inputs:
        return facts[node.inputs[0]].spread
    return frozenset()
