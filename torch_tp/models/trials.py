"""Runs with the shapes of one rank, and the attributes that they need to be those of a rank."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, takewhile

import torch
from torch import nn

from torch_tp.models.analysis import Analysis
from torch_tp.models.capture import Example, Stand, capture
from torch_tp.models.chains import Attribute, Chain
from torch_tp.models.compare import Comparison
from torch_tp.models.failures import Parted, Unfollowable
from torch_tp.models.graph import Graph, Node
from torch_tp.models.recorder import Recorder
from torch_tp.models.sharding import Sharding
from torch_tp.models.sizes import Rule, Site, local_rules
from torch_tp.models.snapshot import Snapshot

_TRIALS = 100


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        why: where it parts from the dense one, or an empty string.
        done: how many operations were the same.
        path: the modules that ran where it parted, the innermost last.
    """

    why: str
    done: int
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """The runs of all examples with the shapes of one rank, to be made with any chains."""

    model: nn.Module
    analysis: Analysis
    stand: Stand
    examples: Sequence[Example]
    before: Snapshot

    @property
    def P(self) -> int:
        """The number of ranks."""
        return self.analysis.ledger.P

    def __call__(self, *chains: Chain) -> Outcome:
        """How the runs go in which these chains have the shapes of one rank."""
        done = 0
        for sharding, example in zip(self.analysis.shardings, self.examples, strict=False):
            labels = frozenset[str]().union(*(chain.labels for chain in chains))
            outcome = self._run(Comparison(sharding, labels), example, chains)
            done += outcome.done
            if outcome.why:
                return replace(outcome, done=done)
        return Outcome("", done)

    def _run(self, comparison: Comparison, example: Example, chains: Sequence[Chain]) -> Outcome:
        last: list[tuple[str, ...]] = [()]

        def see(node: Node, recorder: Recorder) -> None:
            last[0] = recorder.live.path(node.call)
            comparison.see(node, recorder)

        rules: dict[str, dict[Site, Rule]] = {}
        for path, further in ((path, each) for chain in chains for path, each in chain.rules.items()):
            rules.setdefault(path, {}).update(further)
        stand = replace(self.stand, shapes=local_shapes(self.analysis, chains), rules=rules)
        try:
            with resized(self.model, chains):
                graph = capture(self.model, example, stand, see, self.before)
        except Parted as reason:
            return Outcome(str(reason), comparison.done, comparison.path)
        except Unfollowable as error:  # code that meets sizes which it does not expect
            return Outcome(f"with the shapes of one rank {error.reason}", comparison.done, last[0])
        return Outcome(comparison.end(graph), comparison.done, last[0])

    def changed(self, chain: Chain) -> dict[int, set[int]]:
        """Sizes of what the chain shards -> what they may be on a rank."""
        found: dict[int, set[int]] = {}
        several = {copies for cut in chain.slices.values() for copies in cut.copies} - {1}
        for sharding in self.analysis.shardings:
            comparison = Comparison(sharding, chain.labels)
            for number, fact in enumerate(sharding.facts):
                shape = sharding.graph.values[number].shape
                for dim in fact.cuts:
                    local = comparison.size(number, dim, shape[dim])
                    if local != shape[dim]:
                        found.setdefault(shape[dim], set()).add(local)
            # Where a head has copies, a rank repeats it for fewer others.
            for node in sharding.graph.nodes if several else ():
                if getattr(node.operator, "overloadpacket", None) is torch.ops.aten.expand:
                    for size in sharding.graph.values[node.results[0]].shape:
                        for copies in several:
                            if size % copies == 0:
                                found.setdefault(size, set()).add(size // copies)
        return found

    def rules(self, chain: Chain) -> dict[str, dict[Site, Rule]]:
        """The calls that give sizes of what the chain shards, with those of a rank."""
        found: dict[str, dict[Site, Rule]] = {}
        for sharding in self.analysis.shardings:
            graph, comparison = sharding.graph, Comparison(sharding, chain.labels)
            calls = [(each, graph.calls[each.call].path) for each in graph.sized if each.call >= 0]

            def size(number: int, dim: int, graph: Graph = graph) -> int:
                return graph.values[number].shape[dim]

            def local(number: int, dim: int, graph: Graph = graph, comparison: Comparison = comparison) -> int:
                return comparison.size(number, dim, graph.values[number].shape[dim])

            def folded(number: int, dim: int, sharding: Sharding = sharding) -> bool:
                held = sharding.facts[number].cuts.get(dim, {})
                return any(place.outer > 1 for label, place in held.items() if label in chain.labels)

            for path, rules in local_rules(calls, local, size, folded).items():
                found.setdefault(path, {}).update(rules)
        return found


def confirmed(trial: Trial, chains: list[Chain]) -> Iterator[tuple[Chain, str]]:
    """Each chain with the reason why local shapes do not do, or an empty string; one by one only where all do not."""
    if not chains:
        return
    if not trial(*chains).why:
        yield from ((chain, "") for chain in chains)
        return
    # What does for one chain of some shapes is tried on all of them at once: a model has many that are alike.
    for first in {_shapes(chain): chain for chain in reversed(chains)}.values():
        if not trial(first).why:
            continue
        if fitting := _fitting(trial, first):
            chains = [_alike(trial.model, first, chain, fitting) for chain in chains]
        elif not trial(replace(first, rules=trial.rules(first))).why:
            alike = [_shapes(chain) == _shapes(first) for chain in chains]
            chains = [replace(c, rules=trial.rules(c)) if same else c for c, same in zip(chains, alike, strict=True)]
    if not trial(*chains).why:
        yield from ((chain, "") for chain in chains)
        return
    kept: list[Chain] = []
    for chain in chains:
        why = trial(*kept, chain).why
        kept += [] if why else [chain]
        yield chain, why


def _shapes(chain: Chain) -> object:
    return tuple(chain.slices.values()), len(chain.columns)


def _fitting(trial: Trial, chain: Chain) -> dict[Attribute, object]:
    """Attributes with which the chain does, or none.

    Those are changed that modules of the chain have which run where the second run parts; what brings it the furthest
    is followed up first, and two at once are tried where one does not help.
    """
    options, holder = trial.changed(chain), _holder(chain)
    full, trial = trial, replace(trial, examples=trial.examples[:1])
    seen: list[dict[Attribute, object]] = []
    waiting: list[tuple[Outcome, dict[Attribute, object]]] = [(trial(chain), {})]
    while waiting and len(seen) < _TRIALS:
        before, chosen = waiting.pop(max(range(len(waiting)), key=lambda k: waiting[k][0].done))
        changes = [
            change for change in _changes(trial.model, options, _within(holder, before.path)) if change[0] not in chosen
        ]
        for count in (1, 2):
            further = []
            for several in combinations(changes, count):
                given = chosen | dict(several)
                if len(given) < len(chosen) + count or given in seen or len(seen) >= _TRIALS:
                    continue
                seen.append(given)
                after = trial(replace(chain, sizes=given))
                if not after.why and not full(replace(chain, sizes=given)).why:
                    return given
                if after.done > before.done:
                    further.append((after, given))
            waiting += further
            if further:
                break
    return {}


def _within(holder: str, path: Sequence[str]) -> list[str]:
    """The modules of a path that are in one of them, the innermost first."""
    return [each for each in dict.fromkeys(reversed(path)) if f"{each}.".startswith(f"{holder}." if holder else "")]


def _changes(
    model: nn.Module, options: Mapping[int, Collection[int]], path: Sequence[str]
) -> Iterator[tuple[Attribute, object]]:
    """Attributes of running modules to try with other values: those that hold the size of something that is sharded."""
    for each in path:
        for name, value in _attributes(model.get_submodule(each)):
            if type(value) is int:
                yield from (((each, name), size) for size in sorted(options.get(value, ())))
            elif isinstance(value, (list, tuple)) and options.keys() & {item for item in value if type(item) is int}:
                yield (each, name), type(value)(min(options.get(item, {item})) for item in value)


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The attributes of a module, and of the plain objects that it holds, such as a configuration."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        yield name, value
        if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
            yield from ((f"{name}.{inner}", each) for inner, each in vars(value).items() if type(each) is int)


def _alike(model: nn.Module, first: Chain, chain: Chain, fitting: Mapping[Attribute, object]) -> Chain:
    """A chain with the same attributes changed, where its modules have them with the same values."""
    if _shapes(first) != _shapes(chain) or chain.sizes:
        return chain
    here, there = _holder(first), _holder(chain)
    sizes: dict[Attribute, object] = {}
    for (path, name), size in fitting.items():
        own = there + path[len(here) :]
        try:
            same = dict(_attributes(model.get_submodule(own))).get(name)
        except AttributeError:
            return chain
        if same != dict(_attributes(model.get_submodule(path))).get(name):
            return chain
        sizes[own, name] = size
    return replace(chain, sizes=sizes)


def _holder(chain: Chain) -> str:
    """The path of the module that holds all products of a chain."""
    paths = [name.split(".")[:-1] for name in (*chain.columns, *chain.rows)]
    above = [path[:-1] for path in paths] if len({tuple(path) for path in paths}) > 1 else paths
    return ".".join(same[0] for same in takewhile(lambda level: len(set(level)) == 1, zip(*above, strict=False)))


def local_shapes(analysis: Analysis, chains: Sequence[Chain]) -> dict[str, tuple[int, ...]]:
    """The shapes of the chains' parameters on one rank."""
    P, found = analysis.ledger.P, dict[str, tuple[int, ...]]()
    for name, cut in ((name, cut) for chain in chains for name, cut in chain.slices.items()):
        shape = analysis.shapes[name]
        found[name] = tuple(cut.local(P) if dim == cut.dim else size for dim, size in enumerate(shape))
    return found


@contextmanager
def resized(model: nn.Module, chains: Sequence[Chain]) -> Iterator[None]:
    """While it lasts, the attributes of the chains have the sizes of one rank."""
    was = []
    try:
        for path, name, size in ((*place, size) for chain in chains for place, size in chain.sizes.items()):
            module = model.get_submodule(path)
            was.append((module, name.split(".")[0], vars(module)[name.split(".")[0]]))
            resize(module, name, size)
        yield
    finally:
        for module, name, value in reversed(was):
            setattr(module, name, value)


def resize(module: nn.Module, name: str, size: object) -> None:
    """Change an attribute of a module, or of a copy of its own of what it holds."""
    outer, _, inner = name.partition(".")
    if inner:
        own = copy.copy(getattr(module, outer))
        setattr(own, inner, size)
        setattr(module, outer, own)
    else:
        setattr(module, outer, size)
