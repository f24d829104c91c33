"""One run of a model on tensors without data, operation by operation.

Every dimension of every parameter is followed as if it were cut, until the computation says that it cannot be. Linears
that a parallel layer can stand for are seen as one operation each; all other parameters are seen where torch's own
operations take them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torch_tp.models.cuts import NONE, Cuts, Place, label_of, split_label
from torch_tp.models.ledger import Ledger
from torch_tp.models.operations import backward_of, memory_of, numbers_of, tensors_in, written
from torch_tp.models.rules import (
    ADDS,
    DIVIDES,
    LINEAR,
    MULTIPLIES,
    Call,
    contracted,
    product_cuts,
    propagate,
)

aten = torch.ops.aten
_NO_GRADIENT = frozenset(
    {aten.detach, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.bernoulli_}
)


_CHOOSES = frozenset({aten.embedding, aten.index, aten.index_select})
_UNIFORM = frozenset({aten.zeros, aten.ones, aten.full})


@dataclass(frozen=True)
class Step:
    """One operation of a run: what it is, where, the shapes and cuts of its results, and what numbers it is given."""

    operation: str
    path: str
    shapes: tuple[tuple[int, ...], ...]
    cuts: tuple[Cuts, ...]
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    """A tensor that goes into a module or comes out of it.

    Attributes:
        where: position among the positional arguments, name of a keyword argument, or index among the results.
        cut, terms: labels along which it is cut, and those over which it is still to be summed.
        differentiable: whether a gradient may flow.
    """

    where: int | str
    cut: frozenset[str]
    terms: frozenset[str]
    differentiable: bool


@dataclass(frozen=True)
class Use:
    """One use of a parameter, alone or with values that are not parameters' alone.

    Attributes:
        met: labels over which its gradient must be summed.
        once: labels of the sum that it must enter once.
        within: the modules that run.
        held: one of these holds the parameter.
    """

    met: frozenset[str]
    once: frozenset[str]
    within: frozenset[str]
    held: bool


@dataclass
class Run:
    """What is known of one run while it lasts, and what is left of it.

    Attributes:
        layers: weights of linears that a layer can stand for -> the path of the linear.
        ledger: what it says of labels.
        check: told of every step.
        steps: its operations.
        path: the modules that run, the innermost last.
        inputs, outputs: of each module, of each of its calls.
        uses: parameter -> where it, or what is made of it alone, meets other values.
        regions: module -> labels for which its inputs' gradients are sums.
        strangers: modules that take in more than they are given.
        whole_attention: paths of attention modules that a layer can stand for, which were called.
        writers: modules that write to what they are given.
        opaque: modules that run with a backward of their own in them.
        passed: parameters of which modules are given values that are made of them alone.
        products: parameters that products multiply with -> the paths of the modules that hold them and do so.
    """

    model: nn.Module
    names: Mapping[int, str]
    layers: Mapping[str, str]
    ledger: Ledger
    follow: bool = True
    check: Callable[[Step], None] = lambda step: None
    steps: list[Step] = field(default_factory=list["Step"])
    path: list[str] = field(default_factory=list[str])
    inputs: dict[str, list[tuple[Edge, ...]]] = field(default_factory=dict[str, list[tuple[Edge, ...]]])
    outputs: dict[str, list[tuple[Edge, ...]]] = field(default_factory=dict[str, list[tuple[Edge, ...]]])
    uses: dict[str, list[Use]] = field(default_factory=dict[str, list["Use"]])
    regions: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    whole_attention: set[str] = field(default_factory=set[str])
    strangers: set[str] = field(default_factory=set[str])
    writers: set[str] = field(default_factory=set[str])
    opaque: set[str] = field(default_factory=set[str])
    passed: set[str] = field(default_factory=set[str])
    products: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _frames: list[tuple[str, int, Mapping[int, int]]] = field(default_factory=list[tuple[str, int, Mapping[int, int]]])
    _writes: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    _born: dict[int, int] = field(default_factory=dict[int, int])
    _cuts: dict[int, Cuts] = field(default_factory=dict[int, Cuts])
    _terms: dict[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])
    _sources: dict[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])
    _differentiable: set[int] = field(default_factory=set[int])
    _straight: set[int] = field(default_factory=set[int])
    _given: set[int] = field(default_factory=set[int])
    _doing: str = ""
    _spread: dict[int, frozenset[int]] = field(default_factory=dict[int, frozenset[int]])
    _alive: list[Any] = field(default_factory=list[Any])
    _within: bool = False

    def __post_init__(self) -> None:
        self._at = dict(self.model.named_modules())
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._of_layers = {
            names[id(parameter)]: weight
            for weight, path in self.layers.items()
            for parameter in self._at[path]._parameters.values()
            if parameter is not None
        }

    # What is known of a tensor.

    def cuts_of(self, tensor: Tensor) -> Cuts:
        """How a value of this run is cut, where that is not lost."""
        if id(tensor) not in self._cuts:
            return NONE
        lost, cuts = self.ledger.lost, self._cuts[id(tensor)]
        return {
            dim: kept for dim, labels in cuts.items() if (kept := {k: v for k, v in labels.items() if k not in lost})
        }

    def spread_of(self, tensor: Tensor) -> frozenset[int]:
        """Dimensions of a value along which all its entries are equal."""
        return self._spread.get(id(tensor), frozenset())

    def terms_of(self, tensor: Tensor) -> frozenset[str]:
        """The labels over which a value is still to be summed."""
        return frozenset(self._terms.get(id(tensor), frozenset()) - self.ledger.lost.keys())

    def labels_of(self, tensor: Tensor) -> frozenset[str]:
        """All labels of a value."""
        return self.terms_of(tensor).union(*self.cuts_of(tensor).values())

    def lose(self, labels: Collection[str], why: str) -> None:
        """These cannot be cut; the place is added to the reason."""
        place = f"in {self.path[-1]}" if self.path and self.path[-1] else ""
        where = ", ".join(filter(None, (self._doing, place)))
        why += f" ({where})" if where else ""
        self.ledger.lose(labels, why)

    def meet(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in the same manner."""
        self.ledger.meet(places)

    def contract(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in even slices, and a sum runs over them."""
        self.ledger.contract(places)

    def single(self, label: str) -> bool:
        return self.ledger.single(label)

    def blocks(self, label: str, place: Place, count: int) -> int:
        return self.ledger.blocks(label, place, count)

    def sliced(self, label: str, place: Place, size: int, start: int, stop: int) -> Place | None:
        return self.ledger.sliced(label, place, size, start, stop)

    # Where a tensor comes from.

    def begin(self, tensor: Tensor, name: str | None = None) -> None:
        """A tensor that is there before the run: a parameter, if it has a name."""
        self._alive.append(tensor)
        if name is None:
            self._given.add(id(tensor))
        if not tensor.is_floating_point():
            return
        self._differentiable.add(id(tensor))
        if name is not None:
            self._sources[id(tensor)] = frozenset([name])
            self._straight.add(id(tensor))
            if name not in self._of_layers:
                self._cuts[id(tensor)] = {d: {label_of(name, d): Place()} for d in range(tensor.dim())}

    # Operations.

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear for which a layer can stand: its weight takes up what is cut in its input, and starts a cut."""
        name, (outputs, inputs) = self.names[id(weight)], weight.shape
        if x.shape[-1:] != (inputs,):
            raise RuntimeError(f"a linear of {inputs} input features was given a value of shape {list(x.shape)}")
        self._within = True
        y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
        self._within = False
        if self.follow:
            self._linear(x, weight, bias, y)
        self._step(f"linear with {name}", [y])
        return y

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
        name, self._doing = self.names[id(weight)], ""
        last, cuts = x.dim() - 1, dict(self.cuts_of(x))
        taken = cuts.pop(last, {})
        if not self.path or self.path[-1] != self.layers[name]:
            self.lose([label_of(name, 0), label_of(name, 1)], f"its weight is used outside {self.layers[name]}")
        self.lose(self.terms_of(x), "a linear takes up a sum over the ranks that is still to come")
        if taken:
            contracted(self, taken, {label_of(name, 1): Place()}, "its blocks are not those of a linear's input")
            self.ledger.take_contracted()
        self.products.setdefault(name, set()).add(self.layers[name])
        self.ledger.started.add(label_of(name, 0))
        self._keep(y, {**cuts, last: {label_of(name, 0): Place()}})
        self._differentiable.add(id(y))
        self._given.add(id(y))
        # The layer sums its input's gradient, but its own parameters' it takes as they are.
        rest = frozenset[str]().union(*cuts.values())
        for parameter in (weight, *([] if bias is None else [bias])):
            for source in self._sources.get(id(parameter), ()):
                self._used(source, rest, frozenset())
        self._taken_in([x])
        self._crossed(y)

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Tensor]) -> None:
        """Any other operation."""
        if self._within:
            return
        numbers = numbers_of(func, args, kwargs)
        if not self.follow:
            self._step(str(func), results, numbers)
            return
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._reread(tensors)
        self._doing = str(func.overloadpacket)
        for tensor in tensors:
            if weight := self._of_layers.get(self.names.get(id(tensor), "")):
                self.lose([label_of(weight, 0), label_of(weight, 1)], f"{func} uses its weight or bias too")
        labels = frozenset[str]().union(*map(self.labels_of, tensors))
        found: Sequence[Cuts] = [NONE] * len(results)
        terms: frozenset[str] = frozenset()
        call = Call(func, args, kwargs, tensors, results, self)
        self._started(func, tensors)
        if labels and func is aten._local_scalar_dense.default:
            self.lose(labels, "control flow may depend on its values")
        elif labels and results:
            found = propagate(call)
            terms = self._summed(call)
            if terms and any(result is args[0] for result in results) and terms != self.terms_of(args[0]):
                self.lose(terms, f"{func} writes a sum over the ranks that is still to come into what is whole")
        if func.overloadpacket in _UNIFORM:
            found = [self._uniform(results[0])]
        self._after(call, tensors, results, found, terms)
        self._step(str(func), results, numbers)

    def _uniform(self, tensor: Tensor) -> Cuts:
        """The cuts of a value whose entries are all equal: code that makes it can make a rank's as well."""
        name = f"#{len(self._alive)}"
        labels = {dim: label_of(name, dim) for dim, size in enumerate(tensor.shape) if size % self.ledger.P == 0}
        self.ledger.sizes |= {label: tensor.shape[dim] for dim, label in labels.items()}
        return {dim: {label: Place()} for dim, label in labels.items()}

    def attention(self, path: str, module: nn.MultiheadAttention, given: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """An attention module for which a layer can stand: it takes and gives whole values."""
        query, key = given["query"], given["key"]
        batched, first = query.dim() == 3, module.batch_first
        N, L, S = (
            (query.shape[1 - first], query.shape[int(first)], key.shape[int(first)])
            if batched
            else (1, query.shape[0], key.shape[0])
        )
        shape = [N, *([] if given.get("average_attn_weights", True) else [module.num_heads]), L, S]
        self._within = True
        y = torch.empty_like(query)
        weights = query.new_empty(shape[0 if batched else 1 :]) if given.get("need_weights", True) else None
        self._within = False
        results = [y, *([] if weights is None else [weights])]
        if self.follow:
            tensors = [each for each in given.values() if isinstance(each, Tensor)]
            self.lose(frozenset[str]().union(*map(self.labels_of, tensors)), f"{path or 'the model'} takes it up whole")
            self._taken_in([each for each in tensors if id(each) in self._differentiable])
            self.whole_attention.add(path)
            for result in results:
                self._keep(result, NONE)
                self._differentiable.add(id(result))
                self._given.add(id(result))
        self._step(f"attention of {path}", results)
        return y, weights

    def grouped(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """A product of rows with one matrix of several for each, whose own stand-in asks for a dtype."""
        x, w = args[0], args[1]
        self._within = True
        y = torch.empty((*x.shape[:-1], w.shape[-1]), dtype=x.dtype, device=x.device)
        self._within = False
        if self.follow:
            self._doing = "a grouped product"
            call = Call(aten._grouped_mm.default, (x, w), {}, [x, w], [y], self)
            self._started(call.func, [x, w])
            cuts = [product_cuts(call, x, w)]
            self._after(call, [x, w], [y], cuts, self._summed(call))
        self._step("a grouped product", [y])
        return y

    def function(self, kind: Any, given: Any, out: Any) -> None:
        """An `autograd.Function` has run: its backward must leave slices what they are, and gets no terms."""
        back = backward_of(kind, given[0], given[1], out)
        if not self.follow:
            return
        taken, made = ([leaf for leaf in pytree.tree_leaves(each) if isinstance(leaf, Tensor)] for each in (given, out))
        alike = back is not None and len(taken) == len(made) == 1 and not self.terms_of(made[0])
        if not alike or not self.cuts_of(back) == self.cuts_of(made[0]) == self.cuts_of(taken[0]):
            for tensor in (*taken, *made):
                self.lose(self.labels_of(tensor), f"{kind.__name__} has a backward of its own")
        for source in frozenset[str]().union(*(self._sources.get(id(tensor), frozenset()) for tensor in taken)):
            self._used(source, frozenset(), frozenset())
        for tensor in made:
            self._alive.append(tensor)
            self._sources.pop(id(tensor), None)
            self._given.add(id(tensor))
            self._differentiable |= {id(tensor)} if tensor.is_floating_point() else set()
        self.opaque.update(self.path)

    def _after(
        self,
        call: Call,
        tensors: Sequence[Tensor],
        results: Sequence[Tensor],
        found: Sequence[Cuts],
        terms: frozenset[str],
    ) -> None:
        gradient = [t for t in tensors if id(t) in self._differentiable]
        flows = bool(gradient) and call.func.overloadpacket not in _NO_GRADIENT
        given = any(id(t) in self._given for t in tensors)
        # Of which entries are chosen, that is a parameter's alone still; else what the model is given mixes in.
        chosen = call.func.overloadpacket in _CHOOSES and len(gradient) == 1
        into = written(call)
        alone = flows and (not given or chosen) and all(id(t) in self._sources for t in gradient) and not into
        straight = (chosen or call.func.overloadpacket in LINEAR) and all(id(t) in self._straight for t in gradient)
        spread = self._spreading(call)
        for result, cuts in zip(results, found, strict=False):
            self._keep(result, cuts)
            self._terms[id(result)] = terms
            if given:
                self._given.add(id(result))
            if flows and result.is_floating_point():
                self._differentiable.add(id(result))
            if alone:
                self._sources[id(result)] = frozenset[str]().union(*(self._sources[id(t)] for t in gradient))
                if straight:
                    self._straight.add(id(result))
            elif id(result) in self._sources:  # written in place
                del self._sources[id(result)]
            self._spread[id(result)] = spread
            if not alone:
                self._crossed(result)
        if flows:
            self._taken_in(gradient)
            for tensor in into:
                self._wrote(tensor)
        if flows and not alone and results:
            self._entering(call, gradient, results)

    def _wrote(self, tensor: Tensor) -> None:
        """A value with a gradient is written into a tensor, and so into all that share its memory."""
        where = memory_of(tensor)
        self._writes.setdefault(where, set()).add(id(tensor))
        self._alive.append(tensor)
        self.writers.update(path for path, _, given in self._frames if where in given.values())

    def _reread(self, tensors: Sequence[Tensor]) -> None:
        """What was written into the memory of these through others is now theirs too."""
        for tensor in tensors if self._writes else ():
            if self._writes.get(memory_of(tensor), set()) - {id(tensor)}:
                self._differentiable.add(id(tensor))
                self._given.add(id(tensor))
                self._sources.pop(id(tensor), None)

    def _keep(self, tensor: Tensor, cuts: Cuts) -> None:
        """Note how a value is cut; it is kept alive, since it is known by its identity."""
        self._alive.append(tensor)
        self._born[id(tensor)] = len(self._alive)
        self._cuts[id(tensor)] = {dim: labels for dim, labels in cuts.items() if labels}

    def _spreading(self, call: Call) -> frozenset[int]:
        kind = call.func.overloadpacket
        if kind is aten.expand:
            x, y = call.args[0], call.results[0]
            more = y.dim() - x.dim()
            return frozenset(d for d in range(y.dim()) if y.shape[d] > 1 and (d < more or x.shape[d - more] == 1))
        return self.spread_of(call.args[0]) if kind in (aten.clone, aten.contiguous, aten._to_copy) else frozenset()

    def _started(self, func: Any, tensors: Sequence[Tensor]) -> None:
        """The parameters that a product multiplies with, and those of their dimensions that it does not sum over."""
        kind = func.overloadpacket
        if kind is aten.convolution:
            free = [(tensors[1], 0)]
        elif kind in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._grouped_mm):
            x, y = tensors[-2:] if kind is not aten._grouped_mm else tensors[:2]
            free = [(x, x.dim() - 2), (y, y.dim() - 1)]
        else:
            return
        for tensor, dim in free:
            for name in self._sources.get(id(tensor), ()):
                labels = self.cuts_of(tensor).get(dim, {})
                self.ledger.started.update(label for label in labels if split_label(label)[0] == name)
                self.products.setdefault(name, set()).update(self._holding(name))

    def _holding(self, name: str) -> list[str]:
        """The running modules that hold a parameter themselves."""
        return [
            path
            for path in dict.fromkeys(self.path)
            if any(self.names.get(id(p)) == name for p in self._at[path]._parameters.values())
        ]

    def _summed(self, call: Call) -> frozenset[str]:
        """The labels over which the results are terms of a sum."""
        kind, given = call.func.overloadpacket, [t for t in call.tensors if self.terms_of(t)]
        new = self.ledger.take_contracted()
        before = frozenset[str]().union(*map(self.terms_of, given))
        added = call.args[0] if kind in (aten.addmm, aten.baddbmm) else None
        if new and added is not None and id(added) not in self._straight:
            self.lose(new, "a value is added to a sum over the ranks that is still to come")
            return frozenset()
        if not before:
            return new
        if not all(result.is_floating_point() or result.is_complex() for result in call.results):
            self.lose(before | new, f"{kind} rounds a sum over the ranks that is still to come")
            return frozenset()
        if kind in LINEAR and len(given) == 1 and given[0] is call.args[0]:
            return before | new
        if kind in MULTIPLIES and len(given) == 1 and not new:
            return before
        exact = call.kwargs.get("rounding_mode") is None
        if kind in DIVIDES and exact and len(given) == 1 and given[0] is call.args[0]:
            return before
        if kind in ADDS and len({self.terms_of(t) for t in given}) == 1 and not new:
            whole = [t for t in call.tensors if not self.terms_of(t)]
            if all(id(t) in self._straight for t in whole) and len(whole) == 2 - len(given):
                return before
        self.lose(before | new, f"a sum over the ranks is still to come where {kind} needs it")
        return frozenset()

    def _entering(self, call: Call, gradient: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Whole values whose gradient, on each rank, is a term of a sum: they meet what is cut, or a term."""
        roots = self.ledger.root
        cut = frozenset[str]().union(*(labels for result in results for labels in self.cuts_of(result).values()))
        terms = frozenset[str]().union(*map(self.terms_of, results))
        adds = call.func.overloadpacket in ADDS
        added = call.args[0] if call.func.overloadpacket in (aten.addmm, aten.baddbmm) else None
        for tensor in gradient:
            own = {roots(label) for label in self.labels_of(tensor)}
            met = frozenset(label for label in cut if roots(label) not in own)
            of_sum = frozenset(label for label in terms if roots(label) not in own)
            once = of_sum if (adds or tensor is added) and not self.terms_of(tensor) else frozenset[str]()
            met |= of_sum - once
            sources = self._sources.get(id(tensor))
            if sources is not None and (not once or id(tensor) in self._straight):
                held = all(map(self._holding, sources))
                for name in sources:
                    self._used(name, met if held else frozenset(), once if held else frozenset())
                if held:
                    continue
            if once:
                self.lose(once, "a value is added to a sum over the ranks that is still to come")
            if met:
                self._region(met)

    def _used(self, name: str, met: frozenset[str], once: frozenset[str]) -> None:
        use = Use(met, once, frozenset(self.path), bool(self._holding(name)))
        self.uses.setdefault(name, []).append(use)

    def _region(self, labels: frozenset[str]) -> None:
        """The gradients of the inputs of the innermost module that holds a product's parameter must be summed."""
        owners = set[str]().union(*self.products.values())
        inner = next((path for path in reversed(self.path) if path in owners), None)
        if inner is None:
            self.lose(labels, "a value that is not cut, but has a gradient, meets its output")
        else:
            self.regions.setdefault(inner, set()).update(labels)

    def _crossed(self, tensor: Tensor) -> None:
        """Of two dimensions of one value, at most one may be cut."""
        dims = list(self.cuts_of(tensor).values())
        for k, labels in enumerate(dims):
            for others in dims[k + 1 :]:
                self.ledger.exclusive.add((next(iter(labels)), next(iter(others))))

    # Modules.

    def enter(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A module is called."""
        self.path.append(path)
        if self.follow:
            given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            leaves = [(where, leaf) for where, value in given for leaf in pytree.tree_leaves(value)]
            tensors = [(where, leaf) for where, leaf in leaves if isinstance(leaf, Tensor)]
            self._reread([leaf for _, leaf in tensors])
            self.passed.update(name for _, leaf in tensors for name in self._sources.get(id(leaf), ()))
            self.inputs.setdefault(path, []).append(tuple(self._edge(where, leaf) for where, leaf in tensors))
            self._frames.append((path, len(self._alive), {id(leaf): memory_of(leaf) for _, leaf in tensors}))

    def leave(self, out: Any) -> Any:
        """A module returns; gives what its caller gets, of which terms are sums, while others may still hold these."""
        path = self.path.pop()
        if not self.follow:
            return out
        self._frames.pop()
        leaves = [(k, leaf) for k, leaf in enumerate(pytree.tree_leaves(out)) if isinstance(leaf, Tensor)]
        self._reread([leaf for _, leaf in leaves])
        self.outputs.setdefault(path, []).append(tuple(self._edge(k, leaf) for k, leaf in leaves))
        if not any(path in held for held in self.products.values()):
            return out
        for _, leaf in leaves:
            self.regions.setdefault(path, set()).update(self.terms_of(leaf))
        return pytree.tree_map(lambda leaf: self._total(leaf) if isinstance(leaf, Tensor) else leaf, out)

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum of terms."""
        if not self.terms_of(tensor):
            return tensor
        self._within = True
        total = tensor.clone()
        self._within = False
        self._keep(total, self.cuts_of(tensor))
        for known in (self._differentiable, self._straight, self._given):
            known |= {id(total)} if id(tensor) in known else set()
        if id(tensor) in self._sources:
            self._sources[id(total)] = self._sources[id(tensor)]
        return total

    def _edge(self, where: int | str, tensor: Tensor) -> Edge:
        cut = frozenset[str]().union(*self.cuts_of(tensor).values())
        return Edge(where, cut, self.terms_of(tensor), id(tensor) in self._differentiable)

    def _taken_in(self, gradient: Sequence[Tensor]) -> None:
        """Note the running modules that compute with what they neither made nor were given."""
        for tensor in gradient:
            if id(tensor) not in self.names:
                born = self._born.get(id(tensor), 0)
                self.strangers.update(
                    path for path, start, given in self._frames if born < start and id(tensor) not in given
                )

    def end(self, out: Any) -> None:
        """The model returns."""
        self._doing = ""
        for tensor in tensors_in(out):
            self.lose(self.labels_of(tensor), "its output is part of the model's output")
            for name in self._sources.get(id(tensor), ()):
                self._used(name, frozenset(), frozenset())

    def _step(self, operation: str, results: Sequence[Tensor], numbers: tuple[str, ...] = ()) -> None:
        shapes = tuple(tuple(result.shape) for result in results)
        path = self.path[-1] if self.path else ""
        cuts = tuple(map(self.cuts_of, results)) if self.follow else ()
        step = Step(operation, path or "the model", shapes, cuts, numbers)
        self.steps.append(step)
        self.check(step)
