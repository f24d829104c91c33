"""The layers' benchmark inside a rank. Commands and answers are JSON.

build   features, hidden, batch, names   -> name: "", or why it cannot take part
round   order, repeats, mode             -> name: seconds of one step on this rank
memory  names                            -> name: [bytes saved for the backward, peak bytes]
gpu     names                            -> name: seconds to launch, and of a graph's replay
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.layers.contenders import BUILDERS, Block, Contender, disagreement, reference
from benchmarks.layers.given import draw
from conformance.ranks.values import Context


def layers(context: Context) -> Callable[[bytes], bytes]:
    """A handler that keeps the contenders of one size."""
    bench = Bench(context.device)

    def handle(command: bytes) -> bytes:
        words = json.loads(command)
        return json.dumps(getattr(bench, words.pop("do"))(**words)).encode()

    return handle


class Bench:
    """The contenders of one size, built and checked."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._contenders: dict[str, Contender] = {}

    def build(self, features: int, hidden: int, batch: int, names: Sequence[str]) -> dict[str, str]:
        """Build the contenders and run each once beside the dense block; the wrong are kept out."""
        self._contenders.clear()
        given = draw(features, hidden, batch, self._device)
        right = reference(given)
        reasons = {}
        for name in names:
            try:
                self._contenders[name] = BUILDERS[name](given)
                reasons[name] = disagreement(self._contenders[name].both(), right)
            except Exception as error:  # a library's own, on all ranks alike; the others go on without it
                reasons[name] = f"raises {type(error).__name__}: {error}"
        return reasons

    def round(self, order: Sequence[str], repeats: int, mode: str) -> dict[str, float]:
        """Each contender in turn: all ranks begin together, and run it so many times."""
        return {name: self._seconds(getattr(self._contenders[name], mode), repeats) for name in order}

    def memory(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Of the contenders that autograd runs."""
        blocks = {name: self._contenders[name] for name in names}
        return {
            name: [block.count_saved(), self._peak(block.both)]
            for name, block in blocks.items()
            if isinstance(block, Block)
        }

    def gpu(self, names: Sequence[str]) -> dict[str, list[float | None]]:
        """Of forward and backward; see `gpu`."""
        from benchmarks.layers.gpu import launch_seconds, replay_seconds

        steps = {name: self._contenders[name].both for name in names}
        return {name: [launch_seconds(step), replay_seconds(step)] for name, step in steps.items()}

    def _seconds(self, step: Callable[[], Any], repeats: int) -> float:
        if repeats > 1:
            step()  # caches and heap are as the contender before left them
        dist.barrier()
        self._synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            step()
        self._synchronize()
        return (time.perf_counter() - began) / repeats

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self, step: Callable[[], Any]) -> int:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
        return _cpu_peak(step)


def _cpu_peak(step: Callable[[], Any]) -> int:
    """The most that torch's CPU allocator had handed out at one time and not got back, from the step's start on.

    The profiler sees each allocation and release; its trace is the public way to them.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")
