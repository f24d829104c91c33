"""The suite beside the bare loop: same layers, same inputs, same ranks' policy, in turns.

The bare loop is one command to persistent ranks, which then run forward and backward of prepared layers on prepared
inputs. What the suite adds is all the rest: drawing, the truth, sockets, building, looking, judging.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import conformance.suite
from benchmarks.clock import read_clock
from benchmarks.table import Stopwatch, print_table, seconds_of
from conformance.items import Item
from conformance.observers import Options, Pooled
from conformance.ranks import RankPool, RankSetup, Reply
from conformance.strategies import cases
from conformance.suite import Suite
from spec import Case

EXAMPLES: Final = 25  # per item and block, as in the suite's quick profile
LOOPS: Final = 4  # how often the bare loop runs the cases of a block
DEADLINE: Final = 60.0
PARTS: Final = ("draw", "truth", "transport", "run", "judge", "rest")


class ClockedPool(RankPool):
    """Ranks that say how long they ran, for a suite that need not know."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch

    def call(self, setup: RankSetup, command: bytes, deadline: float) -> tuple[Reply, ...]:
        with self._watch.timing("call"):
            answers = super().call(_clocked(setup), command, deadline)
        clocks, replies = zip(*map(read_clock, answers), strict=True)
        self._watch.seconds["run"] += max(clocks)
        return replies

    def discard(self, setup: RankSetup) -> None:
        super().discard(_clocked(setup))


def _clocked(setup: RankSetup) -> RankSetup:
    return dataclasses.replace(setup, handler="benchmarks.handlers:clocked")


