"""The element values of a case: a counter-based generator keyed by the case's line, and how large exact values may be.

Everything that a linear layer computes is a polynomial of degree two in its inputs. With nonzero integers small enough
that no sum of the case leaves the integers which its dtype represents, the order of summation cannot matter, and the
check is equality (Megatron-LM tests/unit_tests/tensor_parallel/test_layers.py uses the same idea once).

Subnormal values are the same integers times the smallest subnormal of float16, 2^-24, in one factor of every product:
fixed point, in which sums are as exact as those of integers while no quotient is. An implementation that divides by P
before a reduction and multiplies afterwards passes with any power of two on other values; here it rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from math import isqrt

import numpy as np

from spec.case import EXACT, Case
from spec.contract import agreement
from spec.numerics import FORMATS, round_to
from spec.placements import Floats, Partial, Placement


@dataclass(frozen=True)
class Inputs:
    """The whole tensors of one run of a case, float64 with values of the case's dtype.

    Attributes:
        x: `[*batch, in]`; for the function reduce the ranks' terms, stacked `[P, *batch, in]`.
        weight: `[out, in]`, or None for the four functions.
        bias: `[out]` or None.
        weight2, bias2: of a pair the row layer's, `[out, hidden]` and `[out]`; weight and bias are then
            `[hidden, in]` and `[hidden]`.
        g: the upstream gradient, of the output's shape; for the function copy the ranks' terms, stacked.
    """

    x: Floats
    weight: Floats | None
    bias: Floats | None
    g: Floats
    weight2: Floats | None = None
    bias2: Floats | None = None

    @property
    def parameters(self) -> dict[str, Floats]:
        """The masters that are there, by name."""
        named = {"weight": self.weight, "bias": self.bias, "weight2": self.weight2, "bias2": self.bias2}
        return {name: value for name, value in named.items() if value is not None}


def longest_sum(case: Case) -> int:
    """The number of terms of the longest sum that the case makes: of Y, dX, dW, db, or of a reduction over ranks."""
    if not case.has_parameters:
        return case.P
    widths = (case.in_features, case.hidden_features, agreement(case).output_shape[-1])
    terms = max(*widths, case.rows * (max(case.copies) if case.linear else 1), 1)
    return 2 * terms if case.procedure in ("accumulate", "pipeline", "retain") else terms


def amplitude(case: Case) -> int:
    """The largest a such that integers up to a in magnitude keep every sum of the case exact in its dtype.

    For a linear layer: terms * a * a + a <= limit, the last a being the bias; for a pair, whose sums run over products
    of sums, terms * (terms * a * a + a) * a + a <= limit; for the functions terms * a <= limit, and no more than 2^20,
    so that the inner products of the adjoint law are exact in float64 too.

    Raises:
        ValueError: the sums are too long for exact values in this dtype.
    """
    limit, terms = FORMATS[case.compute_dtype].exact, longest_sum(case)
    if case.layer == "pair":
        largest = _largest_of_pair(terms, limit)
    else:
        largest = (isqrt(1 + 4 * terms * limit) - 1) // (2 * terms) if case.linear else min(limit // terms, 2**20)
    if largest < 1:
        raise ValueError(f"{case}: sums of {terms} terms leave the exact integers of {case.compute_dtype} (to {limit})")
    return min(largest, 2**31 - 1)


def _largest_of_pair(terms: int, limit: int) -> int:
    largest = int((limit / terms**2) ** (1 / 3)) + 1
    while terms * (terms * largest**2 + largest) * largest + largest > limit:
        largest -= 1
    return largest


def unit(case: Case, name: str) -> float:
    """What the numbers drawn for a tensor are multiples of: 1, or for subnormal values the smallest subnormal.

    A linear layer's parameters have it, and so have Y and dX; x and g are plain integers, and so are dW and db. A
    function's tensors all have it.
    """
    scaled = ("weight", "bias") if case.has_parameters else ("x", "g")
    return FORMATS[case.compute_dtype].tiny if case.values == "subnormal" and name in scaled else 1.0


def inputs(case: Case, group: int = 0, run: int = 0) -> Inputs:
    """The tensors of one run of a case in one of its groups.

    The same line gives the same bits everywhere. Different groups share no data. A second run has its own x and g; its
    parameters are those of the first, unless it is another layer's (`interleave`) or they were overwritten (`update`).
    """
    terms = agreement(case)
    draws = _Draws(case, f"{case.text}|group {group}|run {run}")
    x = draws.placed(terms.input.value, terms.input_shape, case.x) * unit(case, "x")
    g = draws.placed(terms.output.gradient, terms.output_shape, case.g) * unit(case, "g")
    if not case.has_parameters:
        return Inputs(x, None, None, g)
    if run and case.procedure not in ("interleave", "update"):
        return replace(inputs(case, group, 0), x=x, g=g)
    middle = case.hidden_features or case.out_features
    weight = draws.tensor((middle, case.in_features)) * unit(case, "weight")
    bias = draws.tensor((middle,)) * unit(case, "bias") if case.bias else None
    if case.layer == "pair":
        bias2 = draws.tensor((case.out_features,)) if case.bias else None
        return Inputs(x, weight, bias, g, draws.tensor((case.out_features, middle)), bias2)
    if case.values == "cancel":
        x, weight = _cancelling(case, x, weight)
    return Inputs(x, weight, bias, g)


def runs(case: Case) -> int:
    """How many runs with data of their own the case's procedure makes."""
    return 2 if case.procedure in ("accumulate", "pipeline", "update", "interleave") else 1


