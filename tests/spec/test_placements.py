"""Placements are index arithmetic: slices tile, and putting the ranks' parts together gives the whole back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec import Edge, Partial, Placement, Replicated, Sharded
from spec.placements import Parts, bounds, local, unshard


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


@st.composite
def in_parts(draw: Any) -> tuple[Parts, np.ndarray, int]:
    """Several parts, some of them with copies, a tensor whose elements all differ, and P."""
    P = draw(st.sampled_from((1, 2, 4, 6)))
    copies = draw(st.lists(st.sampled_from([c for c in (1, 2, 3, 4, 6) if P % c == 0]), min_size=1, max_size=4))
    sizes = tuple(P // c * draw(st.integers(0, 3)) for c in copies)
    dim, shape = draw(st.integers(-2, 1)), [3, 3]
    shape[dim] = sum(sizes)
    return Parts(dim, sizes, tuple(copies)), np.arange(float(np.prod(shape))).reshape(shape), P


@given(in_parts())
def test_slices_of_parts_put_together_are_the_whole(example: tuple[Parts, np.ndarray, int]) -> None:
    placement, whole, P = example
    parts = [local(placement, whole, P, r) for r in range(P)]
    assert len({part.shape for part in parts}) == 1
    assert np.array_equal(whole, unshard(placement, parts))


@given(in_parts())
def test_holders_of_a_slice_are_neighbours_and_hold_the_same(example: tuple[Parts, np.ndarray, int]) -> None:
    placement, _, P = example
    for i, copies in enumerate(placement.copies):
        held = [placement.slices(P, r)[i] for r in range(P)]
        assert held == [held[r // copies * copies] for r in range(P)]
        assert len({(s.start, s.stop) for s in held if s.stop > s.start}) in (0, P // copies)


@given(in_parts())
def test_expanded_parts_have_a_slice_for_every_rank(example: tuple[Parts, np.ndarray, int]) -> None:
    placement, whole, P = example
    expanded = placement.expanded(P)
    parts = [local(placement, whole, P, r) for r in range(P)]
    again = unshard(expanded, parts)
    assert set(expanded.copies) == {1}
    assert all(np.array_equal(part, local(expanded, again, P, r)) for r, part in enumerate(parts))


def test_a_part_is_cut_by_itself_and_not_with_its_neighbour() -> None:
    rows = np.arange(10.0)
    assert local(Parts(0, (4, 6), (1, 1)), rows, 2, 1).tolist() == [2, 3, 7, 8, 9]
    assert local(Parts(0, (4, 4, 2), (1, 2, 4)), rows, 4, 2).tolist() == [2, 6, 7, 8, 9]


def test_of_copies_that_differ_the_first_is_taken() -> None:
    whole = unshard(Parts(0, (2, 1), (1, 2)), [np.array([0.0, 8.0]), np.array([1.0, 9.0])])
    assert whole.tolist() == [0, 1, 8]


def test_a_part_that_its_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a dimension of size 3 has no 2 equal slices$"):
        local(Parts(0, (4, 3), (1, 1)), np.ones(7), 2, 0)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Replicated(), "R"),
        (Sharded(-1), "S(-1)"),
        (Parts(0, (4, 2), (1, 2)), "S(0: 4, 2 in 2 copies)"),
        (Partial(), "P"),
    ],
)
def test_placements_are_written_as_in_the_tables(placement: Placement, expected: str) -> None:
    assert expected == str(placement)
    assert f"{expected}/P" == str(Edge(placement, Partial()))
