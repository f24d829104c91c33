"""What can be proven: a run with whole shapes, and one with the shapes of one rank that must do the same."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import Any

from torch import nn

from torch_tp.models.chains import Chain, Place, candidates
from torch_tp.models.cuts import Cuts, split_label
from torch_tp.models.runs import run_of
from torch_tp.models.trace import Run, Step


@dataclass(frozen=True)
class Derived:
    """What can be proven of a model's parameters, by their names.

    Attributes:
        chains: those that may be cut.
        replicated: other parameters that products multiply with -> why they stay whole.
        products: all of these -> the modules that hold them.
        layers: those of them that an `nn.Linear` holds for which a parallel layer can stand.
        attention: paths of attention modules that are cut by heads as wholes.
    """

    chains: Sequence[Chain]
    replicated: Mapping[str, str]
    products: Mapping[str, Collection[str]]
    layers: Mapping[str, str]
    attention: Collection[str] = ()


def derive(model: nn.Module, P: int, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Derived:
    """What can be cut over P ranks, proven in two runs without data.

    The first follows every cut through the model, with whole shapes. The second has each cut parameter in the shape of
    one rank's slice, and must make the same operations, with every cut dimension as one rank has it. Code that has a
    whole size written into it does not; where the size is an attribute of a module of the chain, such as a number of
    heads, the run is tried with that of one rank.

    Args:
        args, kwargs: of one forward; of tensors only shape and dtype count.

    Raises:
        Exception: whatever the module raises without data, as control flow does that depends on it.
    """
    run = run_of(model, P, args, kwargs or {})
    chains, why = candidates(run)
    if alone := frozenset(run.ledger.doubtful & run.ledger.lost.keys()):
        second = run_of(model, P, args, kwargs or {}, alone=alone)
        others, reasons = candidates(second)
        if sum(len(chain.slices) for chain in others) > sum(len(chain.slices) for chain in chains):
            run, chains, why = second, others, reasons
    kept: list[Chain] = []
    for chain, reason in _confirmed(_Trial(model, run, P, args, kwargs or {}), chains):
        if reason:
            why |= dict.fromkeys((*chain.columns, *chain.rows), reason)
        else:
            kept.append(chain)
    cut = {name for chain in kept for name in chain.slices}
    lost = {split_label(label)[0]: reason for label, reason in reversed(run.ledger.lost.items())}
    whole = {name: why.get(name) or lost.get(name, "no chain has it") for name in run.products if name not in cut}
    layers = {name: path for name, path in run.layers.items() if name in run.products}
    return Derived(kept, whole, run.products, layers, run.whole_attention)


@dataclass(frozen=True)
class Outcome:
    """How the second run went.

    Attributes:
        why: where it parts from the first, or an empty string.
        steps: how many operations were the same.
        path: the modules that ran where it parted, the innermost last.
    """

    why: str
    steps: int
    path: tuple[str, ...] = ()


class Parted(Exception):
    """A run makes another operation than the one expected."""


@dataclass(frozen=True)
class _Trial:
    """The second run, to be made with any chains."""

    model: nn.Module
    whole: Run
    P: int
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def __call__(self, *chains: Chain) -> Outcome:
        """How a run goes in which these have the shapes of one rank."""
        labels = frozenset[str]().union(*(chain.labels for chain in chains))
        expected = _computed(self.whole.steps)
        done = 0
        path: list[str] = []

        def check(step: Step) -> None:
            nonlocal done
            if not _computes(step):
                return
            if done == len(expected):
                raise Parted("with the shapes of one rank the model makes more operations")
            shapes = self._local(expected[done], labels)
            if (step.operation, step.shapes) != (expected[done].operation, shapes):
                raise Parted(
                    f"with the shapes of one rank {step.operation} (in {step.path}) gives {_shown(step.shapes)},"
                    f" where {expected[done].operation} should give {_shown(shapes)}"
                )
            if step.numbers != expected[done].numbers:
                raise Parted(
                    f"with the shapes of one rank {step.operation} (in {step.path}) computes with other numbers:"
                    f" {', '.join(step.numbers)} for {', '.join(expected[done].numbers)}"
                )
            done += 1

        try:
            with resized(self.model, chains):
                run_of(
                    self.model,
                    1,
                    self.args,
                    self.kwargs,
                    local_shapes(self.model, self.P, chains),
                    check,
                    path,
                    attention=self.P,
                )
        except Parted as reason:
            return Outcome(str(reason), done, tuple(path))
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            return Outcome(
                f"with the shapes of one rank the model raises {type(error).__name__}: {text}", done, tuple(path)
            )
        short = done < len(expected)
        return Outcome("with the shapes of one rank the model makes fewer operations" if short else "", done)

    def _local(self, step: Step, labels: frozenset[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(self._size(size, cuts, dim, labels) for dim, size in enumerate(shape))
            for shape, cuts in zip(step.shapes, step.cuts, strict=True)
        )

    def _size(self, size: int, cuts: Cuts, dim: int, labels: frozenset[str]) -> int:
        for label, place in cuts.get(dim, {}).items():
            if label in labels:
                return int(size * self.whole.ledger.share(label, place))
        return size

    def changed(self, chain: Chain) -> dict[int, set[int]]:
        """Whole sizes of what the chain cuts -> what they may be on a rank."""
        found: dict[int, set[int]] = {}
        for step in self.whole.steps:
            for shape, cuts in zip(step.shapes, step.cuts, strict=True):
                for dim in cuts:
                    local = self._size(shape[dim], cuts, dim, chain.labels)
                    if local != shape[dim]:
                        found.setdefault(shape[dim], set()).add(local)
        # Where a head has copies, a rank repeats it for fewer others.
        for copies in {copies for cut in chain.slices.values() for copies in cut.copies} - {1}:
            for step in self.whole.steps:
                if step.operation.startswith("aten.expand"):
                    for size in (size for shape in step.shapes for size in shape if size % copies == 0):
                        found.setdefault(size, set()).add(size // copies)
        return found


def _confirmed(trial: _Trial, chains: list[Chain]) -> Iterator[tuple[Chain, str]]:
    """Each chain with the reason why local shapes do not do, or an empty string; one by one only where all do not."""
    if not trial(*chains).why:
        yield from ((chain, "") for chain in chains)
        return
    # What does for one chain of some shapes is tried on all of them at once: a model has many that are alike.
    for first in {_shapes(chain): chain for chain in reversed(chains)}.values():
        if trial(first).why and (fitting := _fitting(trial, first)):
            chains = [_alike(trial.model, first, chain, fitting) for chain in chains]
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


_TRIALS = 100


def _fitting(trial: _Trial, chain: Chain) -> dict[Place, object]:
    """Attributes with which the chain does, or none.

    Those are changed that modules of the chain have which run where the second run parts; what brings it the furthest
    is followed up first, and two at once are tried where one does not help.
    """
    options, holder = trial.changed(chain), _holder(chain)
    seen: list[dict[Place, object]] = []
    waiting: list[tuple[Outcome, dict[Place, object]]] = [(trial(chain), {})]
    while waiting and len(seen) < _TRIALS:
        before, chosen = waiting.pop(max(range(len(waiting)), key=lambda k: waiting[k][0].steps))
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
                if not after.why:
                    return given
                if after.steps > before.steps:
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
) -> Iterator[tuple[Place, object]]:
    """Attributes of running modules to try with other values: those that hold the size of something that is cut."""
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


def _alike(model: nn.Module, first: Chain, chain: Chain, fitting: Mapping[Place, object]) -> Chain:
    """A chain with the same attributes changed, where its modules have them with the same values."""
    if _shapes(first) != _shapes(chain) or chain.sizes:
        return chain
    here, there = _holder(first), _holder(chain)
    sizes: dict[Place, object] = {}
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


def local_shapes(model: nn.Module, P: int, chains: Sequence[Chain]) -> dict[str, tuple[int, ...]]:
    """The shapes of the chains' parameters on one rank, ."""
    held = dict(model.named_parameters())
    found: dict[str, tuple[int, ...]] = {}
    for name, cut in ((name, cut) for chain in chains for name, cut in chain.slices.items()):
        shape = held[name].shape
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


# What only lays elements out: whether one of these is needed depends on sizes of one.
_LAYOUT = frozenset(
    f"aten.{name}"
    for name in (
        *("clone", "contiguous", "view", "_unsafe_view", "expand", "alias", "t", "transpose", "permute", "unsqueeze"),
        *("squeeze", "detach"),
    )
)


def _computes(step: Step) -> bool:
    return bool(step.shapes) and step.operation.rpartition(".")[0] not in _LAYOUT


def _computed(steps: Sequence[Step]) -> list[Step]:
    """The steps that compute."""
    return [step for step in steps if _computes(step)]


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
