"""Compiled cases: one graph or failure, and the collectives read from the graphs.

A TorchDispatchMode makes compiled functions fall back to eager without a word, so compiled cases run without one; what
they communicate is read from the graphs that the compiler was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from conformance.adapters.torch_run import Run
from conformance.adapters.watch import graph_collectives
from spec import Collective


class Compiled:
    """A callable that compiles on its first call, with fullgraph, and keeps the graphs it was given.

    Attributes:
        graphs: how many graphs the forward needed; 0 if it never was compiled.
    """

    def __init__(self, call: Callable[[torch.Tensor], Any], inductor: bool) -> None:
        torch._dynamo.reset()
        self.graphs = 0
        self._traced: list[tuple[str, Any]] = []
        self._call = torch.compile(
            call, fullgraph=True, dynamic=False, backend=self._inductor if inductor else self._eager
        )

    def __call__(self, x: torch.Tensor) -> Any:
        return self._call(x)

    def collectives(self) -> tuple[Collective, ...] | None:
        """Those of the forward's graph, then those of the backward's; None if the graphs were not seen."""
        return graph_collectives(self._traced) if self._traced else None

    def _eager(self, module: Any, example_inputs: Any) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        self.graphs += 1
        return aot_autograd(fw_compiler=self._keep("forward"), bw_compiler=self._keep("backward"))(
            module, example_inputs
        )

    def _inductor(self, module: Any, example_inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx

        self.graphs += 1
        return compile_fx(module, example_inputs)

    def _keep(self, phase: str) -> Callable[[Any, Any], Any]:
        from functorch.compile import make_boxed_func

        def compiler(module: Any, example_inputs: Any) -> Any:
            self._traced.append((phase, module.graph))
            return make_boxed_func(module.forward)

        return compiler


@contextmanager
def unwatched(run: Run) -> Iterator[None]:
    """Run without the dispatch mode that records collectives."""
    log, run.log = run.log, _NoLog()
    try:
        yield
    finally:
        run.log = log


class _NoLog(nullcontext[None]):
    """Stands in for a CollectiveLog."""

    phase = ""

    def take(self) -> tuple[Collective, ...]:
        return ()
