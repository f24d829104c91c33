"""The small cases that `deep` runs one and all: that none is missing, and that a bug is named by the smallest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from faulty import BiasBeforeReduction, Held

from conformance import enumeration
from conformance.adapters.protocol import Adapter
from conformance.adapters.simulated import Exchange, Simulated
from conformance.coverage.cells import effective
from conformance.enumeration import examine_all, small_cases
from conformance.items import Item
from conformance.observers import InProcess, Options
from conformance.space import LAYOUTS
from conformance.suite import Suite
from spec import REGISTER, Case, ContractViolation
from spec.faults import faults_of
from spec.placements import Floats

ROOT = Path(__file__).parents[2]
COLUMN = Item("run", "column", 2, "float32")
SOME = [
    COLUMN,
    Item("twice", "pair", 1, "float32"),
    Item("accumulate", "row", 2, "float32", world=4),
    Item("run", "scatter", 2, "float32"),
    Item("inference", "reduce", 4, "float32"),
    Item("refuse", "row", 1, "float32"),
    Item("state-dict", "column", 4, "float32"),
    Item("compile", "row", 2, "float32"),
]


class GradientNotReduced(Simulated):
    """The input's gradient stays each rank's own term, but only with weight and bias frozen and one output a rank."""

    def column_backward(
        self, case: Case, x: Sequence[Floats], held: Held, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        right = super().column_backward(case, x, held, g, exchange)
        wrong = super().column_backward(case, x, held, g, Idle(case))
        return wrong if (case.P, case.out_features, case.frozen) == (2, 2, "wb") else right


class Idle(Exchange):
    """Ranks keep what they have."""

    def all_reduce(self, parts: Sequence[Floats]) -> list[Floats]:
        return list(parts)


class TwoBugs(GradientNotReduced):
    """And one is added to a plain output where x alone is frozen."""

    def column_forward(self, case: Case, *args: Any) -> list[Floats]:
        right = super().column_forward(case, *args)
        plain = not (case.bias or case.gather_output or case.skip_bias_add)
        return [part + 1 for part in right] if plain and case.frozen == "x" else right


def before(adapter: Adapter) -> Suite:
    suite = Suite(Options(impl="numpy"))
    suite.observer = InProcess(adapter)
    return suite


@pytest.mark.parametrize("item", SOME, ids=str)
def test_no_case_comes_twice_and_each_is_the_item_s(item: Item) -> None:
    cases = list(small_cases(item))
    assert len(set(cases)) == len(cases)
    assert {(case.layer, case.P, case.dtype, case.procedure, case.world) for case in cases} == {
        (item.layer, item.P, item.dtype, item.procedure, item.world or item.P)
    }


@pytest.mark.parametrize("item", SOME, ids=str)
def test_every_layout_of_a_case_takes_effect(item: Item) -> None:
    assert all(effective(case) == case for case in small_cases(item))


@pytest.mark.parametrize("item", [item for item in SOME if item.layer != "scatter"], ids=str)
def test_the_smallest_sizes_come_first(item: Item) -> None:
    sizes = [case.in_features + case.hidden_features + case.out_features for case in small_cases(item)]
    assert sorted(sizes) == sizes


def test_the_first_case_is_the_simplest_that_is_drawn() -> None:
    assert str(next(small_cases(COLUMN))) == "column P=2 batch=1 in=1 out=2 float32 seed=0"


def test_every_combination_of_flags_sizes_and_what_is_frozen_is_there() -> None:
    """Of three kinds of flags and seven batches with rows: every letter that is there is frozen or not."""
    cases = set(small_cases(COLUMN))
    batches = [(1,), (2,), (), (1, 1), (1, 2), (2, 1), (2, 2), (0,), (2, 0)]
    flags = [{}, {"gather_output": True}, {"skip_bias_add": True}]
    for per_rank, other, batch, chosen, bias in product((1, 2), (1, 2), batches, flags, (False, True)):
        for letters in product("x ", "w ", "b " if bias else " "):
            frozen = "".join(letters).replace(" ", "")
            fields = {"batch": batch, "bias": bias, "frozen": frozen, **chosen}
            assert Case("column", 2, other, 2 * per_rank, **fields) in cases


def test_every_pair_of_layouts_is_crossed_with_what_is_frozen() -> None:
    cases = set(small_cases(COLUMN))
    for (x, g), frozen in product(LAYOUTS, ("", "w", "wb")):
        assert Case("column", 2, 1, 2, batch=(2,), bias=True, x=x, g=g, frozen=frozen) in cases


def test_every_dimension_is_cut_counted_from_both_ends() -> None:
    cases = {(case.dim, case.batch, case.in_features) for case in small_cases(Item("run", "gather", 2, "float32"))}
    for dim, whole in (
        (-3, (2, 2, 1)),
        (-2, (1, 4, 1)),
        (-1, (1, 2, 2)),
        (0, (2, 2, 1)),
        (1, (1, 4, 1)),
        (2, (1, 2, 2)),
    ):
        assert (dim, whole[:2], whole[2]) in cases


def test_every_fault_of_the_flags_is_there() -> None:
    cases = list(small_cases(Item("refuse", "row", 2, "float32")))
    for bias in (False, True):
        there = {case.fault for case in cases if case.bias == bias}
        assert there == set(faults_of(Case("row", 2, 2, 1, bias=bias)))


def test_ranks_form_groups_in_both_ways() -> None:
    ways = [case.groups for case in small_cases(Item("run", "copy", 2, "float32", world=4))]
    assert ways.count("neighbouring") == ways.count("interleaved") > 0


def test_precision_stays_sampled() -> None:
    assert not list(small_cases(Item("precision", "row", 2, "float32")))


def test_a_compiled_layer_has_one_case_for_each_of_its_flags() -> None:
    cases = list(small_cases(Item("compile", "column", 2, "float32")))
    flags = {(case.bias, case.gather_output, case.skip_bias_add) for case in cases}
    assert len(cases) == len(flags) == 6
    assert {(case.in_features, case.out_features, case.batch) for case in cases} == {(2, 4, (2,))}


# Running them


def test_a_bug_in_a_corner_is_named_by_the_smallest_case_that_shows_it() -> None:
    suite = before(GradientNotReduced())
    with pytest.raises(REGISTER["column.backward.input-grad-reduced"].error) as caught:
        examine_all(suite, small_cases(COLUMN))

    assert "  case     column P=2 batch=1 in=1 out=2 float32 bias frozen=wb seed=0\n" in str(caught.value)


def test_a_right_implementation_passes_and_every_case_is_counted() -> None:
    suite = before(Simulated())
    examine_all(suite, small_cases(COLUMN))

    assert suite.tally.examples == {2: sum(1 for _ in small_cases(COLUMN))}
    assert not suite.tally.broken


def test_every_clause_that_is_a_first_cause_has_its_own_smallest_case() -> None:
    with pytest.raises(ExceptionGroup, match="2 clauses, each with the first case that failed it") as caught:
        examine_all(before(TwoBugs()), small_cases(COLUMN))
    failures = [error for error in caught.value.exceptions if isinstance(error, ContractViolation)]
    cases = {error.clause.name: str(error).partition("  case     ")[2].partition("\n")[0] for error in failures}

    assert cases == {
        "column.forward.value": "column P=2 batch=1 in=1 out=2 float32 frozen=x seed=0",
        "column.backward.input-grad-reduced": "column P=2 batch=1 in=1 out=2 float32 bias frozen=wb seed=0",
    }


def test_an_item_that_keeps_failing_is_given_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "FAILURES_PER_ITEM", 3)
    suite = before(BiasBeforeReduction())
    with pytest.raises(ContractViolation) as caught:
        examine_all(suite, small_cases(Item("run", "row", 2, "float32")))

    assert sum(suite.tally.blamed.values()) >= 3
    assert caught.value.__notes__ == ["after 3 cases that failed, the larger ones of this item were not run"]


@pytest.mark.parametrize(("profile", "expected"), [("deep", ["test_conforms", "test_conforms_small"]), ("quick", None)])
def test_they_are_the_profile_deep_s_alone(profile: str, expected: list[str] | None) -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "--impl", "numpy", "--collect-only", "-q"]
    done = subprocess.run(
        [*command, f"--hypothesis-profile={profile}", "-k", "run-copy-P1-float32"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.partition("::")[2].partition("[")[0] for line in done.stdout.splitlines() if "::" in line]
    assert sorted(found) == (expected or ["test_conforms"])
