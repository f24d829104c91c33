"""From a trace to which linears are cut how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations, takewhile
from typing import Any

from torch import nn

from torch_tp.planning.trace import Step, Trace, trace_of


@dataclass(frozen=True)
class Chain:
    """Linears that are cut together: the output features of some, and the input features that take them up.

    Attributes:
        columns: weight's name -> the sizes of the parts of its output, each of which is cut by itself.
        rows: names of the weights.
        sizes: attributes that hold a whole size, as (path of the module, name) -> what a rank's must be.
    """

    columns: Mapping[str, tuple[int, ...]]
    rows: Sequence[str]
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])


@dataclass(frozen=True)
class Derived:
    """What can be proven of a model's linears, by the names of their weights.

    Attributes:
        chains: those that may be cut.
        replicated: the other linears -> why.
    """

    chains: Sequence[Chain]
    replicated: Mapping[str, str]


def derive(module: nn.Module, P: int, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Derived:
    """What can be cut into P slices, proven in two runs without data.

    The first follows every cut through the model, with whole shapes. The second has each cut weight in the shape of one
    rank's slice, and must make the same operations, with every cut dimension divided by P. Code that has a whole size
    written into it does not; where the size is an attribute of the module that holds the chain, such as a number of
    heads, the run is tried with that attribute divided by P.

    Args:
        args, kwargs: of one forward; of tensors only shape and dtype count.

    Raises:
        Exception: whatever the module raises without data, as control flow does that depends on it.
    """
    kwargs = kwargs or {}
    trace = trace_of(module, P, args, kwargs)
    chains: list[Chain] = []
    why: dict[str, str] = {}
    for labels in sorted(_together(trace), key=lambda labels: -_elements(trace, labels)):
        rows = _takers(trace, labels)
        taken = {label for chain in chains for label in (*chain.columns, *chain.rows)}
        reason = _against(trace, labels, rows)
        if not reason and {*labels, *rows} & taken:
            reason = "a chain with more weights has one of its linears"
        if reason:
            why |= dict.fromkeys(labels, reason)
        else:
            parts = {label: trace.parts.get(label, (trace.shapes[label][0],)) for label in labels}
            chains.append(Chain(parts, sorted(rows)))
    kept = []
    for chain, reason in _confirmed(module, trace, chains, args, kwargs):
        if reason:
            why |= dict.fromkeys((*chain.columns, *chain.rows), reason)
        else:
            kept.append(chain)
    cut = {label for chain in kept for label in (*chain.columns, *chain.rows)}
    return Derived(kept, {label: why[label] for label in trace.shapes if label not in cut})


def local_shapes(module: nn.Module, P: int, chains: Sequence[Chain]) -> dict[str, tuple[int, ...]]:
    """The shapes of the chains' parameters on one rank, biases of column layers among them."""
    held = dict(module.named_parameters())
    found: dict[str, tuple[int, ...]] = {}
    for chain in chains:
        for label in chain.columns:
            outputs, inputs = held[label].shape
            found[label] = (outputs // P, inputs)
            bias = label.removesuffix("weight") + "bias"
            if bias in held:
                found[bias] = (outputs // P,)
        for label in chain.rows:
            outputs, inputs = held[label].shape
            found[label] = (outputs, inputs // P)
    return found


def _confirmed(
    module: nn.Module, trace: Trace, chains: Sequence[Chain], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[Chain, str]]:
    """Each chain with the reason why local shapes do not do, or an empty string; one by one only where all do not."""

    def reason(*given: Chain) -> str:
        return _mismatch(module, trace, given, args, kwargs)

    if not reason(*chains):
        yield from ((chain, "") for chain in chains)
        return
    # What does for one chain of some shapes is tried on all of them at once: a model has many that are alike.
    for first in {_shapes(trace, chain): chain for chain in chains}.values():
        if reason(first) and (fitting := _fitting(module, trace, first, reason)):
            chains = [_alike(module, trace, chain, fitting) if not chain.sizes else chain for chain in chains]
    if not reason(*chains):
        yield from ((chain, "") for chain in chains)
        return
    kept: list[Chain] = []
    for chain in chains:
        why = reason(*kept, chain)
        kept += [] if why else [chain]
        yield chain, why


def _shapes(trace: Trace, chain: Chain) -> tuple[object, ...]:
    return tuple(trace.shapes[label] for label in (*chain.columns, *chain.rows)), tuple(chain.columns.values())


def _fitting(module: nn.Module, trace: Trace, chain: Chain, reason: Callable[..., str]) -> dict[str, int]:
    """Attributes of the chain's holder that make it do, by name, with the value of one rank."""
    for sizes in _sizes(module, trace, chain):
        if not reason(replace(chain, sizes=sizes)):
            return {name: size for (_, name), size in sizes.items()}
    return {}


def _alike(module: nn.Module, trace: Trace, chain: Chain, fitting: Mapping[str, int]) -> Chain:
    """A chain with the same attributes changed, where its holder has them with the same values."""
    owner = _holder(chain)
    held = vars(module.get_submodule(owner))
    if any(held.get(name) != size * trace.P for name, size in fitting.items()):
        return chain
    return replace(chain, sizes={(owner, name): size for name, size in fitting.items()})


def _holder(chain: Chain) -> str:
    """The path of the module that holds all linears of a chain."""
    paths = [label.split(".")[:-2] for label in (*chain.columns, *chain.rows)]
    return ".".join(same[0] for same in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def _sizes(module: nn.Module, trace: Trace, chain: Chain) -> Iterator[dict[tuple[str, str], int]]:
    """Attributes to try with other values, few before many: those with the size of something that is cut."""
    owner = _holder(chain)
    cut = {
        size
        for step in trace.steps
        for shape, cuts in zip(step.shapes, step.cuts, strict=True)
        for dim, size in enumerate(shape)
        if cuts.get(dim, {}).keys() & chain.columns.keys()
    }
    held = vars(module.get_submodule(owner))
    whole = [name for name, value in held.items() if type(value) is int and value in cut and value % trace.P == 0]
    for count in (1, 2, 3):
        for names in combinations(whole, count):
            yield {(owner, name): held[name] // trace.P for name in names}


@contextmanager
def resized(module: nn.Module, chains: Sequence[Chain]) -> Iterator[None]:
    """While it lasts, the attributes of the chains have the sizes of one rank."""
    wanted = {place: size for chain in chains for place, size in chain.sizes.items()}
    was = {(path, name): vars(module.get_submodule(path))[name] for path, name in wanted}
    try:
        for (path, name), size in wanted.items():
            setattr(module.get_submodule(path), name, size)
        yield
    finally:
        for (path, name), size in was.items():
            setattr(module.get_submodule(path), name, size)


def _mismatch(
    module: nn.Module, trace: Trace, chains: Sequence[Chain], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Where the run with local shapes parts from the whole one, or an empty string."""
    columns = {label for chain in chains for label in chain.columns}
    try:
        with resized(module, chains):
            local = _computed(trace_of(module, 1, args, kwargs, local_shapes(module, trace.P, chains)))
    except Exception as error:
        return (
            f"with the shapes of one rank the model raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    everywhere = _computed(trace)
    for whole, own in zip(everywhere, local, strict=False):
        expected = _local(whole, columns, trace.P)
        if (whole.operation, expected) != (own.operation, own.shapes):
            return (
                f"with the shapes of one rank {own.operation} (in {own.path}) gives {own.shapes}, "
                f"where {whole.operation} should give {expected}"
            )
    return "" if len(everywhere) == len(local) else "with the shapes of one rank the model makes other operations"


# What only lays elements out: whether one of these is needed depends on sizes of one.
_LAYOUT = (
    "clone",
    "contiguous",
    "view",
    "_unsafe_view",
    "expand",
    "alias",
    "t",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
)


def _computed(trace: Trace) -> list[Step]:
    """The steps that compute."""
    layout = {f"aten.{name}" for name in _LAYOUT}
    return [step for step in trace.steps if step.shapes and step.operation.rpartition(".")[0] not in layout]


def _local(step: Step, columns: set[str], P: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(size // P if columns & cuts.get(dim, {}).keys() else size for dim, size in enumerate(shape))
        for shape, cuts in zip(step.shapes, step.cuts, strict=True)
    )


def _together(trace: Trace) -> list[list[str]]:
    """The linears that are cut together, each set once."""
    sets: dict[str, list[str]] = {}
    for label in trace.shapes:
        sets.setdefault(trace.together(label), []).append(label)
    return list(sets.values())


def _takers(trace: Trace, labels: Sequence[str]) -> set[str]:
    return set[str]().union(*(trace.takers.get(label, set()) for label in labels))


def _elements(trace: Trace, labels: Sequence[str]) -> int:
    return sum(math.prod(trace.shapes[label]) for label in {*labels, *_takers(trace, labels)})


def _against(trace: Trace, labels: Sequence[str], rows: set[str]) -> str:
    """Why these are not cut, or an empty string."""
    for label in (*labels, *rows):
        if label in trace.shared:
            return trace.shared[label] if [label] == labels else f"{label}: {trace.shared[label]}"
    for label in labels:
        if label in trace.failures:
            return trace.failures[label] if len(labels) == 1 else f"{label}: {trace.failures[label]}"
    for label in labels:
        if not trace.takers.get(label):
            return f"{label}: no linear takes its output up"
    for row in rows:
        if trace.shapes[row][1] % trace.P:
            return f"{row}: P = {trace.P} does not divide its {trace.shapes[row][1]} input features"
    return "one of its linears takes up what it gives" if rows & set(labels) else ""
