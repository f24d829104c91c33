"""From an analysis to the parameters that are sharded together, how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch_tp.models.analysis import Analysis
from torch_tp.models.cuts import split_label
from torch_tp.models.sizes import Rule, Site


@dataclass(frozen=True)
class Slice:
    """How a parameter is sharded: along `dim`, each of the parts by itself, with so many copies of each shard."""

    dim: int
    sizes: tuple[int, ...]
    copies: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether this is P even shards."""
        return len(self.sizes) == 1 and self.copies == (1,)

    def local(self, P: int) -> int:
        """The size of the dimension on one rank."""
        return sum(size * copies // P for size, copies in zip(self.sizes, self.copies, strict=True))


# The path of a module, and the name of an attribute of it, or of one of what the attribute holds.
Attribute = tuple[str, str]


@dataclass(frozen=True)
class Chain:
    """Parameters that are sharded together.

    Attributes:
        labels: all dimensions of parameters, and of values, that are sharded with them.
        slices: parameter or buffer -> how it is sharded.
        columns, rows: those of them that products multiply with, by whether the sharded dimension is one of the
            product's result, or one that it sums over.
        sizes: attributes that hold a size of the dense model -> what a rank's must be.
        rules: module -> the calls in it that must get a rank's sizes.
    """

    labels: frozenset[str]
    slices: Mapping[str, Slice]
    columns: Sequence[str]
    rows: Sequence[str]
    sizes: Mapping[Attribute, object] = field(default_factory=dict[Attribute, object])
    rules: Mapping[str, Mapping[Site, Rule]] = field(default_factory=dict[str, Mapping[Site, Rule]])


def candidates(analysis: Analysis) -> tuple[list[Chain], dict[str, str]]:
    """The chains that an analysis allows, those with the most elements first, and why other parameters are replicated.

    Of two that cannot both be sharded, the one with more elements is.
    """
    ledger = analysis.ledger
    found: list[Chain] = []
    why: dict[str, str] = {}
    taken: dict[str, str] = {}
    for labels in ledger.groups():
        members = frozenset(labels)
        started = sorted({split_label(label)[0] for label in members & ledger.started})
        if not started:
            continue
        made = _chain(analysis, members, started)
        if isinstance(made, Chain):
            found.append(made)
        else:
            own = {split_label(label)[0]: ledger.lost.get(label) for label in members & ledger.started}
            why |= {name: own[name] or made for name in started}
            rows = {split_label(label)[0] for label in (members & ledger.taken) - ledger.started}
            taken |= {name: made for name in rows & analysis.products.keys() if name not in started}
    kept: list[Chain] = []
    for chain in sorted(found, key=lambda chain: -_elements(analysis, chain)):
        reason = next(filter(None, (_conflict(analysis, chain, other) for other in kept)), "")
        if reason:
            why |= dict.fromkeys(chain.columns, reason)
        else:
            kept.append(chain)
    for name, reason in taken.items():
        why[name] = f"as a column: {why.get(name, 'no linear takes its output up')}; as a row: {reason}"
    return kept, why


def _chain(analysis: Analysis, members: frozenset[str], started: Sequence[str]) -> Chain | str:
    """The chain of these labels, or why there is none."""
    ledger = analysis.ledger
    lost = sorted(members & ledger.lost.keys(), key=lambda label: (label not in ledger.started, label))
    if lost:
        name = split_label(lost[0])[0]
        return f"{name}: {ledger.lost[lost[0]]}"
    if not members & ledger.taken:
        return "no linear takes its output up"
    if any({a, b} <= members for a, b in ledger.exclusive):
        return "two dimensions of one value would be sharded"
    slices: dict[str, Slice] = {}
    for label in sorted(members):
        name, dim = split_label(label)
        if name.startswith("#"):
            continue  # no parameter
        if name in slices:
            return f"{name} would be sharded along two dimensions"
        sizes = tuple(stop - start for start, stop in ledger.parts(label))
        slices[name] = Slice(dim, sizes, tuple(ledger.copies(label)))
        if dim == 0 and (bias := analysis.bias_of.get(name)):
            slices[bias] = slices[name]
    for name, cut in slices.items():
        if max(cut.copies) > 1 and name not in analysis.known.layers:
            if name in analysis.read_outside:
                return f"{name} is used outside the module that holds it"
            if name.rpartition(".")[0] in analysis.replayed:
                return f"{name} is used again in the backward, after its module has returned"
    rows = {split_label(label)[0] for label in (members & ledger.taken) - ledger.started} & analysis.products.keys()
    return Chain(members, slices, started, sorted(rows))


def _conflict(analysis: Analysis, chain: Chain, other: Chain) -> str:
    """Why a chain cannot be sharded besides another, or an empty string."""
    if {*chain.slices} & {*other.slices}:
        return "a chain with more weights has one of its linears"
    if any(
        (a in chain.labels and b in other.labels) or (b in chain.labels and a in other.labels)
        for a, b in analysis.ledger.exclusive
    ):
        return "a chain with more weights is sharded along another dimension of one of its values"
    return ""


def _elements(analysis: Analysis, chain: Chain) -> int:
    return sum(math.prod(analysis.shapes[name]) for name in chain.slices)
