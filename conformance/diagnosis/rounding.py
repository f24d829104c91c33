"""Bug or rounding: the error of a real-valued case beside its bound and beside that of a correct implementation.

The control is the simulation in NumPy, which rounds as the contract allows and knows nothing of who is examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.adapters.simulated import Simulated
from spec import Case, Observation, Truth
from spec.bounds import bound
from spec.clauses.compare import EXACT, expected_gradients, expected_local, gradient_placement, true_output
from spec.contract import agreement
from spec.numerics import round_to
from spec.placements import Floats, Partial


@dataclass(frozen=True)
class Error:
    """How far one tensor is from the truth.

    Attributes:
        tensor: output, x, weight or bias, the last three being gradients.
        rank: where the error is largest beside its bound.
        error, limit: there; `limit` is the derived bound.
        control: the error of a correct implementation in the same element on the same rank, None without one.
        control_ratio: that implementation's largest error beside its bound, in any element on any rank.
    """

    tensor: str
    rank: int
    error: float
    limit: float
    control: float | None = None
    control_ratio: float | None = None

    @property
    def ratio(self) -> float:
        return self.error / self.limit

    @property
    def excessive(self) -> bool:
        """Whether no rounding that the contract allows explains it."""
        return not self.ratio <= 1

    def __str__(self) -> str:
        label = self.tensor if self.tensor == "output" else f"gradient of {self.tensor}"
        if self.error == 0:
            return f"{label}: no error"
        verdict = "more than rounding" if self.excessive else "rounding"
        text = f"{label}: error {self.error:.3g}, bound {self.limit:.3g}, ratio {self.ratio:.3g}: {verdict}"
        if self.control is None or self.control_ratio is None:
            return f"{text}; no control"
        return f"{text}; a correct one errs by {self.control:.3g} there, at most {self.control_ratio:.3g} of the bound"


def errors(case: Case, truth: Truth, seen: Sequence[Observation]) -> list[Error]:
    """The largest error of each tensor of a real-valued case; none for exact values, where any error is a bug."""
    if case.values in EXACT or not truth.runs or not truth.runs[0].magnitudes:
        return []
    control = _control(case, truth)
    return [_error(case, truth, seen, name, control) for name in _names(case, seen)]


def _names(case: Case, seen: Sequence[Observation]) -> list[str]:
    step = seen[0].steps["first"]
    wanted = [name for name in ("x", "weight", "bias") if name in expected_gradients(case)]
    named = {"output": step.output} | {name: step.gradients.get(name) for name in wanted}
    return [name for name, array in named.items() if array is not None and array.bits]


def _error(
    case: Case, truth: Truth, seen: Sequence[Observation], name: str, control: Sequence[Observation] | None
) -> Error:
    mine = list(_differences(case, truth, seen, name))
    theirs = list(_differences(case, truth, control, name)) if control else None
    worst = [_largest_ratio(error, limit) for error, limit in mine]
    rank = int(np.argmax([ratio for ratio, _ in worst]))
    where, (error, limit) = worst[rank][1], mine[rank]
    if theirs is None:
        return Error(name, rank, float(error[where]), float(limit[where]))
    ratio = max(_largest_ratio(*pair)[0] for pair in theirs)
    return Error(name, rank, float(error[where]), float(limit[where]), float(theirs[rank][0][where]), ratio)


def _differences(case: Case, truth: Truth, seen: Sequence[Observation], name: str) -> Iterator[tuple[Floats, Floats]]:
    """By rank: the error and the bound of every element."""
    for entry in seen:
        step, rank = entry.steps["first"], entry.rank
        array = step.output if name == "output" else step.gradients.get(name)
        expected, limit = _expected(case, truth, name, rank)
        got = array.numbers if array is not None and array.shape == expected.shape else np.full(expected.shape, np.nan)
        yield np.abs(got - expected), limit


def _expected(case: Case, truth: Truth, name: str, rank: int) -> tuple[Floats, Floats]:
    values = truth.runs[0]
    limit = bound(case, name, values.magnitudes[name])
    if name == "output":
        if not isinstance(agreement(case).output.value, Partial):
            limit = true_output(case, limit, rank)
        return true_output(case, values.output, rank), limit
    placement = gradient_placement(case, name)
    return expected_local(case, placement, values.gradients[name], rank), expected_local(case, placement, limit, rank)


def _largest_ratio(error: Floats, limit: Floats) -> tuple[float, tuple[int, ...]]:
    if not error.size:
        return 0.0, ()
    ratios = np.where(np.isnan(error), np.inf, error / np.maximum(limit, 1e-300))
    where = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    return float(ratios[where]), tuple(int(i) for i in where)


class _Control(Simulated):
    """The simulation with sums that accumulate as wide as the contract asks and no wider."""

    def product(self, case: Case, a: Floats, b: Floats) -> Floats:
        wide = np.float64 if case.compute_dtype == "float64" else np.float32
        return round_to((a.astype(wide) @ b.astype(wide)).astype(np.float64), case.compute_dtype)

    def sum_rows(self, case: Case, rows: Floats) -> Floats:
        return self.product(case, np.ones(len(rows)), rows)


def _control(case: Case, truth: Truth) -> Sequence[Observation] | None:
    """What a correct implementation gives on the same values; None where the simulation lacks the layer."""
    if case.layer == "pair":
        return None
    steps = _Control().steps(case, truth.data[0])
    return [Observation(rank, {"first": step}) for rank, step in enumerate(steps)]
