"""The record of a run, from what its tests found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from conformance.adapters.protocol import Declaration
from conformance.coverage.cells import clauses_by_flags, variants
from conformance.items import items
from conformance.observers import Options
from conformance.reporting.record.failure import Failure, Sighting
from conformance.reporting.record.run import (
    Count,
    Coverage,
    Declined,
    Implementation,
    ItemsRun,
    Run,
    RunOptions,
    missing,
)
from conformance.tally import Tally, Weakest
from spec import REGISTER
from spec.case import FUSED


def run_of(
    declared: Declaration,
    options: Options,
    profile: str,
    seed: str,
    done: ItemsRun,
    tally: Tally,
    failures: Sequence[Failure] = (),
    sightings: Sequence[Sighting] = (),
) -> Run:
    """The record of a run of these items, which found this."""
    how = RunOptions(options.world_sizes, options.backend, options.device, options.clauses, profile, seed)
    lacking = missing(how, done, declared.fused)
    who = Implementation(
        declared.name,
        _without_folder(options.impl),
        declared.strict,
        {name: str(version) for name, version in declared.versions.items()},
        {name: str(value) for name, value in declared.flags.items()},
        declared.semantics.sentences(),
        tuple(declared.fused),
    )
    return Run(
        who,
        how,
        not lacking,
        lacking,
        done,
        tuple(_counts(tally)),
        {str(world): tally.examples[world] for world in options.world_sizes},
        tuple(coverage(tally, options.world_sizes, declared.fused)),
        tuple(Declined(*place, n) for place, n in sorted(tally.declined.items())),
        tuple(tally.intermittent),
        tuple(failures),
        tuple(sightings),
    )


def _without_folder(impl: str) -> str:
    module, colon, name = impl.rpartition(":")
    return f"{Path(module).name}:{name}" if colon and module.endswith(".py") else impl


def _counts(tally: Tally) -> list[Count]:
    counters = (tally.judged, tally.broken, tally.blamed, tally.unsupported)
    order = {name: number for number, name in enumerate(REGISTER)}
    places = sorted({place for counter in counters for place in counter}, key=lambda p: (order[p[0]], *p[1:]))
    return [Count(*place, *(counter[place] for counter in counters)) for place in places]


def coverage(tally: Tally, world_sizes: Sequence[int], fused: Sequence[str] = FUSED) -> list[Coverage]:
    """For every clause and world size that it applies in: cells visited and reachable, and the weakest bound."""
    there = _reachable(tuple(world_sizes), tuple(fused))
    visited: Counter[tuple[str, int]] = Counter()
    weakest: dict[tuple[str, int], Weakest] = {}
    for cell, judged in tally.judged_in.items():
        for name in judged:
            key = name, cell.world
            visited[key] += 1
            if cell in tally.weakest:
                weakest[key] = tally.weakest[cell].or_weaker(weakest.get(key))
    order = sorted(there, key=lambda key: (list(REGISTER).index(key[0]), key[1]))
    bounds = {key: (entry.values, entry.miss) for key, entry in weakest.items()}
    return [Coverage(*key, visited[key], there[key], *bounds.get(key, (None, None))) for key in order]


@lru_cache(maxsize=8)
def _reachable(world_sizes: tuple[int, ...], fused: tuple[str, ...]) -> Counter[tuple[str, int]]:
    """(clause, world size) -> the cells in which it could be judged."""
    there: Counter[tuple[str, int]] = Counter()
    for item in items(world_sizes, fused):
        flags = Counter(variant[0] for variant in variants(item))
        for words, names in clauses_by_flags(item).items():
            there.update({(name, max(item.P, item.world)): flags[words] for name in names})
    return there
