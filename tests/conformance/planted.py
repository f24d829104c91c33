"""An implementation to name on a command line: the input gradient of its column layer is never reduced."""

from __future__ import annotations

from faulty import InputGradient


class Unreduced(InputGradient):
    """Every rank keeps its own term."""

    def __init__(self) -> None:
        super().__init__(lambda terms: terms)
