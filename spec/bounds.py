"""How far a correct implementation may be from the truth on real values: a derived bound, not a tuned tolerance.

For a sum of products computed on one rank with n terms and roundoff u_acc, then rounded and combined in q further
operations of roundoff u, the error is at most

    E = ((1 + gamma(n, u_acc)) (1 + gamma(q, u)) - 1) * M + (P + 2) * tiny,      gamma(k, u) = k u / (1 - k u)

with M the same sum over absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
q is 2 without a reduction over ranks and P + 1 with one; of the gradient of a slice that c ranks hold it is c + 1.
Doubled for float64, whose reference rounds as well.
"""

from __future__ import annotations

import numpy as np

from spec.case import COLUMN_LIKE, Case
from spec.contract import agreement
from spec.numerics import FORMATS
from spec.placements import Floats


def gamma(k: int, u: float) -> float:
    """gamma(k, u) = k u / (1 - k u).

    Raises:
        ValueError: gamma >= 1/4, where the bound says too little; no such case is generated.
    """
    value = k * u / (1 - k * u) if k * u < 1 else 1.0
    if value >= 0.25:
        raise ValueError(f"{k} operations of roundoff {u:g} are too many for a bound that means anything")
    return value


def longest(case: Case, name: str) -> int:
    """n: the number of terms of the sum behind one element of `name` (output, x, weight, bias) on one rank."""
    if not case.linear:
        return 0
    split_in = case.P if case.layer == "row" else 1
    split_out = case.P if case.layer in COLUMN_LIKE else 1
    return {
        "output": case.in_features // split_in + 1,
        "x": agreement(case).output_shape[-1] // split_out,
        "weight": max(case.rows, 1),
        "bias": max(case.rows, 1),
    }[name]


def reduced(case: Case, name: str) -> bool:
    """Whether the ranks' terms of `name` are summed by a collective."""
    if case.P == 1:
        return False
    if name == "output":
        return case.layer == "reduce" or (case.layer == "row" and case.reduce_output)
    return name == "x" and case.layer in (*COLUMN_LIKE, "copy")


def _after(case: Case, name: str, dimensions: int) -> Floats:
    """gamma(q, u), as one number or by row of a parameter: of a slice that c ranks hold their c terms are summed."""
    u = FORMATS[case.compute_dtype].roundoff
    if name not in ("weight", "bias") or max(case.copies) == 1:
        return np.array(gamma(case.P + 1 if reduced(case, name) else 2, u))
    by_row = np.repeat([gamma(c + 1 if c > 1 else 2, u) for c in case.copies], case.sizes)
    return by_row.reshape(-1, *[1] * (dimensions - 1))


def bound(case: Case, name: str, magnitude: Floats) -> Floats:
    """E for every element of output, x (its gradient), weight or bias; `magnitude` is M."""
    form = FORMATS[case.compute_dtype]
    own = gamma(longest(case, name), form.accumulator)
    after = _after(case, name, magnitude.ndim)
    error = ((1 + own) * (1 + after) - 1) * magnitude + (case.P + 2) * form.tiny
    return 2 * error if case.compute_dtype == "float64" else error
