"""The models' benchmark inside a rank. Commands and answers are JSON.

build        size, names  -> name: "", or why it cannot take part
round        order        -> name: seconds of one step on this rank
collectives  names        -> name: [kind, bytes] of each collective of one step
weights      names        -> name: bytes of this rank's parameters; "expected": a P-th of what is cut, and the rest
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.models.llama import BUILDERS, Contender, build, disagreement, expected_bytes
from benchmarks.models.sizes import Size
from conformance.ranks.values import Context


def models(context: Context) -> Callable[[bytes], bytes]:
    """A handler that keeps the contenders of one size."""
    bench = Bench()

    def handle(command: bytes) -> bytes:
        words = json.loads(command)
        return json.dumps(getattr(bench, words.pop("do"))(**words)).encode()

    return handle


class Bench:
    """The contenders of one size, built and checked."""

    def __init__(self) -> None:
        self._contenders: dict[str, Contender] = {}
        self._expected = 0.0

    def build(self, size: Mapping[str, int], names: Sequence[str]) -> dict[str, str]:
        """Build the contenders from the same values; one whose step is not that of the dense model is kept out."""
        self._contenders.clear()
        asked = Size(**size)
        whole = build(asked)
        source = torch.Generator().manual_seed(0)
        tokens = torch.randint(asked.vocabulary, (asked.batch, asked.length), generator=source)
        self._expected = expected_bytes(whole, dist.get_world_size())
        reasons = {}
        for name in names:
            try:
                contender = Contender(BUILDERS[name](copy.deepcopy(whole)), tokens)
                reasons[name] = disagreement(contender, Contender(whole, tokens))
            except Exception as error:  # a library's own, on all ranks alike; the others go on without it
                reasons[name] = f"raises {type(error).__name__}: {error}"
            if not reasons[name]:
                self._contenders[name] = contender
        return reasons

    def round(self, order: Sequence[str]) -> dict[str, float]:
        """Each contender in turn: all ranks begin together. The dense model needs one rank, and the others wait."""
        return {name: self._seconds(name) for name in order}

    def collectives(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self._contenders[name].collectives() for name in names}

    def weights(self, names: Sequence[str]) -> dict[str, float]:
        return {**{name: self._contenders[name].weight_bytes() for name in names}, "expected": self._expected}

    def _seconds(self, name: str) -> float:
        dist.barrier()
        if name == "dense" and dist.get_rank():
            return 0.0
        began = time.perf_counter()
        self._contenders[name].step()
        return time.perf_counter() - began
