"""What the benchmarks run inside ranks: a bare loop, the suite's own handler with a clock, and faults on command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.clock import with_clock
from conformance.ranks.values import Context, Raised


def clocked(context: Context) -> Callable[[bytes], bytes | Raised]:
    """The suite's handler; each answer says how long it took."""
    from conformance.adapters.serve import serve

    handler = serve(context)

    def handle(command: bytes) -> bytes | Raised:
        began = time.perf_counter()
        answer = handler(command)
        took = time.perf_counter() - began
        refused = isinstance(answer, Raised)
        return Raised(with_clock(took, answer.payload)) if refused else with_clock(took, answer)

    return handle


def bare(context: Context) -> Callable[[bytes], bytes]:
    """A plain loop: `build` and case lines prepare it, `loop N` runs each of them N times and answers the seconds."""
    loop: list[Step] = []

    def handle(command: bytes) -> bytes:
        word, _, rest = command.decode().partition(" ")
        if word == "build":
            loop[:] = [Step(context, line) for line in rest.splitlines()]
            return b""
        dist.barrier()
        began = time.perf_counter()
        for _ in range(int(rest)):
            for step in loop:
                step()
        return with_clock(time.perf_counter() - began, b"")

    return handle


class Step:
    """One forward and backward of one case's layer, whose parameters and inputs are there already."""

    def __init__(self, context: Context, line: str) -> None:
        from conformance.adapters.protocol import Group
        from conformance.adapters.torch_session import TorchSession
        from conformance.adapters.torch_tp import TorchTp
        from spec import Case, inputs

        case = Case.parse(line)
        ranks = next(ranks for ranks in case.group_ranks if context.rank in ranks)
        group = Group(ranks.index(context.rank), case.P, context.groups[ranks], context.device, context.rank)
        session = TorchSession(TorchTp(), group)
        data = inputs(case, case.group_ranks.index(ranks))
        built = session.build(case, data)
        run = session.start(case, data, built)
        self._module = built.module
        self._x, self._g = run.x.tensor, run.g.tensor if run.g else None

    def __call__(self) -> None:
        output: Any = self._module(self._x)
        output = output[0] if isinstance(output, tuple) else output
        if self._g is not None and output.requires_grad:
            torch.autograd.backward(output, self._g)
            self._x.grad = None
            self._module.zero_grad()


def faulty(context: Context) -> Callable[[bytes], bytes]:
    """`nothing`, `reduce`, or a fault of rank 0 that leaves the others in an all-reduce: `raise`, `kill`, `hang`."""

    def handle(command: bytes) -> bytes:
        word = command.decode()
        if word == "nothing":
            return b""
        if context.rank == 0 and word != "reduce":
            _fault(word)
        dist.all_reduce(torch.ones(1))
        return b""

    return handle


def _fault(word: str) -> None:
    if word == "raise":
        raise ArithmeticError("thrown on purpose")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)
