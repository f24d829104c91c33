"""Simulated implementations with one mistake each, for tests of what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conformance.adapters.simulated import Exchange, Simulated
from spec import Case
from spec.placements import Floats

Held = Sequence[Mapping[str, Floats]]


class BiasBeforeReduction(Simulated):
    """Every rank adds the bias to its term."""

    def row_forward(self, case: Case, x: Sequence[Floats], held: Held, exchange: Exchange) -> list[Floats]:
        own = zip(self.own_inputs(case, x), held, strict=True)
        terms = [a @ h["weight"].T + h.get("bias", 0) for a, h in own]
        return exchange.all_reduce(terms)


class InputGradient(Simulated):
    """The column layer's input gradient is what `combine` makes of the ranks' terms."""

    def __init__(self, combine: Callable[[list[Floats]], list[Floats]]) -> None:
        self._combine = combine

    def column_backward(
        self, case: Case, x: Sequence[Floats], held: Held, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        terms = [up @ h["weight"] for up, h in zip(g, held, strict=True)]
        right = super().column_backward(case, x, held, g, exchange)
        return [{**gradients, "x": dx} for gradients, dx in zip(right, self._combine(terms), strict=True)]


class GatherBackward(Simulated):
    """The backward of gather is what `combine` makes of the upstream gradient's slices."""

    def __init__(self, combine: Callable[[list[Floats]], list[Floats]]) -> None:
        self._combine = combine

    def gather_backward(
        self, case: Case, x: object, held: object, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        return [{"x": part} for part in self._combine(self.slices(case, g))]


class RowBiasGradient(Simulated):
    """The row layer's bias gradient is multiplied."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def row_backward(self, *args: Any) -> list[dict[str, Floats]]:
        right = super().row_backward(*args)
        return [{**gradients, "bias": self._factor * gradients["bias"]} for gradients in right]
