"""Placements are index arithmetic: slices tile, and putting the ranks' parts together gives the whole back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec import Edge, Partial, Placement, Replicated, Sharded
from spec.placements import bounds, local, unshard


@st.composite
def sharded(draw: Any) -> tuple[Sharded, np.ndarray, int]:
    """A placement, a tensor whose elements all differ, and P."""
    P = draw(st.integers(1, 5))
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape[dim] *= P
    return Sharded(dim), np.arange(float(np.prod(shape))).reshape(shape), P


@given(sharded())
def test_slices_put_together_are_the_whole(example: tuple[Sharded, np.ndarray, int]) -> None:
    placement, whole, P = example
    parts = [local(placement, whole, P, r) for r in range(P)]
    again = unshard(placement, parts)
    assert whole.shape == again.shape
    assert np.array_equal(whole, again)
    assert len({part.shape for part in parts}) == 1


@given(st.integers(1, 5), st.integers(1, 4))
def test_what_is_replicated_is_whole_on_every_rank(P: int, size: int) -> None:
    whole = np.arange(float(size))
    parts = [local(Replicated(), whole, P, r) for r in range(P)]
    assert all(np.array_equal(whole, part) for part in parts)
    assert np.array_equal(whole, unshard(Replicated(), parts))


def test_of_replicas_that_differ_the_first_is_taken() -> None:
    parts = [np.zeros(2), np.ones(2)]
    assert unshard(Replicated(), parts) is parts[0]


@given(st.integers(1, 5), st.integers(1, 4))
def test_terms_add_up_to_the_value(P: int, size: int) -> None:
    terms = np.arange(float(P * size)).reshape(P, size)
    parts = [local(Partial(), terms, P, r) for r in range(P)]
    assert all(np.array_equal(terms[r], parts[r]) for r in range(P))
    assert np.array_equal(terms.sum(0), unshard(Partial(), parts))


@given(st.integers(1, 8), st.integers(0, 8))
def test_indices_tile_exactly(P: int, width: int) -> None:
    """Every index once, in the order of the ranks."""
    size = P * width
    indices = [index for r in range(P) for index in range(size)[bounds(size, P, r)]]
    assert list(range(size)) == indices


@given(st.integers(2, 8), st.integers(0, 40))
def test_what_p_does_not_divide_is_refused(P: int, size: int) -> None:
    size += size % P == 0
    with pytest.raises(ValueError, match=rf"^a dimension of size {size} has no {P} equal slices$"):
        bounds(size, P, 0)


def test_a_tensor_that_p_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a dimension of size 3 has no 2 equal slices$"):
        local(Sharded(0), np.ones((3, 4)), 2, 0)


@pytest.mark.parametrize(("placement", "expected"), [(Replicated(), "R"), (Sharded(-1), "S(-1)"), (Partial(), "P")])
def test_placements_are_written_as_in_the_tables(placement: Placement, expected: str) -> None:
    assert expected == str(placement)
    assert f"{expected}/P" == str(Edge(placement, Partial()))
