"""What only a GPU shows. Untested: written where there was none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

STEPS = 20


def launch_seconds(step: Callable[[], Any]) -> float:
    """Seconds of the CPU's time until a step's kernels are in the queue; where it is the longer, the GPU waits."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    took = time.perf_counter() - began
    torch.cuda.synchronize()
    return took / STEPS


def replay_seconds(step: Callable[[], Any]) -> float | None:
    """Seconds of a step that was captured in a CUDA graph; None where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        return None
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS
