"""Times of rounds into medians, spreads and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Times = Mapping[str, Sequence[float]]  # contender -> seconds of a step, round by round


@dataclass(frozen=True)
class Spread:
    """The least, the quartiles and the median of some numbers."""

    least: float
    lower: float
    middle: float
    upper: float


def spread(numbers: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation between the sorted numbers; of one number, that number."""
    if len(numbers) == 1:
        return Spread(*numbers * 4)
    lower, middle, upper = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(min(numbers), lower, middle, upper)


def ratios(times: Times, name: str, to: str) -> Spread:
    """Of one contender to another, round by round: what slows a whole round down is in both."""
    return spread([mine / other for mine, other in zip(times[name], times[to], strict=True)])


def slowest(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A step is over when it is on every rank."""
    return {name: max(answer[name] for answer in answers) for name in answers[0]}


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of this round: each comes first, second, ... equally often, and after either neighbour."""
    start = number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order


def fastest(times: Times, among: Sequence[str]) -> str:
    """The contender of the least median."""
    return min(among, key=lambda name: statistics.median(times[name]))
