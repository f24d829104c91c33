"""The cells of a run: world size x dtype x flags x batch rank x layouts x procedure, and which of them can be reached.

A report that only counts examples hides what none of them was. A cell is what an example was like, sizes and values
aside; `reachable` counts the cells of an item off from the tables that the strategies draw from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from conformance.items import Item
from conformance.space import (
    Fields,
    batches_of,
    biases_of,
    canonical,
    cuts_of,
    dims_of,
    fixed_of,
    flag_fields,
    flags_of,
    frozen_of,
    function_sizes,
    layer_sizes,
    layouts_of,
    values_of,
)
from spec import Case, agreement, applicable
from spec.case import FUNCTIONS, PROCEDURES, WITHOUT_VALUES
from spec.contract import runs_backward
from spec.faults import faults_of
from spec.placements import Placement, Sharded

Value = tuple[str, str]
Variant = tuple[str, int, str, str]
NONE = "none"
_WITHOUT_GRADIENT = WITHOUT_VALUES | {"no-grad", "inference"}


@dataclass(frozen=True)
class Cell:
    """What an example was like.

    Attributes:
        dtype: with the autocast dtype, where there is one.
        flags: the words of a case line that leave their default, bias and frozen among them; or none.
        rank: the number of batch dimensions.
        x, g: the layouts of the input and of the upstream gradient as the shape lets them be; g is none where nothing
            runs backward.
    """

    world: int
    P: int
    layer: str
    dtype: str
    flags: str
    rank: int
    x: str
    g: str
    procedure: str

    @property
    def fixed(self) -> tuple[Value, ...]:
        """(axis, value) of what all cells of an item share."""
        world = str(self.world) if self.world == self.P else f"{self.world} in groups of {self.P}"
        return ("world", world), ("dtype", self.dtype), ("layer", self.layer), ("procedure", self.procedure)

    @property
    def varied(self) -> tuple[Value, ...]:
        """(axis, value) of the rest; every word of the flags is a value of its own."""
        flags = (("flags", word) for word in self.flags.split())
        return ("batch rank", str(self.rank)), ("layout of x", self.x), ("layout of g", self.g), *flags

    @property
    def variant(self) -> Variant:
        """The fields of that rest."""
        return self.flags, self.rank, self.x, self.g


def cell_of(case: Case) -> Cell:
    """The cell that a case is in."""
    settled = effective(case)
    return Cell(
        case.world,
        case.P,
        case.layer,
        f"{case.dtype} autocast={case.autocast}" if case.autocast else case.dtype,
        _flags(case),
        len(case.batch),
        settled.x,
        settled.g if runs_backward(case) and case.procedure not in WITHOUT_VALUES else NONE,
        case.procedure,
    )


def _flags(case: Case) -> str:
    words = [name for name in ("bias", "gather_output", "skip_bias_add") if getattr(case, name)]
    words += [f"{name}=False" for name in ("input_is_parallel", "reduce_output") if not getattr(case, name)]
    return " ".join([*words, *([f"frozen={case.frozen}"] if case.frozen else [])]) or NONE


def effective(case: Case) -> Case:
    """The case with every layout that its shapes turn back into contiguous called so."""
    terms = agreement(case)
    x = _effective(case.x, terms.input.value, terms.input_shape, case.P)
    g = _effective(case.g, terms.output.gradient, terms.output_shape, case.P) if runs_backward(case) else "contiguous"
    return case if (x, g) == (case.x, case.g) else replace(case, x=x, g=g)


def _effective(layout: str, placement: Placement, shape: tuple[int, ...], P: int) -> str:
    """A layout as a rank's own part of a tensor can have it: transposed needs two dimensions, expanded something to."""
    here = list(shape)
    if isinstance(placement, Sharded):
        here[placement.dim] //= P
    fits = {"transposed": len(here) > 1, "expanded": len(here) > 1 and here[0] > 1, "strided": bool(here)}
    return layout if fits.get(layout, True) else "contiguous"


# Which cells there are


def reachable(item: Item) -> Iterator[Cell]:
    """The cells that the cases of an item are in, each once."""
    here = cell_of(next(_cases(item)))
    for flags, rank, x, g in variants(item):
        yield replace(here, flags=flags, rank=rank, x=x, g=g)


def variants(item: Item) -> tuple[Variant, ...]:
    """The (flags, rank, x, g) of the cells of an item; the very same tuple for items that are alike."""
    return _variants(_alike(item))


def clauses_by_flags(item: Item) -> dict[str, frozenset[str]]:
    """For each word list of flags the clauses that could fail: that depends neither on layouts nor on the batch."""
    found: dict[str, frozenset[str]] = {}
    for sizes in _sizes(item, batches_of(item)[0]):
        for case in _laid_out(item, sizes, layouts=False):
            names = frozenset(clause.name for clause in applicable(case))
            found[_flags(case)] = found.get(_flags(case), frozenset()) | names
    return found


def _alike(item: Item) -> Item:
    """The first of all items with the same flags, batches and layouts, so that these are counted off once for all."""
    # P has a say in layouts only where dimension 0 is cut.
    P = item.P if item.layer in ("gather", "scatter") else 1
    others = (replace(item, procedure=name, P=P, dtype="float32", autocast="", world=0) for name in PROCEDURES)
    return next(other for other in others if _choices(other) == _choices(item))


def _choices(item: Item) -> tuple[Any, ...]:
    chosen = (flags_of(item), batches_of(item), layouts_of(item), frozen_of(item, bias=True))
    return (*chosen, item.procedure in _WITHOUT_GRADIENT)


@lru_cache(maxsize=512)
def _variants(item: Item) -> tuple[Variant, ...]:
    cells = (cell_of(case) for case in _cases(item))
    return tuple(dict.fromkeys(cell.variant for cell in cells))


def _cases(item: Item) -> Iterator[Case]:
    """Cases of the smallest sizes, at least one in every cell of the item."""
    for batch in batches_of(item):
        for sizes in _sizes(item, batch):
            yield from _laid_out(item, sizes)


def _sizes(item: Item, batch: tuple[int, ...]) -> list[Fields]:
    if item.layer in FUNCTIONS:
        return [function_sizes(item, batch, 1, dim) for dim in dims_of(item, batch)]
    return [layer_sizes(item, cuts_of(item, (1,))[0], 1, 1 if item.layer == "pair" else 0) | {"batch": batch}]


def _laid_out(item: Item, sizes: Fields, layouts: bool = True) -> Iterator[Case]:
    """All flags, biases, frozen tensors, kinds of values and layouts of one size."""
    pairs = layouts_of(item) if layouts else layouts_of(item)[:1]
    for bias, chosen, values in product(*map(dict.fromkeys, (biases_of(item), flags_of(item), values_of(item)))):
        for frozen, (x, g) in product(dict.fromkeys(frozen_of(item, bias)), pairs):
            fields = fixed_of(item) | sizes | flag_fields(chosen, bias) | {"frozen": frozen, "values": values}
            plain = {name: value for name, value in fields.items() if name != "procedure"}
            fault = faults_of(Case(**plain))[0] if item.procedure == "refuse" else ""
            yield canonical(Case(**fields, x=x, g=g, fault=fault))
