"""How two tensors are compared, and in which words: every number that a report shows is pinned here once."""

from __future__ import annotations

import numpy as np
import pytest
from doctoring import bits

from spec import Array
from spec.clauses.compare import difference, same_bits, same_numbers, show, shown

ONE = bits(np.array([1.0, 2.0]))


def test_a_tensor_that_is_not_there_is_missing() -> None:
    assert difference(None, np.zeros((2, 3))) == ("is missing", "a tensor of shape [2, 3]", "None")


def test_another_shape_is_told_before_any_number() -> None:
    assert difference(ONE, np.zeros((2, 1))) == ("has the wrong shape", "[2, 1]", "[2]")


def test_zeros_of_either_sign_are_equal() -> None:
    assert difference(bits(np.array([-0.0, 1.0])), np.array([0.0, 1.0])) is None


def test_a_difference_says_how_many_elements_and_which_is_first() -> None:
    got = bits(np.array([[1.0, 2.0], [0.0, 5.0]]))
    expected = ("differs in 2 of 4 elements, first at [1, 0]", "[[1., 2.],\n [3., 4.]]", "[[1., 2.],\n [0., 5.]]")
    assert expected == difference(got, np.array([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_error_as_large_as_its_bound_is_allowed(sign: int) -> None:
    assert difference(bits(np.array([1 + sign * 0.25])), np.array([1.0]), np.array([0.25])) is None


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_error_above_its_bound_is_told_with_both(sign: int) -> None:
    found = difference(bits(np.array([1 + sign * 0.5, 1.0])), np.array([1.0, 1.0]), np.array([0.25, 0.25]))
    assert found is not None
    assert found[0] == "differs in 1 of 2 elements, first at [0]; worst error 0.5, bound 0.25, ratio 2"


def test_the_worst_error_is_the_one_furthest_beyond_its_bound() -> None:
    """Not the largest error, and not one within its bound."""
    got, limit = bits(np.array([8.0, 3.0, 1.0])), np.array([4.0, 0.5, 1.0])
    found = difference(got, np.zeros(3), limit)
    assert found is not None
    assert found[0] == "differs in 2 of 3 elements, first at [0]; worst error 3, bound 0.5, ratio 6"


def test_an_error_where_none_is_allowed_has_a_ratio_too() -> None:
    found = difference(bits(np.array([1.0, 0.5])), np.zeros(2), np.array([0.125, 0.0]))
    assert found is not None
    assert found[0] == "differs in 2 of 2 elements, first at [0]; worst error 0.5, bound 0, ratio 5e+299"


@pytest.mark.parametrize("limit", [None, np.array([1.0, 1.0])])
def test_what_is_no_number_is_within_no_bound(limit: np.ndarray | None) -> None:
    found = difference(bits(np.array([np.nan, 0.0])), np.zeros(2), limit)
    assert found is not None
    assert found[0].startswith("differs in 1 of 2 elements, first at [0]")


def test_a_tensor_is_shown_whole_up_to_24_elements() -> None:
    assert show(np.arange(24.0)).count(",") == 23
    assert show(np.arange(25.0)) == "[ 0.,  1., ..., 23., 24.]"


def test_a_tensor_is_shown_with_nine_digits() -> None:
    assert show(np.array([1 / 3])) == "[0.333333333]"


def test_a_tensor_is_shown_in_lines_of_at_most_110() -> None:
    """22 elements fill a line of a vector; closing brackets that may follow count as well."""
    assert [len(line) for line in show(np.full(24, 11.0)).split("\n")] == [110, 10]
    assert [len(line) for line in show(np.full((1, 1, 1, 24), 11.0)).split("\n")] == [103, 26]


def test_a_tensor_is_shown_with_its_dtype_and_shape() -> None:
    assert shown(ONE) == "float32[2] [1., 2.]"
    assert shown(None) == "None"


MINUS_ZERO, ZERO = bits(np.array([-0.0, 1.0])), bits(np.array([0.0, 1.0]))
# one, other, the same bits, the same numbers
PAIRS = [
    (None, None, True, True),
    (ONE, None, False, False),
    (None, ONE, False, False),
    (ONE, bits(np.array([1.0, 2.0])), True, True),
    (ONE, bits(np.array([2.0, 1.0])), False, False),
    (ZERO, MINUS_ZERO, False, True),
    (ONE, bits(np.array([1.0, 2.0]), "float64"), False, False),
    (ONE, bits(np.array([[1.0, 2.0]])), False, False),
    (Array(b"\0\0", "float16", (1,)), Array(b"\0\0", "bfloat16", (1,)), False, False),
]


@pytest.mark.parametrize(("one", "other", "equal_bits", "equal_numbers"), PAIRS)
def test_what_is_the_same(one: Array | None, other: Array | None, equal_bits: bool, equal_numbers: bool) -> None:
    assert equal_bits == same_bits(one, other)
    assert equal_numbers == same_numbers(one, other)