class ClockedSuite:
    """The suite with clocks around its parts.

    Attributes:
        failing: examples with findings, which cost more than others and should not be.
    """

    def __init__(self, P: int) -> None:
        self.watch, self.failing = Stopwatch(), 0
        self._suite = Suite(Options(world_sizes=(P,)))
        assert isinstance(self._suite.observer, Pooled)
        self._suite.observer._pool = ClockedPool(self.watch)

    def __enter__(self) -> ClockedSuite:
        import spec.reference

        self._clocks = ExitStack()
        for module, name in ((spec.reference, "truth"), (conformance.suite, "judge")):
            self._clocks.enter_context(patch.object(module, name, self.watch.around(name, getattr(module, name))))
        self._clocks.callback(self._suite.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._clocks.close()

    def examine(self, case: Case) -> None:
        with self.watch.timing("examine"):
            verdict = self._suite.examine(case)
        self.failing += bool(verdict.findings or verdict.intermittent)


@dataclasses.dataclass(frozen=True)
class Block:
    """Milliseconds per example of one block: of the suite in all and by part, and of the bare loop."""

    suite: float
    bare: float
    parts: dict[str, float]


def draw_and(action: Callable[[Case], object], item: Item, number: int) -> None:
    """Call the action with as many cases as the quick profile draws for an item."""

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # what is slow here is what is measured
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        action(data.draw(cases(item), label="case"))

    run()


def suite_block(suite: ClockedSuite, items: Sequence[Item], number: int) -> tuple[list[Case], float, dict[str, float]]:
    """The cases, seconds in all, and seconds by part."""
    seen: list[Case] = []
    suite.watch.seconds.clear()

    def examine(case: Case) -> None:
        seen.append(case)
        suite.examine(case)

    total = seconds_of(lambda: [draw_and(examine, item, number) for item in items])
    return seen, total, _parts(total, suite.watch.seconds)


def _parts(total: float, clocks: dict[str, float]) -> dict[str, float]:
    return {
        "draw": total - clocks["examine"],
        "truth": clocks["truth"],
        "transport": clocks["call"] - clocks["run"],
        "run": clocks["run"],
        "judge": clocks["judge"],
        "rest": clocks["examine"] - clocks["call"] - clocks["truth"] - clocks["judge"],
    }


def bare_block(pool: RankPool, P: int, seen: Sequence[Case]) -> float:
    """Seconds per iteration, by the clock of the slowest rank."""
    setup = RankSetup(P, "benchmarks.handlers:bare")
    _answered(pool.call(setup, ("build " + "\n".join(case.text for case in seen)).encode(), DEADLINE))
    replies = _answered(pool.call(setup, f"loop {LOOPS}".encode(), DEADLINE))
    return max(read_clock(reply)[0] for reply in replies) / LOOPS / len(seen)


def _answered(replies: Sequence[Reply]) -> Sequence[Reply]:
    for reply in replies:
        if reply.fate != "returned":
            raise RuntimeError(f"rank {reply.rank} {reply.fate}: {reply.stack}{reply.exit}")
    return replies


def measure(P: int, blocks: int) -> tuple[list[Block], int]:
    """Blocks in which the suite and the bare loop took turns, and how many examples failed."""
    items = [Item("run", layer, P, "float32") for layer in ("column", "row")]
    results: list[Block] = []
    with RankPool() as pool, ClockedSuite(P) as suite:
        suite_block(suite, items, 0)  # compiles the reference and starts the ranks
        for number in range(1, blocks + 1):
            seen, total, parts = suite_block(suite, items, number)
            count = len(seen) / 1000
            bare = bare_block(pool, P, seen) * 1000
            results.append(Block(total / count, bare, {name: value / count for name, value in parts.items()}))
    return results, suite.failing


def main(chosen: argparse.Namespace) -> None:
    worlds = [int(word) for word in chosen.world_sizes.split(",")]
    measured = {P: measure(P, chosen.blocks) for P in worlds}
    print_table(
        f"suite and bare loop: medians of {chosen.blocks} blocks of {2 * EXAMPLES} examples, column and row, float32",
        ["P", "suite/s", "bare/s", "suite ms", "least", "bare ms", "least", "added ms", "ratio", "goal"],
        [[str(P), *_row(blocks), _goal(P)] for P, (blocks, _) in measured.items()],
    )
    print_table(
        "where the suite's time goes: ms per example, medians",
        ["P", *PARTS, "failing examples"],
        [
            [str(P), *(f"{_median(blocks, lambda b: b.parts[part]):.2f}" for part in PARTS), str(failing)]
            for P, (blocks, failing) in measured.items()
        ],
    )
    if chosen.spawns:
        _compare_spawns({P: _median(blocks, lambda b: b.suite) for P, (blocks, _) in measured.items()}, chosen.spawns)


def _compare_spawns(suite: dict[int, float], repeats: int) -> None:
    from benchmarks.spawned import one_example

    rows = []
    for P, mine in suite.items():
        spawn = statistics.median(seconds_of(lambda: one_example(P)) for _ in range(repeats)) * 1000
        rows.append([str(P), f"{spawn:.0f}", f"{mine:.2f}", f"{spawn / mine:.0f}"])
    print_table(
        f"torch.multiprocessing.spawn for each example (median of {repeats}) beside the suite",
        ["P", "spawn ms", "suite ms", "ratio"],
        rows,
    )


def _row(blocks: Sequence[Block]) -> list[str]:
    suite, bare = _median(blocks, lambda b: b.suite), _median(blocks, lambda b: b.bare)
    times = [suite, min(b.suite for b in blocks), bare, min(b.bare for b in blocks)]
    compared = [_median(blocks, lambda b: b.suite - b.bare), _median(blocks, lambda b: b.suite / b.bare)]
    return [f"{1000 / suite:.0f}", f"{1000 / bare:.0f}", *(f"{number:.2f}" for number in (*times, *compared))]


def _goal(P: int) -> str:
    return "ratio <= 1.6, suite/s >= 100" if P == 4 else "added ms <= 4"


def _median(blocks: Sequence[Block], value: Callable[[Block], Any]) -> float:
    return statistics.median(map(value, blocks))