class _Draws:
    """A stream of tensors for one key."""

    def __init__(self, case: Case, key: str) -> None:
        digest = blake2b(key.encode(), digest_size=16).digest()
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        self._kind, self._dtype, self._P = case.values, case.compute_dtype, case.P
        self._amplitude = 0
        if case.values in EXACT:
            self._amplitude = min(3, amplitude(case)) if case.values == "small" else amplitude(case)

    def placed(self, placement: Placement, shape: tuple[int, ...], layout: str) -> Floats:
        """A whole tensor, or the stacked terms of a partial one, no two of which are equal."""
        if not isinstance(placement, Partial):
            return self.tensor(shape, layout)
        for _ in range(8):
            terms = [self.tensor(shape, layout) for _ in range(self._P)]
            if len({term.tobytes() for term in terms}) == self._P:
                break
        return np.stack(terms)

    def tensor(self, shape: tuple[int, ...], layout: str = "contiguous") -> Floats:
        """A tensor whose rows and columns differ where sizes and values allow; expanded: equal along dimension 0."""
        if layout == "expanded" and len(shape) > 1 and shape[0] > 1:
            return np.broadcast_to(self.tensor((1, *shape[1:])), shape)
        value = self._draw(shape)
        for _ in range(8):
            if not _repeats(value):
                break
            value = self._draw(shape)
        return value

    def _draw(self, shape: tuple[int, ...]) -> Floats:
        """Nonzero integers up to the amplitude, or real numbers rounded to the dtype."""
        if self._amplitude:
            few = len(shape) == 1 and shape[0] <= 2 * self._amplitude < 1000
            # A vector of few possible values is drawn without replacement, or its blocks would often be equal.
            steps = (
                self._generator.choice(2 * self._amplitude, shape, replace=False)
                if few
                else self._generator.integers(0, 2 * self._amplitude, shape)
            )
            return np.where(steps < self._amplitude, steps - self._amplitude, steps - self._amplitude + 1).astype(float)
        drawn: Floats = np.asarray(self._generator.standard_normal(shape))
        if self._kind == "positive":
            drawn = np.abs(drawn) + 0.5
        return round_to(drawn, self._dtype)


def _repeats(value: Floats) -> bool:
    """Whether two rows or two columns of a tensor, seen as a matrix, are equal."""
    if value.ndim == 0 or value.size < 2:
        return False
    matrix = value.reshape(-1, value.shape[-1])
    rows = {row.tobytes() for row in matrix}
    return len(rows) < len(matrix) or len({column.tobytes() for column in matrix.T}) < matrix.shape[1]


def _cancelling(case: Case, x: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Values whose ranks' products are large and nearly cancel: neighbours hold equal x and opposite weights."""
    width = case.in_features // case.P
    x, signed = x.copy(), weight.copy()
    for r in range(1, case.P, 2):
        mine, neighbour = slice(r * width, (r + 1) * width), slice((r - 1) * width, r * width)
        x[..., mine] = x[..., neighbour]
        signed[:, mine] = -64 * weight[:, neighbour] + weight[:, mine]
        signed[:, neighbour] = 64 * weight[:, neighbour]
    return x, round_to(signed, case.compute_dtype)
