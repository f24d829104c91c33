"""The four formats and their bits, held against NumPy's own dtypes and ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.numerics import FORMATS, decode, encode, round_to

TYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# Exactly between two numbers of bfloat16: the even one of them is taken.
TIES = [1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 2.0**-130 + 2.0**-134, 3 * 2.0**-133 / 2]


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_constants_of_a_format_are_those_of_its_type(dtype: str) -> None:
    form, info = FORMATS[dtype], ml_dtypes.finfo(TYPES[dtype])
    assert form.roundoff == float(info.eps) / 2
    assert form.tiny == float(info.smallest_subnormal)
    assert form.exact == 2 / float(info.eps)
    assert form.storage.itemsize == np.dtype(TYPES[dtype]).itemsize


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_first_integer_that_is_not_exact(dtype: str) -> None:
    exact = FORMATS[dtype].exact
    assert float(TYPES[dtype](exact)) == exact
    assert float(TYPES[dtype](exact - 1)) == exact - 1
    assert float(TYPES[dtype](np.float64(exact)) + TYPES[dtype](1)) == exact


def test_sums_accumulate_in_float32_or_wider() -> None:
    expected = {"float64": np.float64, "float32": np.float32, "float16": np.float32, "bfloat16": np.float32}
    for dtype, wide in expected.items():
        assert FORMATS[dtype].accumulator == float(np.finfo(wide).eps) / 2


@pytest.mark.parametrize("dtype", FORMATS)
@given(st.lists(st.one_of(st.floats(-300, 300, width=32), st.sampled_from(TIES)), max_size=20))
def test_bits_are_those_of_the_type(dtype: str, values: list[float]) -> None:
    value = np.array(values, np.float64)
    expected = value.astype(np.float32).astype(TYPES[dtype]) if dtype == "bfloat16" else value.astype(TYPES[dtype])
    assert expected.tobytes() == encode(value, dtype).tobytes()
    assert np.array_equal(expected.astype(np.float64), decode(expected.tobytes(), dtype, expected.shape))
    assert np.array_equal(expected.astype(np.float64), round_to(value, dtype))


@pytest.mark.parametrize("value", TIES)
def test_a_tie_is_rounded_to_even(value: float) -> None:
    assert float(np.float32(value).astype(ml_dtypes.bfloat16)) == round_to(np.array([value]), "bfloat16")[0]


def test_bits_have_the_shape_that_they_are_given() -> None:
    value = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(value, decode(encode(value, "bfloat16").tobytes(), "bfloat16", (2, 3)))


def test_what_has_another_dtype_has_no_numbers() -> None:
    numbers = decode(b"\0\1", "int8", (2,))
    assert numbers.shape == (2,)
    assert np.isnan(numbers).all()
