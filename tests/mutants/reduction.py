"""Mistakes about sums over ranks: left out, averaged, counting a rank wrongly, reaching some, read too early.

Implementations for `--impl tests/mutants/reduction.py:<class>`; what is to be said of each is in `reduction.toml`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, functions
from torch_tp.collectives import all_gather, all_reduce, start_all_reduce
from torch_tp.functions import sum_over
from torch_tp.layers import row
from torch_tp.layers.products import row_product

parallel = row.RowParallelLinear._parallel
# Above what starting a collective takes, below the 2 ms that the suite holds a rank back.
PATIENCE = 0.0018


class ReductionResultDropped(TorchTp):
    """The sum is made in a copy, and nobody uses it: microsoft/ltp-megatron-lm#68."""

    def set_up(self, group: Group) -> None:
        def dropped(buffer: Tensor, group: Any, what: str) -> Tensor:
            all_reduce(buffer.clone(), group, what)
            return buffer

        collectives.all_reduce = dropped


class ReturnsNothing(TorchTp):
    """The row layer returns what dist.all_reduce returns, which is None: Wenyueh/MinivLLM#13."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> None:
            row_product(x, weight, bias, group)

        row.row_product = product


class Averages(TorchTp):
    """The ranks' terms are averaged: Lightning-AI/pytorch-lightning#18228."""

    def set_up(self, group: Group) -> None:
        collectives.all_reduce = lambda buffer, group, what: all_reduce(buffer, group, what) / group.size


class LastTermMissing(TorchTp):
    """The last rank contributes zeros."""

    def set_up(self, group: Group) -> None:
        def without_last(buffer: Tensor, group: Any, what: str) -> Tensor:
            last = group.rank == group.size - 1
            return all_reduce(torch.zeros_like(buffer) if last else buffer, group, what)

        collectives.all_reduce = without_last


class FirstTermTwice(TorchTp):
    """Rank 0 is both where the sum begins and a rank to be added."""

    def set_up(self, group: Group) -> None:
        def first_twice(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(2 * buffer if group.rank == 0 else buffer, group, what)

        collectives.all_reduce = first_twice


class SumsNeighbours(TorchTp):
    """The sums of neighbouring ranks are added up, which is right for two ranks only: pytorch/tutorials#1039."""

    def set_up(self, group: Group) -> None:
        def of_pairs(buffer: Tensor, group: Any, what: str) -> Tensor:
            pairs = (group.rank > 0) + (group.rank < group.size - 1)
            return all_reduce(pairs * buffer, group, what)

        collectives.all_reduce = of_pairs


class SumOnRankZero(TorchTp):
    """The sum reaches rank 0, and the others keep their terms."""

    def set_up(self, group: Group) -> None:
        def on_first(buffer: Tensor, group: Any, what: str) -> Tensor:
            total = all_reduce(buffer.clone(), group, what)
            return total if group.rank == 0 else buffer

        collectives.all_reduce = on_first


class PartialReduced(TorchTp):
    """The row layer sums its output though reduce_output=False asks for the rank's own term."""

    def set_up(self, group: Group) -> None:
        def summed(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            y = parallel(layer, x, weight, bias, group)
            return y if layer.reduce_output else sum_over(y, group)

        row.RowParallelLinear._parallel = summed


class EmptySumLeftOut(TorchTp):
    """No rank sums an empty tensor, while the ranks of another kind of layer wait: sgl-project/sglang#33289."""

    def set_up(self, group: Group) -> None:
        def of_some(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer, group, what) if buffer.numel() else buffer

        collectives.all_reduce = of_some


class SumByGather(TorchTp):
    """The sum is right, but every rank receives every term for it."""

    def set_up(self, group: Group) -> None:
        def by_gather(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_gather(buffer.unsqueeze(0), 0, group, what).sum(0)

        collectives.all_reduce = by_gather


class OwnTermFirst(TorchTp):
    """Every rank adds the terms up from its own, so that ranks round differently."""

    def set_up(self, group: Group) -> None:
        def from_own(buffer: Tensor, group: Any, what: str) -> Tensor:
            terms = all_gather(buffer.unsqueeze(0), 0, group, what).roll(-group.rank, 0)
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            return total

        collectives.all_reduce = from_own


class CopySumsForward(TorchTp):
    """copy sums in the forward as well: a replicated value becomes P times itself."""

    def set_up(self, group: Group) -> None:
        def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
            ctx.group = group
            return all_reduce(x.clone(), group, "torch_tp.copy")

        functions._Copy.forward = staticmethod(forward)


class NeverWaited(TorchTp):
    """The handle of the reduction is dropped, and the buffer read at once: tenstorrent/tt-metal#46580."""

    def set_up(self, group: Group) -> None:
        def unfinished(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            total = buffer.contiguous()
            dist.all_reduce(total, group=group.require(what, "an all-reduce is needed"), async_op=True)
            return total.clone

        collectives.start_all_reduce = unfinished


class LateRankGivesUp(TorchTp):
    """A rank that is late for a sum takes what it has by then, which is its own term."""

    def set_up(self, group: Group) -> None:
        def impatient(buffer: Tensor, group: Any, what: str) -> Tensor:
            own, begun = buffer.clone(), time.monotonic()
            finish = start_all_reduce(buffer, group, what)
            late = time.monotonic() - begun > PATIENCE
            total = finish()
            return own if late else total

        collectives.all_reduce = impatient
