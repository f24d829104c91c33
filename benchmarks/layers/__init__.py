"""Column -> gelu -> row, forward and backward, of torch_tp and of other libraries, beside the floor.

All contenders hold shards of the same masters and run in turn on the same ranks. A contender whose output or gradients
are not those of the dense block is not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from benchmarks.layers import picture
from benchmarks.layers.figures import Times, fastest, ratios, rotated, slowest, spread
from benchmarks.layers.peers import absence, unavailable
from benchmarks.table import print_table
from conformance.devices import gpu_count
from conformance.ranks import RankPool, RankSetup

SIZES: Final = {"small": (64, 256, 8), "middle": (512, 2048, 64), "large": (2048, 8192, 256)}  # features, hidden, batch
MODES: Final = {"both": "forward and backward", "forward": "forward alone, without autograd"}
NAMES: Final = ("torch_tp", "plain", "Megatron", "fairscale", "DTensor", "by hand", "floor")
LIBRARIES: Final = ("torch_tp", "Megatron", "fairscale", "DTensor")
SHARES: Final = {"small": 0.3, "middle": 0.5, "large": 2.2}  # of --seconds: a round of the large takes seconds
LEAST_ROUNDS: Final = 5
SLICE: Final = 0.004  # seconds that a contender of middling speed runs before the next one's turn
DEADLINE: Final = 300.0


@dataclass(frozen=True)
class Cell:
    """What was measured at one world size and size of the layers.

    Attributes:
        times: mode -> contender -> seconds, round by round.
        memory: contender -> bytes saved for the backward, peak bytes.
        gpu: contender -> seconds to launch, seconds of a graph's replay; empty without a GPU.
    """

    P: int
    size: str
    times: dict[str, Times]
    memory: dict[str, list[int]]
    gpu: dict[str, list[float | None]]


class Ranks:
    """The ranks of one world, asked in JSON."""

    def __init__(self, pool: RankPool, P: int, device: str, handler: str = "benchmarks.layers.ranks:layers") -> None:
        backend = "nccl" if device == "cuda" else "gloo"
        self._pool, self._setup = pool, RankSetup(P, handler, {}, backend, device)

    def ask(self, do: str, **words: Any) -> list[Any]:
        """Every rank's answer."""
        replies = self._pool.call(self._setup, json.dumps({"do": do, **words}).encode(), DEADLINE)
        for reply in replies:
            if reply.fate != "returned":
                raise RuntimeError(f"{do}: rank {reply.rank} {reply.fate}: {reply.stack}{reply.exit}{reply.output}")
        return [json.loads(reply.payload or b"null") for reply in replies]


def refusals(answers: Sequence[dict[str, str]]) -> dict[str, str]:
    """Of each contender that is wrong or cannot run on some rank, the first reason."""
    return {
        name: next(answer[name] for answer in answers if answer[name])
        for name in answers[0]
        if any(answer[name] for answer in answers)
    }


def measure(ranks: Ranks, P: int, size: str, names: Sequence[str], seconds: float, device: str) -> Cell:
    """Build, check, then rounds for so many seconds, half of the turns forward alone."""
    shape = dict(zip(("features", "hidden", "batch"), SIZES[size], strict=True))
    refused = refusals(ranks.ask("build", **shape, names=list(names)))
    for name, reason in refused.items():
        print(unavailable(name, f"at P = {P}, {size}: it {reason}"), flush=True)
    if "floor" in refused:
        raise RuntimeError("without the floor there is nothing to compare with")
    names = [name for name in names if name not in refused]
    memory = ranks.ask("memory", names=names)[0]
    gpu = slowest_gpu(ranks.ask("gpu", names=names)) if device == "cuda" else {}
    return Cell(P, size, timed(ranks, names, seconds * SHARES[size]), memory, gpu)


def timed(ranks: Ranks, names: Sequence[str], seconds: float) -> dict[str, Times]:
    """mode -> contender -> seconds of a step on the slowest rank, by round; at least `LEAST_ROUNDS` rounds."""
    times: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in names} for mode in MODES}
    first = {mode: slowest(ranks.ask("round", order=list(names), repeats=1, mode=mode)) for mode in MODES}
    repeats = {mode: max(1, round(SLICE / spread(list(step.values())).middle)) for mode, step in first.items()}
    for number in rounds(seconds):
        for mode in MODES:
            answers = ranks.ask("round", order=rotated(names, number), repeats=repeats[mode], mode=mode)
            for name, value in slowest(answers).items():
                times[mode][name].append(value)
    return {**times}


def rounds(seconds: float) -> Iterator[int]:
    """Numbers from 0 on for so many seconds, and at least `LEAST_ROUNDS`."""
    began = time.perf_counter()
    for number in count():
        if number >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            return
        yield number


def slowest_gpu(answers: Sequence[dict[str, list[float | None]]]) -> dict[str, list[float | None]]:
    """By rank the longest of each number; None where a rank has none."""
    names = answers[0]
    return {
        name: [None if None in values else max(values) for values in zip(*(a[name] for a in answers), strict=True)]
        for name in names
    }


