"""From a wrong tensor's numbers to a sentence: each known mistake by its own, a right tensor and noise by none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from conformance.diagnosis.guesses import fitting, ranks
from conformance.diagnosis.tensors import Tensor
from spec.placements import Floats

P = 4
_draw = np.random.default_rng(0)
TERMS = tuple(_draw.integers(1, 100, (5, 7)).astype(float) for _ in range(P))
BIAS = _draw.integers(1, 100, 7).astype(float)
WHOLE = _draw.integers(1, 1000, (12, 7)).astype(float)
SLICES = tuple(np.split(WHOLE, P))
SQUARE = _draw.integers(1, 1000, (8, 8)).astype(float)
SUM = sum(TERMS)


def of_rank(make: Callable[[int], Floats]) -> tuple[Floats, ...]:
    return tuple(make(r) for r in range(P))


ROW_OUTPUT = Tensor(
    "output", (), of_rank(lambda r: SUM + BIAS), TERMS, of_rank(lambda r: np.broadcast_to(BIAS, (5, 7)))
)
SHARD = Tensor("weight", (), SLICES, whole=WHOLE, dim=0)
JOINED = Tensor("output", (), of_rank(lambda r: WHOLE), whole=WHOLE, dim=0)
SQUARE_SHARD = Tensor("weight", (), tuple(np.split(SQUARE, P)), whole=SQUARE, dim=0)
COLUMN_OUTPUT = Tensor(
    "output",
    (),
    tuple(part + b for part, b in zip(SLICES, np.split(np.repeat(BIAS[:4], 3), P), strict=True) for b in [b[:, None]]),
    bias=tuple(np.broadcast_to(b, (3, 7)) for b in BIAS[:4]),
    whole=np.concatenate([part + b for part, b in zip(SLICES, BIAS, strict=False)]),
    dim=0,
)
EQUAL = Tensor("gradient of bias", (), of_rank(lambda r: BIAS))
ORDER = (2, 0, 3, 1)

MISTAKES: list[tuple[Tensor, Callable[[int], Floats], str]] = [
    (ROW_OUTPUT, lambda r: SUM + 4 * BIAS, "a bias that is counted P times"),
    (ROW_OUTPUT, lambda r: SUM + 2 * BIAS, "a bias that is counted 2 times"),
    (ROW_OUTPUT, lambda r: SUM, "a bias that is never added"),
    (ROW_OUTPUT, lambda r: SUM + BIAS / 4, "a bias that is divided by P"),
    (ROW_OUTPUT, lambda r: SUM + BIAS * (r == 0), "a bias that is added on rank 0 alone"),
    (ROW_OUTPUT, lambda r: TERMS[r] + BIAS, "a reduction that is missing: each rank holds its own term"),
    (ROW_OUTPUT, lambda r: 4 * SUM + BIAS, "a reduction that is made twice"),
    (ROW_OUTPUT, lambda r: 4 * (SUM + BIAS), "a reduction that is made twice"),
    (ROW_OUTPUT, lambda r: SUM / 4 + BIAS, "a reduction that averages"),
    (ROW_OUTPUT, lambda r: (SUM + BIAS) / 4, "a reduction that averages"),
    (ROW_OUTPUT, lambda r: SUM - TERMS[2] + BIAS, "a sum without the term of rank 2"),
    (ROW_OUTPUT, lambda r: TERMS[1] + BIAS, "a sum without the term of ranks 0, 2 and 3"),
    (ROW_OUTPUT, lambda r: SUM - TERMS[r] + BIAS, "a sum without the term of the rank itself"),
    (ROW_OUTPUT, lambda r: SUM + TERMS[3] + BIAS, "a sum in which the term of rank 3 is counted twice"),
    (ROW_OUTPUT, lambda r: SUM + TERMS[r] + BIAS, "a sum in which the term of the rank itself is counted twice"),
    (ROW_OUTPUT, lambda r: SUM + TERMS[1] - TERMS[2] + BIAS, "a sum that counts the ranks' terms 1 2 0 1 times"),
    (ROW_OUTPUT, lambda r: (SUM if r == 0 else TERMS[r]) + BIAS, "a reduction whose result reaches rank 0 alone"),
    (SHARD, lambda r: SLICES[0], "rank 0's slice on every rank"),
    (SHARD, lambda r: SLICES[3 - r], "slices in reversed rank order"),
    (SHARD, lambda r: SLICES[(r + 1) % 4], "slices that are shifted by one rank"),
    (SHARD, lambda r: SLICES[ORDER[r]], "slices in rank order 2 0 3 1"),
    (SHARD, lambda r: WHOLE[r::4], "slices that are strided, not blocked"),
    (SHARD, lambda r: np.roll(WHOLE, -1, 0)[3 * r : 3 * r + 3], "a slice that is shifted by one element"),
    (SHARD, lambda r: WHOLE, "the whole where a slice should be"),
    (SHARD, lambda r: sum(SLICES), "a sum over the ranks of what each should keep for itself"),
    (SHARD, lambda r: sum(SLICES) / 4, "a mean over the ranks of what each should keep for itself"),
    (SHARD, lambda r: SLICES[r].T, "a transposed matrix"),
    (SQUARE_SHARD, lambda r: np.split(SQUARE, P, 1)[r], "a slice along another dimension"),
    (SQUARE_SHARD, lambda r: np.split(SQUARE.T, P)[r], "a transposed matrix"),
    (COLUMN_OUTPUT, lambda r: SLICES[r] + BIAS[0], "another rank's slice of the bias"),
    (JOINED, lambda r: np.concatenate(SLICES[::-1]), "slices in reversed rank order"),
    (JOINED, lambda r: np.concatenate([SLICES[s] for s in ORDER]), "slices in rank order 2 0 3 1"),
    (JOINED, lambda r: np.concatenate(SLICES, 1), "slices joined along another dimension"),
    (JOINED, lambda r: np.stack(SLICES, 1).reshape(12, 7), "slices joined element by element"),
    (JOINED, lambda r: SLICES[r], "slices that are not joined: each rank holds its own"),
    (JOINED, lambda r: WHOLE * np.repeat(np.arange(P) == r, 3)[:, None], "only the rank's own slice right"),
    (EQUAL, lambda r: 4 * BIAS, "a value that is P times too large"),
    (EQUAL, lambda r: BIAS / 4, "a value that is divided by P"),
    (EQUAL, lambda r: 2 * BIAS, "a value that is twice too large"),
    (EQUAL, lambda r: 16 * BIAS, "a value that is 16 times what it should be"),
    (EQUAL, lambda r: 0 * BIAS, "a value that is zero"),
]


@pytest.mark.parametrize(("tensor", "mistake", "sentence"), MISTAKES, ids=[f"{m[0].name}-{m[2]}" for m in MISTAKES])
def test_a_mistake_is_told_by_its_numbers(tensor: Tensor, mistake: Callable[[int], Floats], sentence: str) -> None:
    assert fitting(replace(tensor, got=of_rank(mistake)))[0] == sentence


@pytest.mark.parametrize("tensor", [ROW_OUTPUT, SHARD, JOINED, EQUAL, COLUMN_OUTPUT, SQUARE_SHARD])
def test_nothing_fits_a_right_tensor_or_one_that_is_off_by_one_in_one_element(tensor: Tensor) -> None:
    off = [value.copy() for value in tensor.expected]
    for value in off:
        value.flat[1] += 1

    assert fitting(replace(tensor, got=tensor.expected)) == []
    assert fitting(replace(tensor, got=tuple(off))) == []


@pytest.mark.parametrize("tensor", [ROW_OUTPUT, SHARD, JOINED, EQUAL])
def test_nothing_fits_what_is_not_a_number(tensor: Tensor) -> None:
    assert fitting(replace(tensor, got=tuple(np.full_like(value, np.nan) for value in tensor.expected))) == []


def test_a_mistake_must_fit_every_rank_that_is_wrong() -> None:
    assert fitting(replace(EQUAL, got=(4 * BIAS, 4 * BIAS, 2 * BIAS, BIAS))) == []


def test_the_ranks_without_a_gradient_are_named() -> None:
    assert fitting(replace(EQUAL, got=(BIAS, None, BIAS, None))) == ["a gradient that is missing on ranks 1 and 3"]
    assert fitting(replace(EQUAL, got=(None,) * P)) == ["a gradient that is missing on every rank"]


def test_ranks_are_listed_as_words() -> None:
    assert (ranks([2]), ranks([0, 1]), ranks([0, 2, 3])) == ("rank 2", "ranks 0 and 1", "ranks 0, 2 and 3")
