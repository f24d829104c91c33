"""The simulation keeps the contract on every item that it has, and one wrong method is enough to break it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings

from conformance.adapters.protocol import Adapter, Group
from conformance.adapters.simulated import PROCEDURES, Exchange, Simulated
from conformance.items import Item, items
from conformance.strategies import cases
from spec import Case, Inputs, judge
from spec.numerics import round_to
from spec.placements import Floats
from spec.reference import truth

HAS = [item for item in items() if item.procedure in PROCEDURES and item.layer != "pair"]
FINDING = settings(max_examples=200, phases=[Phase.generate], database=None, derandomize=True)


def broken(adapter: Simulated, case: Case) -> list[str]:
    """The clauses that any group of a case breaks."""
    session = adapter.open(Group(0, case.P))
    return [
        finding.clause.name
        for number in range(len(case.group_ranks))
        for finding in judge(case, truth(case, number), session.run(case, number), number)
    ]


@pytest.mark.parametrize("item", HAS, ids=str)
def test_a_correct_implementation_breaks_no_clause(item: Item) -> None:
    @settings(max_examples=5)
    @given(cases(item))
    def clean(case: Case) -> None:
        assert not Simulated().declines(case)
        assert not broken(Simulated(), case), case

    clean()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("row P=2 batch=3 in=4 out=2 float32 procedure=init seed=0", "a simulation has no init"),
        ("pair P=2 batch=3 in=4 hidden=4 out=2 float32 seed=0", "a simulation has no pair"),
    ],
)
def test_what_the_simulation_does_not_have_it_declines(line: str, reason: str) -> None:
    assert reason == Simulated().declines(Case.parse(line))


def test_the_simulation_is_an_adapter() -> None:
    assert isinstance(Simulated(), Adapter)
    assert Simulated.controller


class BiasOnEveryRank(Simulated):
    def row_forward(self, case: Case, x: Any, held: Any, exchange: Exchange) -> list[Floats]:
        y = super().row_forward(case, x, held, exchange)
        extra = case.P - 1 if case.bias and not case.skip_bias_add else 0
        return [part + extra * h["bias"] if extra else part for part, h in zip(y, held, strict=True)]


class InputGradientNotReduced(Simulated):
    def column_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> list[dict[str, Floats]]:
        right = super().column_backward(case, x, held, g, exchange)
        width = case.out_features // case.P
        own = [up[..., r * width : (r + 1) * width] if case.gather_output else up for r, up in enumerate(g)]
        terms = [self.product(case, up, h["weight"]) for up, h in zip(own, held, strict=True)]
        return [{**entry, "x": term} for entry, term in zip(right, terms, strict=True)]


class ReversesRanks(Simulated):
    def gather_forward(self, case: Case, x: Sequence[Floats], held: object, exchange: Exchange) -> list[Floats]:
        return super().gather_forward(case, list(reversed(x)), held, exchange)


class SumsInGathersBackward(Simulated):
    def gather_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> list[dict[str, Floats]]:
        return [{"x": part} for part in self.slices(case, exchange.all_reduce(g))]


class SlicesOfRank0(Simulated):
    def slices(self, case: Case, wholes: Sequence[Floats]) -> list[Floats]:
        return [np.split(whole, case.P, axis=case.dim)[0] for whole in wholes]


class TransposesWeight(Simulated):
    """Only where the weight is square does nobody notice by its shape."""

    def shards(self, case: Case, data: Inputs, r: int) -> dict[str, Floats]:
        held = super().shards(case, data, r)
        if "weight" in held and case.in_features == case.out_features:
            assert data.weight is not None
            turned = Inputs(data.x, data.weight.T, data.bias, data.g)
            return super().shards(case, turned, r)
        return held


class ForgetsFirstBatchDimension(Simulated):
    def parameter_gradients(self, case: Case, x: Floats, g: Floats) -> dict[str, Floats]:
        if len(case.batch) > 1 and case.batch[0] > 1:
            return super().parameter_gradients(case, x[-1:], g[-1:])
        return super().parameter_gradients(case, x, g)


class BiasGradientDividedByP(Simulated):
    def sum_rows(self, case: Case, rows: Floats) -> Floats:
        total = super().sum_rows(case, rows)
        return total / case.P if case.layer == "row" else total


class ReducesInBackward(Simulated):
    def reduce_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> list[dict[str, Floats]]:
        return [{"x": d} for d in exchange.all_reduce(g)]


class ScattersWithoutGathering(Simulated):
    def scatter_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> list[dict[str, Floats]]:
        own = []
        for r, part in enumerate(g):
            whole = np.zeros_like(np.concatenate([part] * case.P, case.dim))
            np.split(whole, case.P, case.dim)[r][...] = part
            own.append({"x": whole})
        return own


class RoundsOutputsTwice(Simulated):
    def product(self, case: Case, a: Floats, b: Floats) -> Floats:
        return round_to(super().product(case, a, b), "bfloat16")


class AveragesCopies(Simulated):
    def copy_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> list[dict[str, Floats]]:
        right = super().copy_backward(case, x, held, g, exchange)
        return [{"x": entry["x"] / case.P} for entry in right]


MUTANTS: Mapping[type[Simulated], tuple[str, str]] = {
    BiasOnEveryRank: ("row", "row.forward.bias-once"),
    InputGradientNotReduced: ("column", "column.backward.input-grad-reduced"),
    ReversesRanks: ("gather", "gather.forward"),
    SumsInGathersBackward: ("gather", "gather.backward"),
    SlicesOfRank0: ("scatter", "scatter.forward"),
    TransposesWeight: ("column", "column.weight.shard"),
    ForgetsFirstBatchDimension: ("row", "row.backward.weight-grad"),
    BiasGradientDividedByP: ("row", "row.backward.bias-grad"),
    ReducesInBackward: ("reduce", "reduce.backward"),
    ScattersWithoutGathering: ("scatter", "scatter.backward"),
    RoundsOutputsTwice: ("row", "row.forward.value"),
    AveragesCopies: ("copy", "copy.backward"),
}


@pytest.mark.parametrize("P", [2, 4])
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught_and_its_clause_named(mutant: type[Simulated], P: int) -> None:
    """In the first case that breaks it, the first clause broken is the mutant's own."""
    layer, expected = MUTANTS[mutant]
    strategy = cases(Item("run", layer, P, "float32"))
    case = find(strategy, lambda case: expected in broken(mutant(), case), settings=FINDING)
    assert expected == broken(mutant(), case)[0]
    assert not broken(Simulated(), case)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_of_communication_is_right_where_there_is_none(mutant: type[Simulated]) -> None:
    """At P = 1 nothing that goes wrong between ranks can be seen."""
    alone = {TransposesWeight, ForgetsFirstBatchDimension, RoundsOutputsTwice}
    layer, _ = MUTANTS[mutant]

    @settings(max_examples=20)
    @given(cases(Item("run", layer, 1, "float32")))
    def clean(case: Case) -> None:
        assert mutant in alone or not broken(mutant(), case)

    clean()
