"""Bits of the four dtypes as NumPy sees them: decoding, rounding, and the constants that the bounds need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spec.placements import Floats


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes:
        storage: the NumPy dtype that carries the bits (bfloat16 travels as uint16).
        roundoff: u, half the distance from 1 to the next number.
        tiny: the smallest subnormal.
        exact: every integer up to this magnitude is representable.
        accumulator: u_acc, the roundoff of the sums that a product of this dtype must accumulate in.
    """

    storage: np.dtype
    roundoff: float
    tiny: float
    exact: int
    accumulator: float


FORMATS = {
    "float64": Format(np.dtype(np.float64), 2.0**-53, 2.0**-1074, 2**53, 2.0**-53),
    "float32": Format(np.dtype(np.float32), 2.0**-24, 2.0**-149, 2**24, 2.0**-24),
    "float16": Format(np.dtype(np.float16), 2.0**-11, 2.0**-24, 2**11, 2.0**-24),
    "bfloat16": Format(np.dtype(np.uint16), 2.0**-8, 2.0**-133, 2**8, 2.0**-24),
}


def decode(bits: bytes, dtype: str, shape: tuple[int, ...]) -> Floats:
    """The numbers behind the bits, exactly, as float64 of the given shape; NaN for any other dtype than the four."""
    if dtype not in FORMATS:
        return np.full(shape, np.nan)
    raw = np.frombuffer(bits, FORMATS[dtype].storage)
    if dtype == "bfloat16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float64).reshape(shape)


def encode(value: Floats, dtype: str) -> np.ndarray:
    """The value rounded to `dtype`, in its storage type (bfloat16 as uint16), contiguous."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(value, FORMATS[dtype].storage)
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    nearest_even = bits + (0x7FFF + ((bits >> 16) & 1))
    return (nearest_even >> 16).astype(np.uint16)


def round_to(value: Floats, dtype: str) -> Floats:
    """The value rounded to `dtype`, as float64."""
    if dtype == "float64":
        return value
    rounded = encode(value, dtype)
    return decode(rounded.tobytes(), dtype, value.shape)
