"""What the checks share: which step shows which run, and how two tensors are compared and described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spec.case import EXACT, WITHOUT_VALUES, Case
from spec.contract import agreement, needs_gradient, runs_backward
from spec.observation import Array, Observation, Step
from spec.placements import Floats, Partial, Placement, local
from spec.register import Violation


def has_values(case: Case) -> bool:
    """Whether the case computes an output that can be held against the truth."""
    return case.procedure not in WITHOUT_VALUES


def exact(case: Case) -> bool:
    """Whether the output must equal the truth, with no tolerance."""
    return has_values(case) and case.values in EXACT


def differentiates(case: Case) -> bool:
    return exact(case) and runs_backward(case)


def steps(seen: Sequence[Observation]) -> Iterator[tuple[int, Step]]:
    """(rank, step) of the first run, which the clauses of forward and backward hold against the truth.

    What a second run must be is the business of its procedure's own clause.
    """
    for observation in seen:
        step = observation.steps.get("first")
        if step is not None:
            yield observation.rank, step


def expected_gradients(case: Case) -> frozenset[str]:
    """The names whose gradient must be there after the backward: a bias that is only returned gets none."""
    if not runs_backward(case):
        return frozenset()
    return needs_gradient(case) - ({"bias"} if case.skip_bias_add else frozenset())


def gradient_placement(case: Case, name: str) -> Placement:
    terms = agreement(case)
    return terms.input.gradient if name == "x" else terms.parameters[name]


def expected_local(case: Case, placement: Placement, whole: Floats, rank: int) -> Floats:
    return local(placement, whole, case.P, rank)


def difference(got: Array | None, expected: Floats, limit: Floats | None = None) -> tuple[str, str, str] | None:
    """How a tensor differs from what it should be, as (what, expected, got), or None where it does not.

    Without a limit the check is equality of numbers (+0 = -0); with one, |got - expected| <= limit in every element.
    """
    if got is None:
        return "is missing", f"a tensor of shape {list(expected.shape)}", "None"
    if got.shape != expected.shape:
        return "has the wrong shape", str(list(expected.shape)), str(list(got.shape))
    numbers = got.numbers
    if limit is None:
        if np.array_equal(numbers, expected):
            return None
        wrong = numbers != expected
    else:
        wrong = ~(np.abs(numbers - expected) <= limit)
        if not wrong.any():
            return None
    return describe(numbers, expected, wrong, limit)


def describe(numbers: Floats, expected: Floats, wrong: np.ndarray, limit: Floats | None) -> tuple[str, str, str]:
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    what = f"differs in {int(wrong.sum())} of {wrong.size} elements, first at {list(first)}"
    if limit is not None:
        error = np.abs(numbers - expected)
        worst = np.unravel_index(int(np.argmax(np.where(wrong, error / np.maximum(limit, 1e-300), 0))), error.shape)
        ratio = error[worst] / max(limit[worst], 1e-300)
        what += f"; worst error {error[worst]:.3g}, bound {limit[worst]:.3g}, ratio {ratio:.3g}"
    return what, show(expected), show(numbers)


def shown(array: Array | None) -> str:
    """A tensor with its dtype and shape, for people."""
    return "None" if array is None else f"{array} {show(array.numbers)}"


def show(value: Floats) -> str:
    """A tensor for people: all of it while small."""
    return np.array2string(value, threshold=24, edgeitems=2, separator=", ", precision=9, max_line_width=110)


def compare(
    rank: int, step: Step, label: str, got: Array | None, expected: Floats, limit: Floats | None = None
) -> Iterator[Violation]:
    found = difference(got, expected, limit)
    if found:
        what, wanted, seen = found
        yield Violation(rank, step.name, f"{label} {what}", wanted, seen)


def true_output(case: Case, whole: Floats, rank: int) -> Floats:
    placement = agreement(case).output.value
    return whole[rank] if isinstance(placement, Partial) else local(placement, whole, case.P, rank)


def same_bits(one: Array | None, other: Array | None) -> bool:
    return (
        one == other
        if one is None or other is None
        else (one.bits, one.dtype, one.shape) == (other.bits, other.dtype, other.shape)
    )


def same_numbers(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one.numbers, other.numbers)
