"""What a pass is worth: how likely one example misses a fault that is there.

Outputs and gradients of all layers but the pair are polynomials of degree two at most in the values of a case, and so
is what many a fault makes of them: a term too much, a term missing, one for another. Right minus wrong is then such a
polynomial as well, and where it is not zero at the case's shape, flags and layouts, values drawn from a set S are a
zero of it with probability at most 2/|S| (Schwartz-Zippel). Nothing is said of other faults, of a pair, which is a
polynomial only between the kinks of relu, and of real values, which are judged by a derived bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb, prod

from spec import Case, agreement, amplitude
from spec.case import EXACT, WITHOUT_VALUES
from spec.contract import runs_backward
from spec.placements import Partial, Placement
from spec.values import runs

FAULT = "a fault that is polynomial, of degree two at most, and shows in the example's shape, flags and layouts"


def value_count(case: Case) -> int | None:
    """|S|, the number of values that each element is drawn from; None where no bound is stated."""
    if case.layer == "pair" or case.procedure in WITHOUT_VALUES or case.values not in EXACT:
        return None
    largest = amplitude(case)
    return 2 * (min(3, largest) if case.values == "small" else largest)


def miss_probability(case: Case) -> float | None:
    """At most how likely the case misses a fault that meets the condition; None where no bound is stated.

    That is 2/|S| for independent values. Tensors with equal rows or columns are drawn again, which makes each of the
    others more likely by the inverse of the probability of being kept, at most.
    """
    count = value_count(case)
    if count is None:
        return None
    kept = prod(_kept(case, count)) ** (runs(case) * len(case.group_ranks))
    return min(1.0, 2 / count / kept) if kept else 1.0


def bound_sentence(case: Case) -> str:
    """What it is worth that this case passed; empty where no bound is stated."""
    count, miss = value_count(case), miss_probability(case)
    if count is None or miss is None:
        return ""
    if miss == 1:
        return f"no bound on what this one draw misses: too few values, |S| = {count}"
    return (
        f"one draw from |S| = {count} values misses {FAULT},\nwith probability at most {miss:.2g}"
        " (Schwartz-Zippel: 2/|S|, more where equal rows or columns are drawn again)"
    )


def _kept(case: Case, count: int) -> Iterator[float]:
    """For every tensor of one run: at least how likely independent values would be kept."""
    terms = agreement(case)
    tensors = [(terms.input.value, terms.input_shape, case.x)]
    if runs_backward(case):
        tensors.append((terms.output.gradient, terms.output_shape, case.g))
    for placement, shape, layout in tensors:
        drawn = (1, *shape[1:]) if layout == "expanded" and len(shape) > 1 and shape[0] > 1 else shape
        yield from _kept_of(placement, drawn, count, case.P)
    if case.linear:
        yield _without_repeats((case.out_features, case.in_features), count)
        yield _without_repeats((case.out_features,), count) if case.bias else 1.0


def _kept_of(placement: Placement, shape: tuple[int, ...], count: int, P: int) -> Iterator[float]:
    """The terms of a partial tensor are drawn one by one, and again if two of them are equal."""
    partial = isinstance(placement, Partial)
    yield _without_repeats(shape, count) ** (P if partial else 1)
    if partial and prod(shape):
        yield max(0.0, 1 - comb(P, 2) * float(count) ** -prod(shape))


def _without_repeats(shape: tuple[int, ...], count: int) -> float:
    """At least how likely no two rows and no two columns of a matrix are equal, by the union bound.

    Where two always are, it is drawn again in vain and stays as it came: independent.
    """
    if prod(shape) < 2:
        return 1.0
    columns, rows = shape[-1], prod(shape[:-1])
    if columns > count**rows or rows > count**columns:
        return 1.0
    equal = comb(rows, 2) * float(count) ** -columns + comb(columns, 2) * float(count) ** -rows
    return max(0.0, 1 - equal)
