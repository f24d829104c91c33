"""Several reports as one: runs of other implementations side by side, parts of one run added up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from conformance.reporting.record.read import Unusable, read_report
from conformance.reporting.record.report import Report, new_report
from conformance.reporting.record.run import Count, Coverage, Declined, ItemsRun, Run, RunOptions, missing

Record = TypeVar("Record")


def merged(paths: Sequence[str]) -> Report:
    """The reports of several files as one.

    Raises:
        Unusable: as of `read_report`, or two parts that overlap or differ in their options.
    """
    found: dict[Hashable, tuple[Run, str]] = {}
    for path in paths:
        for run in read_report(path).runs:
            key = _who(run)
            if key in found:
                other, where = found[key]
                found[key] = _sum(other, run, where, path), f"{where}, {path}"
            else:
                found[key] = run, path
    return new_report([run for run, _ in found.values()])


def _who(run: Run) -> Hashable:
    """What two parts of one run have in common."""
    who, options = run.implementation, run.options
    versions = tuple(sorted(who.versions.items()))
    return who.name, who.impl, who.strict, versions, who.semantics, options.backend, options.device


def _sum(one: Run, two: Run, where: str, path: str) -> Run:
    both = sorted(set(one.items.names) & set(two.items.names))
    if both:
        raise Unusable(
            f"{path}: has {one.implementation.name}'s {both[0]}{f' and {len(both) - 1} other items' * (len(both) > 1)},"
            f" which {where} has too; parts of one run must not overlap, or examples would count twice"
        )
    if one.options.clauses != two.options.clauses:
        raise Unusable(
            f"{path}: judged {_clauses(two.options)}, and {where} {_clauses(one.options)};"
            " parts of one run must have judged the same"
        )
    options, done = _options(one.options, two.options), _items(one.items, two.items)
    lacking = missing(options, done, one.implementation.fused)
    return replace(
        one,
        options=options,
        items=done,
        complete=not lacking,
        missing=lacking,
        counts=_added(one.counts + two.counts, lambda n: (n.clause, n.world, n.layer), _count),
        examples=_examples(one.examples, two.examples),
        cells=_added(one.cells + two.cells, lambda n: (n.clause, n.world), _coverage),
        declined=_added(one.declined + two.declined, lambda n: (n.reason, n.layer, n.world), _declined),
        intermittent=one.intermittent + two.intermittent,
        failures=one.failures + two.failures,
        sightings=one.sightings + two.sightings,
    )


def _clauses(options: RunOptions) -> str:
    return " and ".join(f"--clause {prefix}" for prefix in options.clauses) or "all clauses"


def _options(one: RunOptions, two: RunOptions) -> RunOptions:
    worlds = tuple(sorted({*one.world_sizes, *two.world_sizes}))
    return replace(one, world_sizes=worlds, profile=_words(one.profile, two.profile), seed=_words(one.seed, two.seed))


def _words(*texts: str) -> str:
    return ", ".join(dict.fromkeys(word for text in texts for word in text.split(", ")))


def _items(one: ItemsRun, two: ItemsRun) -> ItemsRun:
    names = (*one.names, *two.names)
    left = tuple(name for name in dict.fromkeys((*one.left, *two.left)) if name not in names)
    reasons = tuple(dict.fromkeys((*one.reasons, *two.reasons)))
    return ItemsRun(len(names) + len(left), len(names), names, left, reasons)


def _examples(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
    return {world: one.get(world, 0) + two.get(world, 0) for world in sorted({*one, *two}, key=int)}


def _added(
    entries: Iterable[Record], key: Callable[[Record], Hashable], add: Callable[[Record, Record], Record]
) -> tuple[Record, ...]:
    """The entries, those of one key made one."""
    found: dict[Hashable, Record] = {}
    for entry in entries:
        found[key(entry)] = add(found[key(entry)], entry) if key(entry) in found else entry
    return tuple(found.values())


def _count(a: Count, b: Count) -> Count:
    sums = {name: getattr(a, name) + getattr(b, name) for name in ("judged", "broken", "blamed", "declined")}
    return replace(a, **sums)


def _coverage(a: Coverage, b: Coverage) -> Coverage:
    """Of other items, whose cells are others."""
    values = [n for n in (a.values, b.values) if n is not None]
    misses = [n for n in (a.miss, b.miss) if n is not None]
    return replace(a, visited=a.visited + b.visited, values=min(values, default=None), miss=max(misses, default=None))


def _declined(a: Declined, b: Declined) -> Declined:
    return replace(a, examples=a.examples + b.examples)
