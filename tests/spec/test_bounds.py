"""The derived bound: silent for every correctly rounded computation, loud for sums that accumulate narrow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings

from conformance.adapters.protocol import Group
from conformance.adapters.simulated import Simulated
from conformance.items import Item, items
from conformance.strategies import cases
from spec import Case, judge
from spec.bounds import bound, gamma, longest, reduced
from spec.numerics import FORMATS, round_to
from spec.placements import Floats
from spec.reference import truth

PRECISION = [item for item in items() if item.procedure == "precision"]
NARROW = [item for item in PRECISION if item.dtype in ("bfloat16", "float16") and item.layer in ("column", "row")]


class AccumulatesNarrow(Simulated):
    """Every sum is rounded to the dtype after every term."""

    def product(self, case: Case, a: Floats, b: Floats) -> Floats:
        total = np.zeros((*a.shape[:-1], b.shape[-1]))
        for k in range(a.shape[-1]):
            total = round_to(total + round_to(a[..., k, None] * b[k], case.compute_dtype), case.compute_dtype)
        return total

    def sum_rows(self, case: Case, rows: Floats) -> Floats:
        return self.product(case, np.ones((1, len(rows))), rows)[0]


def broken(adapter: Simulated, case: Case) -> list[str]:
    seen = adapter.open(Group(0, case.P)).run(case, 0)
    return [finding.clause.name for finding in judge(case, truth(case), seen)]


@pytest.mark.parametrize("item", PRECISION, ids=str)
def test_a_correctly_rounded_computation_never_exceeds_the_bound(item: Item) -> None:
    @settings(max_examples=30)
    @given(cases(item))
    def silent(case: Case) -> None:
        assert not broken(Simulated(), case), case

    silent()


@pytest.mark.parametrize("item", NARROW, ids=str)
def test_narrow_accumulation_is_found_within_a_few_cases(item: Item) -> None:
    # Slow only while JAX compiles the first of each size.
    quick = settings(max_examples=30, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    case = find(cases(item), lambda case: bool(broken(AccumulatesNarrow(), case)), settings=quick)
    names = broken(AccumulatesNarrow(), case)
    assert {name.split(".")[0] for name in names} == {"precision"}
    assert not broken(Simulated(), case)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bound_lies_between_one_rounding_and_many(dtype: str) -> None:
    """128 terms of one sign: the sum rounded once is inside, rounded after every term outside."""
    case = Case.parse(f"column P=2 batch=1 in=128 out=32 {dtype} frozen=xw values=positive procedure=precision seed=3")
    expected = ["precision.forward"]
    assert not broken(Simulated(), case)
    assert expected == broken(AccumulatesNarrow(), case)


def test_gamma_is_that_of_higham() -> None:
    assert gamma(0, 2.0**-24) == 0
    assert gamma(1, 2.0**-8) == 2.0**-8 / (1 - 2.0**-8)
    assert gamma(3, 2.0**-24) == 3 * 2.0**-24 / (1 - 3 * 2.0**-24)


@pytest.mark.parametrize(("k", "u"), [(52, 2.0**-8), (256, 2.0**-8), (1000, 2.0**-8), (2**22, 2.0**-24)])
def test_gamma_of_a_quarter_or_more_is_refused(k: int, u: float) -> None:
    with pytest.raises(ValueError, match=rf"^{k} operations of roundoff {u:g} are too many for a bound that means"):
        gamma(k, u)


def test_the_largest_gamma_that_is_not_refused() -> None:
    """k u / (1 - k u) reaches 1/4 where k u is 1/5."""
    assert gamma(51, 2.0**-8) < 0.25 <= 52 / (256 - 52)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("column P=2 batch=6 in=8 out=4", {"output": 9, "x": 2, "weight": 6, "bias": 6}),
        ("row P=2 batch=6 in=8 out=4", {"output": 5, "x": 4, "weight": 6, "bias": 6}),
        ("row P=2 batch=0 in=8 out=4", {"output": 5, "x": 4, "weight": 1, "bias": 1}),
        ("reduce P=2 batch=6 in=8", {"output": 0, "x": 0}),
    ],
)
def test_the_longest_sum_on_one_rank_is_pinned(line: str, expected: dict[str, int]) -> None:
    case = Case.parse(line)
    assert expected == {name: longest(case, name) for name in expected}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("column P=2 in=8 out=4", {"x"}),
        ("row P=2 in=8 out=4", {"output"}),
        ("row P=2 in=8 out=4 reduce_output=False", set()),
        ("row P=1 in=8 out=4", set()),
        ("copy P=2 in=8", {"x"}),
        ("reduce P=2 in=8", {"output"}),
        ("gather P=2 in=8", set()),
        ("scatter P=2 in=8", set()),
    ],
)
def test_what_a_collective_sums_is_pinned(line: str, expected: set[str]) -> None:
    case = Case.parse(line)
    assert expected == {name for name in ("output", "x", "weight", "bias") if reduced(case, name)}


def test_the_bound_of_one_element_is_the_formula() -> None:
    case = Case.parse("row P=4 batch=1 in=256 out=1 bfloat16 values=positive procedure=precision seed=0")
    u, accumulator, tiny = 2.0**-8, 2.0**-24, 2.0**-133
    own, after = 65 * accumulator / (1 - 65 * accumulator), 5 * u / (1 - 5 * u)
    expected = ((1 + own) * (1 + after) - 1) * 3.0 + 6 * tiny
    assert expected == bound(case, "output", np.array(3.0))


def test_the_bound_without_a_reduction_rounds_twice() -> None:
    case = Case.parse("column P=4 batch=1 in=256 out=4 bfloat16 values=positive procedure=precision seed=0")
    u, accumulator, tiny = 2.0**-8, 2.0**-24, 2.0**-133
    own, after = 257 * accumulator / (1 - 257 * accumulator), 2 * u / (1 - 2 * u)
    expected = ((1 + own) * (1 + after) - 1) * 3.0 + 6 * tiny
    assert expected == bound(case, "output", np.array(3.0))


def test_the_bound_of_float64_is_doubled_for_its_reference() -> None:
    single, double = (
        Case.parse(f"gather P=2 batch=1 in=2 {dtype} values=gaussian procedure=precision") for dtype in FORMATS_OF_BOTH
    )
    one, two = (bound(case, "output", np.array(0.0)) for case in (single, double))
    assert one == 4 * FORMATS["float32"].tiny
    assert two == 2 * 4 * FORMATS["float64"].tiny


FORMATS_OF_BOTH = ("float32", "float64")
