"""Ranks that fail as a test asks them to: by the seed, once, or between two collectives."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from spec import Case
from torch_tp import collectives
from torch_tp.collectives import all_reduce


def _raise() -> None:
    raise MemoryError("no room for the buffer")


def _spin() -> None:
    while True:
        pass


# What a seed asks of rank 1; "" is innocent. Exceptions cost the others' grace twice, so there are few.
MOODS = (
    *("", "die", "sleep", "exit", "raise", "stay away", "crash", "die", "spin", "exit", "sleep"),
    *("", "die", "sleep", "exit", "leave", "stay away", "crash", "die", "spin", "exit", "crash"),
)
LOSSES: dict[str, Callable[[], Any]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": lambda: time.sleep(600),
    "spin": _spin,
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "leave": lambda: sys.exit(3),
    "crash": lambda: ctypes.string_at(0),
}


class SleepsAfterwards(TorchTp):
    """Rank 1 never comes back from work of its own after a sum, and the others wait in the next one."""

    def set_up(self, group: Group) -> None:
        def sum_and_sleep(buffer: Tensor, group: Any, what: str) -> Tensor:
            total = all_reduce(buffer, group, what)
            if group.rank == 1:
                time.sleep(600)
            return total

        collectives.all_reduce = sum_and_sleep


class LosesAsAsked(TorchTp):
    """What rank 1 does around its sums depends on the case's seed; some seeds lose no rank."""

    mood = ""

    def unsupported(self, case: Case) -> str:
        self.mood = MOODS[case.seed % len(MOODS)]
        return ""

    def set_up(self, group: Group) -> None:
        def sum_or_lose(buffer: Tensor, group: Any, what: str) -> Tensor:
            if group.rank != 1:
                return all_reduce(buffer, group, what)
            if self.mood == "stay away":
                return buffer
            if self.mood in LOSSES:
                LOSSES[self.mood]()
            return all_reduce(buffer, group, what)

        collectives.all_reduce = sum_or_lose


class DiesOnce(TorchTp):
    """Rank 1 dies in the first layer it builds, and never again once the file named by PLANTED_FLAG is there."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        flag = Path(os.environ["PLANTED_FLAG"])
        if layer.rank == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(layer, group)


class HangsOnceOthersSlow(TorchTp):
    """Three batch dimensions never end; what else a fresh rank is first asked takes longer than it may after a hang."""

    slow = True

    def call(self, module: Any, x: Tensor) -> Any:
        while x.dim() == 4:
            time.sleep(0.01)
        if self.slow:
            time.sleep(1.5)
        self.slow = False
        return super().call(module, x)


class Slow(TorchTp):
    """Every layer takes three seconds to build."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        time.sleep(3)
        return super().build(layer, group)


class SlowAndSaysSo(Slow):
    """The same, with a deadline of its own."""

    deadline = 60.0


class SlowAndOnceStuck(TorchTp):
    """Three batch dimensions never end, everything else takes two seconds, and four are asked for."""

    deadline = 4.0

    def call(self, module: Any, x: Tensor) -> Any:
        time.sleep(600 if x.dim() > 2 else 2)
        return super().call(module, x)
