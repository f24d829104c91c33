"""What a run has visited of what it could reach: a few lines that close its report, and every cell in a CSV file."""

from __future__ import annotations

import csv
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from conformance.coverage.cells import NONE, Cell, Value, Variant, clauses_by_flags, reachable, variants
from conformance.coverage.worth import FAULT
from conformance.items import Item
from conformance.tally import Tally, Weakest
from spec import REGISTER

Pair = tuple[Value, Value]

COLUMNS = ("world", "P", "layer", "dtype", "flags", "batch_rank", "x", "g", "procedure", "examples", "miss_bound")
_NAMED = 4
_WIDTH = 120


def summary(tally: Tally, items: Sequence[Item]) -> list[str]:
    """Examples by value of each axis, zeros included; cells and pairs of values; what the passes are worth."""
    visited = tally.cells
    if not visited:
        return []
    cells = {next(reachable(item)).fixed: frozenset(variants(item)) for item in items}
    total = sum(map(len, cells.values()))
    inside = sum(cell.variant in cells.get(cell.fixed, ()) for cell in visited)
    lines = ["examples by"]
    for axis, counts in _by_axis(visited, items).items():
        lines += _listed(f"  {axis:<13}", [f"{value}: {n}" for value, n in counts.items()])
    outside = f", and {len(visited) - inside} others" if len(visited) > inside else ""
    lines.append(f"{inside} of {total} cells were visited{outside}; --cells FILE writes them all, the empty ones too")
    unmet, there = _unmet(visited, items)
    named = [*unmet[:_NAMED], *(["..."] if len(unmet) > _NAMED else [])]
    told = f"{len(unmet)} of {there} pairs of values were never visited together{':' if unmet else ''} "
    return lines + _listed(told, named) + worth(tally)


def worth(tally: Tally) -> list[str]:
    """The bound on what a pass misses, with its condition, and where it is weakest."""
    text = (
        f"what a pass is worth: one draw from |S| values misses {FAULT}, with probability at most 2/|S|"
        " (Schwartz-Zippel; more where equal rows or columns are drawn again), and a power of it only over independent"
        " draws at equal shape and flags. Nothing is said of other faults, of pairs and of real values."
    )
    found: dict[str, Weakest] = {}
    for cell, weakest in tally.weakest.items():
        dtype = cell.dtype.rpartition("=")[2]
        found[dtype] = weakest.or_weaker(found.get(dtype))
    shown = [f"{name} {_odds(entry.miss)} (|S| {entry.values})" for name, entry in sorted(found.items())]
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    return lines + (_listed("  weakest      ", shown) if shown else [])


def write_cells(path: str, tally: Tally, items: Sequence[Item]) -> None:
    """One row per cell. A clause that does not apply in a cell is empty there; one that was never judged is 0."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, *REGISTER))
        writer.writerows(_rows(tally, items))


def _rows(tally: Tally, items: Sequence[Item]) -> Iterator[list[Any]]:
    examples, judged, left = tally.cells, tally.judged_in, dict.fromkeys(tally.cells)
    for item in items:
        clauses = clauses_by_flags(item)
        for cell in reachable(item):
            left.pop(cell, None)
            yield _row(cell, tally, examples[cell], judged.get(cell, Counter()), clauses[cell.flags])
    for cell in left:
        yield _row(cell, tally, examples[cell], judged[cell], frozenset())


def _row(cell: Cell, tally: Tally, examples: int, judged: Counter[str], applicable: frozenset[str]) -> list[Any]:
    axes = [cell.world, cell.P, cell.layer, cell.dtype, cell.flags, cell.rank, cell.x, cell.g, cell.procedure]
    weakest = tally.weakest.get(cell)
    bound = f"{weakest.miss:.3g}" if weakest else ""
    return [*axes, examples, bound, *(judged[n] if n in applicable or n in judged else "" for n in REGISTER)]


# Values and pairs of values


def _by_axis(visited: Counter[Cell], items: Iterable[Item]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for axis, value in dict.fromkeys(value for item in items for value in _values(item)):
        found.setdefault(axis, {})[value] = 0
    for cell, n in visited.items():
        for axis, value in cell.fixed + cell.varied:
            found.setdefault(axis, {})[value] = found.get(axis, {}).get(value, 0) + n
    return found | {"batch rank": dict(sorted(found["batch rank"].items()))}


def _unmet(visited: Iterable[Cell], items: Iterable[Item]) -> tuple[list[str], int]:
    """The pairs of values that never came together, of how many that can; of values that did come up, first."""
    axes = [cell.fixed + cell.varied for cell in visited]
    seen = {value for values in axes for value in values}
    met = {pair for values in axes for pair in combinations(values, 2)}
    there = dict.fromkeys(pair for item in items for pair in _pairs(item))
    unmet = sorted((pair for pair in there if pair not in met), key=lambda pair: not seen.issuperset(pair))
    return [f"{_label(one)} + {_label(other)}" for one, other in unmet], len(there)


def _label(value: Value) -> str:
    axis, word = value
    if word == NONE:
        return f"no {axis}"
    return f"{axis} {word}" if axis in ("world", "batch rank", "layout of x", "layout of g") else word


def _values(item: Item) -> list[Value]:
    """The values of an item's axes; those that all its cells share first."""
    return [*_shared(item), *_varied(variants(item))[0]]


def _pairs(item: Item) -> Iterator[Pair]:
    """The pairs of values in an item's cells, in the order of the axes of a cell."""
    values, pairs = _varied(variants(item))
    shared = _shared(item)
    yield from combinations(shared, 2)
    yield from ((one, other) for one in shared for other in values)
    yield from pairs


def _shared(item: Item) -> tuple[Value, ...]:
    return next(reachable(item)).fixed


@lru_cache(maxsize=512)
def _varied(found: tuple[Variant, ...]) -> tuple[tuple[Value, ...], tuple[Pair, ...]]:
    axes = [Cell(1, 1, "", "", *variant, procedure="").varied for variant in found]
    values = dict.fromkeys(value for entry in axes for value in entry)
    return tuple(values), tuple(dict.fromkeys(pair for entry in axes for pair in combinations(entry, 2)))


def _odds(miss: float) -> str:
    return f"{miss:.2g}" if miss < 1 else "no bound"


def _listed(label: str, entries: Sequence[str]) -> list[str]:
    """Entries after a label, in lines that break between entries alone."""
    lines = [label + ", ".join(entries[:1])]
    for entry in entries[1:]:
        if len(lines[-1]) + len(entry) + 3 > _WIDTH:
            lines[-1] += ","
            lines.append(" " * 15 + entry)
        else:
            lines[-1] += f", {entry}"
    return [line.rstrip() for line in lines]