def main(chosen: argparse.Namespace) -> None:
    worlds = [int(word) for word in chosen.world_sizes.split(",")]
    if chosen.device == "cuda":
        worlds = [P for P in worlds if gpu_count() >= P]
    sizes = [word.strip() for word in chosen.sizes.split(",")]
    unknown = [size for size in sizes if size not in SIZES]
    if unknown or not worlds:
        raise SystemExit(
            f"--sizes {','.join(unknown)}: some of {', '.join(SIZES)}" if unknown else "fewer GPUs than ranks"
        )
    present = []
    for name in NAMES:
        if reason := absence(name):
            print(reason)
        else:
            present.append(name)
    cells = []
    for P in worlds:
        names = [name for name in present if P == 1 or name != "plain"]
        with RankPool() as pool:
            ranks = Ranks(pool, P, chosen.device)
            for size in sizes:
                cells.append(measure(ranks, P, size, names, chosen.seconds, chosen.device))
                report(cells[-1])
    print_goals(cells)
    if chosen.out:
        Path(chosen.out).write_text(paint(cells))


def report(cell: Cell) -> None:
    """The tables of one cell."""
    features, hidden, batch = SIZES[cell.size]
    for mode, times in cell.times.items():
        rounds = len(times["floor"])
        print_table(
            f"P = {cell.P}, {cell.size} ({features} -> {hidden} -> {features}, batch {batch}, float32), "
            f"{MODES[mode]}: {rounds} rounds",
            ["us", "median", "least", "quartiles", "ratio to floor", "quartiles", *(_MEMORY if mode == "both" else ())],
            [_row(cell, mode, name) for name in times],
        )
    if cell.gpu:
        print_table("on the GPU, us", ["", "launch", "graph replay"], [_gpu_row(*item) for item in cell.gpu.items()])


_MEMORY: Final = ("saved KiB", "peak KiB")


def _row(cell: Cell, mode: str, name: str) -> list[str]:
    times, times_of = spread(cell.times[mode][name]), cell.times[mode]
    ratio = ratios(times_of, name, "floor")
    row = [name, _us(times.middle), _us(times.least), f"{_us(times.lower)}-{_us(times.upper)}"]
    row += [f"{ratio.middle:.2f}", f"{ratio.lower:.2f}-{ratio.upper:.2f}"]
    if mode == "both":
        row += [f"{number / 1024:.1f}" for number in cell.memory[name]] if name in cell.memory else ["", ""]
    return row


def _gpu_row(name: str, numbers: Sequence[float | None]) -> list[str]:
    return [name, *("" if number is None else _us(number) for number in numbers)]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def print_goals(cells: Sequence[Cell]) -> None:
    """torch_tp beside what it is to reach; each number is a median of ratios within a round."""
    rows = [_goal_row(cell, mode) for cell in cells for mode in MODES if "torch_tp" in cell.times[mode]]
    print_table(
        "torch_tp: ratio to nn.Linear (goal 1.03), to the fastest other library (goal 1.00), to the floor (goal 1.10), "
        "and memory to the leanest other (goal 1.00)",
        ["", "to plain", "quartiles", "to other", "quartiles", "", "to floor", "saved", "peak"],
        rows,
    )


def _goal_row(cell: Cell, mode: str) -> list[str]:
    times = cell.times[mode]
    row = [f"P = {cell.P} {cell.size}, {mode}", *_ratio(times, "plain")]
    others = [name for name in LIBRARIES[1:] if name in times]
    if others:
        best = fastest(times, others)
        row += [*_ratio(times, best), best]
    else:
        row += ["", "", ""]
    row.append(_ratio(times, "floor")[0])
    row += _leanness(cell) if mode == "both" else ["", ""]
    return row


def _ratio(times: Times, to: str) -> list[str]:
    if to not in times:
        return ["", ""]
    ratio = ratios(times, "torch_tp", to)
    return [f"{ratio.middle:.2f}", f"{ratio.lower:.2f}-{ratio.upper:.2f}"]


def _leanness(cell: Cell) -> list[str]:
    others = [numbers for name, numbers in cell.memory.items() if name in LIBRARIES[1:]]
    mine = cell.memory["torch_tp"]
    return [f"{mine[i] / min(other[i] for other in others):.3f}" if others else "" for i in range(2)]


def paint(cells: Sequence[Cell]) -> str:
    """The picture of forward and backward: a row of panels for each size, a panel for each world size."""
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    rows = [
        [
            (
                f"P = {cell.P}, {cell.size}",
                {name: ratios(cell.times["both"], name, "floor") for name in cell.times["both"] if name != "floor"},
            )
            for cell in cells
            if cell.size == size
        ]
        for size in sizes
    ]
    return picture.draw("column -> gelu -> row, forward and backward: time as a multiple of the floor's", rows)
