"""The numbers of the gated stack that runs in PyTorch and in JAX: parameters and batches, without a framework."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCKS: Final = 2
WIDTH: Final = 8
WIDTH_WITHIN: Final = 12
ROWS: Final = 6

Floats = NDArray[np.float64]


@cache
def parameters() -> dict[str, Floats]:
    """The parameters by their names in the module, each `[out, in]` or `[out]`."""
    source, made = np.random.default_rng(11), dict[str, Floats]()
    for block in range(BLOCKS):
        for name, out, into in (
            ("gate", WIDTH_WITHIN, WIDTH),
            ("up", WIDTH_WITHIN, WIDTH),
            ("down", WIDTH, WIDTH_WITHIN),
        ):
            made[f"blocks.{block}.{name}.weight"] = source.normal(size=(out, into)) / into**0.5
            made[f"blocks.{block}.{name}.bias"] = source.normal(size=out) / 4
    return made


def batch(step: int) -> tuple[Floats, Floats]:
    """The input and the target of a step, `[rows, width]` each."""
    source = np.random.default_rng(100 + step)
    return source.normal(size=(ROWS, WIDTH)), source.normal(size=(ROWS, WIDTH))
