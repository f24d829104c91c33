"""What ranks cost: a verdict on a lost rank, fresh ranks after it, and a command that does nothing."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Final

from benchmarks.table import print_table, seconds_of
from conformance.ranks import RankGroup, RankPool, RankSetup

CALLS: Final = 1000
DEADLINE: Final = 60.0
HANG_DEADLINE: Final = 1.0
FAULTS: Final = {"raise": "raised", "kill": "died", "hang": "hung"}


def setup_of(world: int) -> RankSetup:
    return RankSetup(world, "benchmarks.handlers:faulty")


def commands(world: int, repeats: int) -> list[str]:
    """A row: a group's start, commands, and its end, in milliseconds."""
    groups: list[RankGroup] = []
    starts = [seconds_of(lambda: groups.append(RankGroup.start(setup_of(world)))) for _ in range(repeats)]
    row = [str(world), _ms(statistics.median(starts), 0)]
    for command in (b"nothing", b"reduce"):
        times = sorted(seconds_of(lambda: groups[0].call(command, DEADLINE)) for _ in range(CALLS))
        row += [_ms(times[CALLS // 2], 2), _ms(times[CALLS * 99 // 100], 2)]
    return [*row, _ms(statistics.median(seconds_of(group.close) for group in groups), 0)]


def fault(pool: RankPool, world: int, name: str, repeats: int) -> list[str]:
    """A row: time to the verdict on rank 0, a hang's beyond its deadline, then to an answer of fresh ranks."""
    setup, verdicts, fresh = setup_of(world), [], []
    deadline = HANG_DEADLINE if name == "hang" else DEADLINE
    for _ in range(repeats):
        pool.call(setup, b"reduce", DEADLINE)
        fates: list[str] = []
        took = seconds_of(lambda: fates.extend(r.fate for r in pool.call(setup, name.encode(), deadline)))
        if fates[0] != FAULTS[name]:
            raise RuntimeError(f"rank 0 was to {name}, and the pool says {fates}")
        verdicts.append(took - (HANG_DEADLINE if name == "hang" else 0))
        fresh.append(seconds_of(lambda: pool.call(setup, b"reduce", DEADLINE)))
    return [name, str(world), *_middle_and_worst(verdicts), "1000", *_middle_and_worst(fresh), "500"]


def _middle_and_worst(seconds: Sequence[float]) -> list[str]:
    return [_ms(statistics.median(seconds), 0), _ms(max(seconds), 0)]


def _ms(seconds: float, digits: int) -> str:
    return f"{seconds * 1000:.{digits}f}"


def main(chosen: argparse.Namespace) -> None:
    worlds = [int(word) for word in chosen.world_sizes.split(",")]
    first = seconds_of(lambda: RankGroup.start(setup_of(1)).close())
    print(f"\nthe very first group, with the start of the fork server: {_ms(first, 0)} ms")
    print_table(
        f"ms; start and end medians of {chosen.repeats}, commands of {CALLS}",
        ["P", "start", "no-op", "no-op 99th", "all-reduce", "all-reduce 99th", "end"],
        [commands(world, chosen.repeats) for world in worlds],
    )
    with RankPool() as pool:
        print_table(
            f"rank 0 fails ({chosen.repeats} times): ms to the verdict (a hang's: beyond the deadline), to new ranks",
            ["fault", "P", "verdict", "worst", "goal", "fresh ranks", "worst", "goal"],
            [fault(pool, world, name, chosen.repeats) for world in worlds for name in FAULTS],
        )
