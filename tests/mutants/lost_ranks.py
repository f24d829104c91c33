"""Ranks that fail: rank 1 alone raises, dies, stays away, or brings something else, while the others are in a sum.

Implementations for `--impl tests/mutants/lost_ranks.py:<class>`; what is to be said of each is in `lost_ranks.toml`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives
from torch_tp.collectives import all_reduce, start_all_reduce
from torch_tp.layers import column
from torch_tp.layers.products import column_product


class Raises(TorchTp):
    """Rank 1 runs out of memory where the others wait for it: turboderp-org/exllamav3#302."""

    def set_up(self, group: Group) -> None:
        def sum_or_raise(buffer: Tensor, group: Any, what: str) -> Tensor:
            if group.rank == 1:
                print("not enough memory for", what)
                raise MemoryError("no room for the buffer")
            return all_reduce(buffer, group, what)

        collectives.all_reduce = sum_or_raise


class Exits(TorchTp):
    """Rank 1 calls sys.exit, which is an exception too, though none that `except Exception` sees."""

    def set_up(self, group: Group) -> None:
        def sum_or_exit(buffer: Tensor, group: Any, what: str) -> Tensor:
            if group.rank == 1:
                sys.exit(3)
            return all_reduce(buffer, group, what)

        collectives.all_reduce = sum_or_exit


class Dies(TorchTp):
    """The process of rank 1 is killed, as the kernel does when memory runs out: turboderp-org/exllamav3#302."""

    def set_up(self, group: Group) -> None:
        def sum_or_die(buffer: Tensor, group: Any, what: str) -> Tensor:
            if group.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return all_reduce(buffer, group, what)

        collectives.all_reduce = sum_or_die


class StaysAway(TorchTp):
    """Rank 1 finds it has nothing to add and leaves the sum out: sgl-project/sglang#33289."""

    def set_up(self, group: Group) -> None:
        def sum_or_not(buffer: Tensor, group: Any, what: str) -> Tensor:
            return buffer if group.rank == 1 else all_reduce(buffer, group, what)

        collectives.all_reduce = sum_or_not


class StaysAwayInBackward(TorchTp):
    """Rank 1 leaves the sum of the input's gradient out, after a forward in which nothing is missed."""

    def set_up(self, group: Group) -> None:
        def sum_or_not(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            return (lambda: buffer) if group.rank == 1 else start_all_reduce(buffer, group, what)

        collectives.start_all_reduce = sum_or_not


class StaysAwayWhenEmpty(TorchTp):
    """Rank 1 leaves out the sum of an empty batch, which nobody misses until the next: sgl-project/sglang#33289."""

    def set_up(self, group: Group) -> None:
        def sum_of_some(buffer: Tensor, group: Any, what: str) -> Tensor:
            empty = group.rank == 1 and buffer.numel() == 0
            return buffer if empty else all_reduce(buffer, group, what)

        collectives.all_reduce = sum_of_some


class AnotherSize(TorchTp):
    """Rank 1 enters the sum with twice as many elements: NVIDIA/nccl#1417."""

    def set_up(self, group: Group) -> None:
        def sum_of_another(buffer: Tensor, group: Any, what: str) -> Tensor:
            mine = torch.cat([buffer, buffer]) if group.rank == 1 else buffer
            return all_reduce(mine, group, what)[: len(buffer)]

        collectives.all_reduce = sum_of_another


class AnotherDtype(TorchTp):
    """Rank 1 enters the sum with float16, whose elements are as large as the others' bfloat16: nothing waits."""

    def set_up(self, group: Group) -> None:
        def sum_of_another(buffer: Tensor, group: Any, what: str) -> Tensor:
            mine = buffer.half() if group.rank == 1 else buffer
            return all_reduce(mine, group, what).to(buffer.dtype)

        collectives.all_reduce = sum_of_another


class AnotherOrder(TorchTp):
    """There are two sums to make, and rank 1 makes the second first."""

    def set_up(self, group: Group) -> None:
        def two_sums(buffer: Tensor, group: Any, what: str) -> Tensor:
            sums = [buffer, buffer.new_zeros(1000)]
            for number in (1, 0) if group.rank == 1 else (0, 1):
                sums[number] = all_reduce(sums[number], group, what)
            return sums[0]

        collectives.all_reduce = two_sums


class NeverEnds(TorchTp):
    """The column layer doubles the size of its batch until it is large enough, and an empty one never is."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            rows = x.shape[:-1].numel()
            while rows < 8:
                rows *= 2
            return column_product(x, weight, bias, group)

        column.column_product = product
