"""One tensor beside what it should be, rank by rank, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spec import Array, Placement
from spec.placements import Floats

MOST = 8


@dataclass(frozen=True)
class Shown:
    """One tensor of one step, by rank.

    Attributes:
        shape: of the whole.
        got: None where there is no tensor; empty where nobody looked.
        limits: how far an element may be from what is expected; empty where none may be.
        written: whether the rank wrote to it, of tensors that are the caller's.
    """

    name: str
    placement: Placement
    shape: tuple[int, ...]
    expected: tuple[Floats | None, ...]
    got: tuple[Array | None, ...] = ()
    limits: tuple[Floats | None, ...] = ()
    dtype: str = ""
    written: tuple[bool, ...] = ()

    def on(self, rank: int) -> dict[str, Any]:
        """What is told of it on one rank."""
        expected, got = self.expected[rank], self.got[rank] if self.got else None
        numbers = None if got is None else got.numbers
        wrong = self._wrong(rank, expected, numbers)
        at = _start(wrong)
        return {
            "shape": list(next((value.shape for value in (expected, numbers) if value is not None), ())),
            "expected": _numbers(expected, at, self.dtype),
            "got": _numbers(numbers, at, self.dtype),
            "at": list(at),
            "wrong": [[int(i), int(j)] for i, j in np.argwhere(_window(wrong, at))],
            "differs": int(wrong.sum()),
            "cut": any(value is not None and max(_matrix(value).shape) > MOST for value in (expected, numbers)),
            "note": self._note(rank, expected, got),
        }

    def _wrong(self, rank: int, expected: Floats | None, numbers: Floats | None) -> np.ndarray:
        """Which elements are wrong, as a matrix; none where the shapes are no match."""
        if expected is None or numbers is None or expected.shape != numbers.shape:
            return np.zeros((1, 1), dtype=bool)
        limit = self.limits[rank] if self.limits else None
        return _matrix(numbers != expected if limit is None else ~(np.abs(numbers - expected) <= limit))

    def _note(self, rank: int, expected: Floats | None, got: Array | None) -> str:
        if self.written and self.written[rank]:
            return "written to"
        if not self.got or (got is None and expected is None):
            return ""
        if got is None or expected is None:
            return "missing" if got is None else "unexpected"
        if got.shape != expected.shape:
            return f"shape {list(got.shape)}, not {list(expected.shape)}"
        return f"{got.dtype}, not {self.dtype}" if self.dtype not in ("", got.dtype) else ""

    def as_data(self, step: str) -> dict[str, Any]:
        """What is told of it in all."""
        ranks = [self.on(r) for r in range(len(self.expected))]
        return {
            "name": self.name,
            "placement": str(self.placement),
            "shape": list(self.shape),
            "step": step,
            "ranks": ranks,
        }


# Matrices


def _matrix(value: np.ndarray) -> np.ndarray:
    """A tensor with its leading dimensions flattened; a vector is one row."""
    rows = int(np.prod(value.shape[:-1]))
    return value.reshape(rows, value.shape[-1] if value.ndim else 1)


def _start(wrong: np.ndarray) -> tuple[int, int]:
    """Where to begin, so that the first wrong element is among those shown."""
    places = np.argwhere(wrong)
    first = places[0] if len(places) else (0, 0)
    row, column = (0 if i < MOST else int(min(i, n - MOST)) for i, n in zip(first, wrong.shape, strict=True))
    return row, column


def _window(matrix: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    return matrix[at[0] : at[0] + MOST, at[1] : at[1] + MOST]


def _numbers(value: Floats | None, at: tuple[int, int], dtype: str) -> list[list[int | float | str]] | None:
    """Of a window; nine digits tell any two numbers of the narrower dtypes apart."""
    digits = 17 if dtype == "float64" else 9
    return None if value is None else [[_plain(v, digits) for v in row] for row in _window(_matrix(value), at)]


def _plain(value: float, digits: int) -> int | float | str:
    """A number as JSON can hold it, and execnet, on the way from a worker, which packs no integer below -2^31."""
    if not np.isfinite(value):
        return str(float(value))
    return int(value) if value == int(value) and abs(value) < 2**31 else float(f"{value:.{digits}g}")
