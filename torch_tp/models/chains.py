"""From a run to which parameters are cut together, how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch_tp.models.cuts import split_label
from torch_tp.models.trace import Edge, Run


@dataclass(frozen=True)
class Slice:
    """How a parameter is cut: along `dim`, each of the parts by itself, with so many copies of each slice of a part."""

    dim: int
    sizes: tuple[int, ...]
    copies: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether this is P even slices."""
        return len(self.sizes) == 1 and self.copies == (1,)

    def local(self, P: int) -> int:
        """The size of the dimension on one rank."""
        return sum(size * copies // P for size, copies in zip(self.sizes, self.copies, strict=True))


@dataclass(frozen=True)
class Region:
    """A module of whose result every rank computes a part or a term.

    Attributes:
        copied: which arguments, by position or name, are whole, so that the ranks' gradients of them are summed.
        reduced: which results, by index, are terms of a sum.
    """

    copied: tuple[int | str, ...]
    reduced: tuple[int, ...]


# The path of a module, and the name of an attribute of it, or of one of what the attribute holds.
Place = tuple[str, str]


@dataclass(frozen=True)
class Chain:
    """Parameters that are cut together.

    Attributes:
        slices: parameter -> how it is cut.
        columns, rows: those of them that products multiply with, by whether what is cut is in what the product gives,
            or in what it sums over.
        summed: whole parameters that are used on what is cut, whose gradients are summed over the ranks.
        once: whole parameters that are added to a sum over the ranks, and so on one rank alone.
        regions: module -> what is done at its edges, for those that no layer can stand for.
        sizes: attributes that hold a whole size -> what a rank's must be.
    """

    labels: frozenset[str]
    slices: Mapping[str, Slice]
    columns: Sequence[str]
    rows: Sequence[str]
    summed: Sequence[str] = ()
    once: Sequence[str] = ()
    regions: Mapping[str, Region] = field(default_factory=dict[str, Region])
    sizes: Mapping[Place, object] = field(default_factory=dict[Place, object])


def candidates(run: Run) -> tuple[list[Chain], dict[str, str]]:
    """The chains that a run allows, those with the most elements first, and why the other parameters are whole.

    Of two that cannot both be cut, the one with more elements is.
    """
    found: list[Chain] = []
    why: dict[str, str] = {}
    taken: dict[str, str] = {}
    for labels in run.ledger.groups():
        members = frozenset(labels)
        started = sorted({split_label(label)[0] for label in members & run.ledger.started})
        if not started:
            continue
        made = _chain(run, members, started)
        if isinstance(made, Chain):
            found.append(made)
        else:
            own = {split_label(label)[0]: run.ledger.lost.get(label) for label in members & run.ledger.started}
            why |= {name: own[name] or made for name in started}
            rows = {split_label(label)[0] for label in (members & run.ledger.taken) - run.ledger.started}
            taken |= {name: made for name in rows & run.products.keys() if name not in started}
    kept: list[Chain] = []
    for chain in sorted(found, key=lambda chain: -_elements(run, chain)):
        reason = next(filter(None, (_conflict(run, chain, other) for other in kept)), "")
        if reason:
            why |= dict.fromkeys(chain.columns, reason)
        else:
            kept.append(chain)
    for name, reason in taken.items():
        why[name] = f"as a column: {why.get(name, 'no linear takes its output up')}; as a row: {reason}"
    return kept, why


def _chain(run: Run, members: frozenset[str], started: Sequence[str]) -> Chain | str:
    """The chain of these labels, or why there is none."""
    ledger = run.ledger
    lost = sorted(members & ledger.lost.keys(), key=lambda label: (label not in ledger.started, label))
    if lost:
        name = split_label(lost[0])[0]
        return f"{name}: {ledger.lost[lost[0]]}"
    if not members & ledger.taken:
        return "no linear takes its output up"
    if any({a, b} <= members for a, b in ledger.exclusive):
        return "two dimensions of one value would be cut"
    slices: dict[str, Slice] = {}
    for label in sorted(members):
        name, dim = split_label(label)
        if name.startswith("#"):
            continue  # no parameter
        if name in slices:
            return f"{name} would be cut along two dimensions"
        sizes = tuple(stop - start for start, stop in ledger.parts(label))
        slices[name] = Slice(dim, sizes, tuple(ledger.copies(label)))
        if name in run.layers and dim == 0 and (bias := _bias_of(run, name)):
            slices[bias] = slices[name]
    regions: dict[str, Region] = {}
    for path, labels in run.regions.items():
        if labels & members:
            region = _region(run, path, members)
            if isinstance(region, str):
                return region
            regions[path] = region
    summed: list[str] = []
    once: list[str] = []
    for name, uses in run.uses.items():
        if name in slices:
            if any(use.met & members or use.once & members for use in uses):
                return f"{name} is cut, and meets what is cut along another dimension"
            if max(slices[name].copies) > 1 and (reason := _elsewhere(run, name)):
                return reason
            continue
        added = [bool(use.once & members) for use in uses]
        met = [bool(use.met & members or use.within & regions.keys()) and not use.once & members for use in uses]
        if not any(met) and not any(added):
            continue
        if reason := _elsewhere(run, name):
            return reason
        if all(added):
            once.append(name)
        elif all(met):
            summed.append(name)
        else:
            return f"{name} is used on what is cut and on what is not"
    rows = {split_label(label)[0] for label in (members & ledger.taken) - ledger.started} & run.products.keys()
    return Chain(members, slices, started, sorted(rows), summed, once, regions)


def _elsewhere(run: Run, name: str) -> str:
    """Why a parameter cannot be changed where the module that holds it is called, or an empty string."""
    if name in run.passed:
        return f"{name} is given to a module as an argument"
    held = all(use.held for use in run.uses.get(name, ()))
    return "" if held else f"{name} is used outside the module that holds it"


def _bias_of(run: Run, name: str) -> str | None:
    """The name of the bias beside a layer's weight."""
    bias = run.model.get_submodule(run.layers[name]).bias
    return next((other for other, each in run.model.named_parameters() if each is bias), None)


def _region(run: Run, path: str, members: frozenset[str]) -> Region | str:
    """What is done at the edges of a module, or why that would not do."""
    what = path or "the model"
    if path in run.strangers:
        return f"{what} computes with values that it is not given as arguments"
    if path in run.opaque:
        return f"{what} has a backward of its own in it"
    if path in run.writers:
        return f"{what} writes to what it is given"
    inside = f"{path}." if path else ""
    holders = {holder for held in run.products.values() for holder in held} | run.whole_attention
    if any(holder.startswith(inside) and holder != path for holder in holders):
        return f"{what} has linears inside it besides its own"
    copied: set[tuple[int | str, ...]] = set()
    reduced: set[tuple[int, ...]] = set()
    for inputs in run.inputs[path]:
        whole = {edge.where for edge in inputs if edge.differentiable and not _of(edge, members)}
        if whole & {edge.where for edge in inputs if _of(edge, members)}:
            return f"{what} is given one argument that is cut in part"
        copied.add(tuple(sorted(whole, key=str)))
    for outputs in run.outputs[path]:
        if any(edge.differentiable and not _of(edge, members) for edge in outputs):
            return f"{what} also returns a value that is not cut"
        if any(edge.terms & members and edge.cut & members for edge in outputs):
            return f"{what} returns a value that is cut and a term of a sum"
        reduced.add(tuple(int(edge.where) for edge in outputs if edge.terms & members))
    if len(copied) > 1 or len(reduced) > 1:
        return f"{what} is called in different ways"
    return Region(copied.pop(), reduced.pop())


def _of(edge: Edge, members: frozenset[str]) -> bool:
    return bool((edge.cut | edge.terms) & members)


def _conflict(run: Run, chain: Chain, other: Chain) -> str:
    """Why a chain cannot be cut besides another, or an empty string."""
    used = {*chain.slices, *chain.summed, *chain.once}
    if used & {*other.slices, *other.summed, *other.once}:
        return "a chain with more weights has one of its linears"
    if any(
        (a in chain.labels and b in other.labels) or (b in chain.labels and a in other.labels)
        for a, b in run.ledger.exclusive
    ):
        return "a chain with more weights is cut along another dimension of one of its values"
    shared: Collection[str] = chain.regions.keys() & other.regions.keys()
    mixed = [path for path in shared if chain.regions[path].copied and other.regions[path].copied]
    return f"a chain with more weights is computed in {mixed[0]}" if mixed else ""


def _elements(run: Run, chain: Chain) -> int:
    shapes = {name: parameter.shape for name, parameter in run.model.named_parameters()}
    return sum(math.prod(shapes[name]) for name in chain.slices)
