"""The bound on what a pass misses: where it is stated, what it is, and that it is never too small."""

from __future__ import annotations

import pytest

from conformance.__main__ import main
from conformance.coverage.worth import bound_sentence, miss_probability, value_count
from spec import Case, amplitude, inputs


def parsed(line: str) -> Case:
    return Case.parse(f"{line} seed=0")


def test_exact_values_are_nonzero_integers_up_to_the_amplitude() -> None:
    case = parsed("row P=2 batch=3 in=4 out=2 float32")
    assert 2 * amplitude(case) == value_count(case)


def test_small_values_are_few() -> None:
    assert value_count(parsed("row P=2 batch=3 in=4 out=2 float32 values=small")) == 6


@pytest.mark.parametrize(
    "line",
    [
        "pair P=2 batch=3 in=4 hidden=2 out=2 float32",
        "row P=2 batch=3 in=4 out=2 float32 values=positive procedure=precision",
        "column P=2 batch=3 in=4 out=2 float32 procedure=init",
        "column P=2 batch=3 in=4 out=2 float32 procedure=refuse fault=indivisible",
    ],
)
def test_no_bound_is_stated_where_there_is_none(line: str) -> None:
    assert value_count(parsed(line)) is None
    assert miss_probability(parsed(line)) is None
    assert bound_sentence(parsed(line)) == ""


def test_independent_draws_miss_with_two_in_the_number_of_values() -> None:
    case = parsed("column P=1 batch=none in=1 out=1 float32")
    assert miss_probability(case) == 2 / (2 * amplitude(case))


def test_what_is_drawn_without_repeats_is_no_longer_independent() -> None:
    """Every row and column of this case is of one element, and each pair of them differs: of 22 values, 21 are left."""
    case = parsed("column P=1 batch=none in=1 out=2 bfloat16 bias")
    assert value_count(case) == 22
    assert miss_probability(case) == pytest.approx(2 / 22 / (21 / 22) ** 3)


def test_no_bound_below_one_is_stated_where_a_fault_can_hide_for_ever() -> None:
    """Four different ones of the values -2, -1, 1, 2 always add up to zero, so a sum of the bias never shows."""
    case = parsed("column P=1 batch=26 in=1 out=4 bfloat16 bias procedure=accumulate")
    biases = [inputs(Case.parse(f"{str(case).rpartition(' ')[0]} seed={seed}")).bias for seed in range(20)]

    assert all(bias is not None and bias.sum() == 0 for bias in biases)
    assert value_count(case) == 4
    assert miss_probability(case) == 1
    assert bound_sentence(case) == "no bound on what this one draw misses: too few values, |S| = 4"


def test_a_vector_with_more_elements_than_values_is_drawn_as_it_comes() -> None:
    """It repeats whatever is drawn, so nothing of it is drawn again for good."""
    case = parsed("column P=1 batch=none in=28 out=1 bfloat16")
    assert value_count(case) == 6
    assert miss_probability(case) == pytest.approx(2 / 6)


def test_equal_rows_that_are_expanded_are_drawn_once() -> None:
    short, long = (parsed(f"reduce P=1 batch={rows} in=1 bfloat16 x=expanded g=expanded") for rows in (2, 9))
    assert miss_probability(short) == miss_probability(long) == 2 / value_count(short)


def test_terms_of_a_sum_that_must_differ_count() -> None:
    case = parsed("reduce P=2 batch=none in=1 bfloat16")
    assert value_count(case) == 256
    assert miss_probability(case) == pytest.approx(2 / 256 / (255 / 256))


def test_an_empty_tensor_has_nothing_to_draw() -> None:
    case = parsed("reduce P=4 batch=0 in=2 bfloat16")
    assert miss_probability(case) == 2 / value_count(case)


@pytest.mark.parametrize("more", ["world=4", "procedure=accumulate"])
def test_every_group_and_every_run_draws_anew(more: str) -> None:
    once, again = (parsed(f"row P=2 batch=none in=4 out=2 float32 {words}".strip()) for words in ("", more))
    assert miss_probability(once) * value_count(once) < miss_probability(again) * value_count(again)


def test_the_sentence_has_the_bound_and_its_condition() -> None:
    assert bound_sentence(parsed("row P=2 batch=3 in=4 out=2 float32 bias")) == (
        "one draw from |S| = 4094 values misses a fault that is polynomial, of degree two at most, and shows in the"
        " example's shape, flags and layouts,\nwith probability at most 0.00049 (Schwartz-Zippel: 2/|S|, more where"
        " equal rows or columns are drawn again)"
    )


def test_a_replay_that_passes_says_what_that_is_worth(capsys: pytest.CaptureFixture[str]) -> None:
    case = parsed("row P=2 batch=3 in=4 out=2 float32 bias")
    assert main(["replay", "--impl", "numpy", str(case)]) == 0
    assert capsys.readouterr().out.endswith(f"clauses that apply\n{bound_sentence(case)}\n")


def test_a_replay_of_real_values_states_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    case = parsed("row P=2 batch=3 in=4 out=2 float32 values=positive procedure=precision")
    assert main(["replay", "--impl", "numpy", str(case)]) == 0
    assert capsys.readouterr().out.endswith("clauses that apply\n")
