"""What ranks cost, in milliseconds. Run as a program from the root of the checkout: python -m tests.ranks.benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from conformance.ranks import RankGroup, RankPool, RankSetup

CALLS = 1000
REPEATS = 7
FAULTS = (b"reduce 0:kill reduce", b"reduce 0:exit=3 reduce", b"reduce 0:throw reduce", b"1:refuse", b"1:spin reduce")
HANG_DEADLINE = 1.0


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def setup_of(world: int) -> RankSetup:
    return RankSetup(world, "handlers:script", sys_path=(str(Path(__file__).parent),))


def commands(world: int) -> None:
    groups: list[RankGroup] = []
    up = statistics.median(timed(lambda: groups.append(RankGroup.start(setup_of(world)))) for _ in range(REPEATS))
    print(f"world {world}: group up {up:.1f}", end="")
    for command in (b"", b"reduce"):
        times = sorted(timed(lambda: groups[0].call(command, 60)) for _ in range(CALLS))  # noqa: B023
        median, late = times[CALLS // 2], times[CALLS * 99 // 100]
        print(f", {command.decode() or 'no-op'} median {median:.3f}, 99th {late:.3f}", end="")
    print(f", polite end {statistics.median(timed(group.close) for group in groups):.1f}")


def faults(world: int) -> None:
    """The worst of the repeats."""
    setup = setup_of(world)
    with RankPool() as pool:
        for fault in FAULTS:
            verdicts, fresh = [], []
            for _ in range(REPEATS):
                pool.call(setup, b"reduce", 60)
                verdicts.append(timed(lambda: pool.call(setup, fault, HANG_DEADLINE)))  # noqa: B023
                fresh.append(timed(lambda: pool.call(setup, b"reduce", 60)))
            print(f"world {world}, {fault.decode()}: verdict {max(verdicts):.0f}, fresh ranks {max(fresh):.0f} later")


if __name__ == "__main__":
    print(f"first group, with the start of the fork server: {timed(lambda: RankGroup.start(setup_of(1)).close()):.0f}")
    for world in (1, 2, 4):
        commands(world)
    for world in (2, 4):
        faults(world)
