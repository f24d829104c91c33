"""Power: every mutant is found, on a small case, under the right name; nothing that is right is ever accused."""

from __future__ import annotations

import pytest
from catalogue import Mutant, lawful, mutants
from power import (
    EXAMPLES_OF_CORRECT,
    ITEMS,
    SEEDS,
    Result,
    Watch,
    measure,
    opened,
    passes_naive_test,
)

from spec import Case
from spec.case import DTYPES


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seeds", SEEDS))


@pytest.mark.parametrize("mutant", mutants(), ids=str)
def test_a_mutant_is_found_and_named(
    mutant: Mutant, seeds: int, record_property: pytest.RecordProperty, request: pytest.FixtureRequest
) -> None:
    result = measure(mutant, seeds)
    naive = request.config.getoption("--naive", False) and not passes_naive_test(mutant)
    record_property("mutant", _row(mutant, result, naive))

    assert result.worst, f"not found from every seed: {result.examples}"
    assert set(result.raised) <= {*mutant.clauses, *mutant.also}
    for bug, clause in enumerate(mutant.clauses):
        named = _named(mutant, bug, result)
        assert named, f"no report of {clause}, but of {sorted(result.raised)}"
        _check_size(mutant, result.raised[named])
        said = result.diagnoses[named].looks
        assert _verdict(mutant, bug, said) != "wrong", said


def _named(mutant: Mutant, bug: int, result: Result) -> str:
    """The clause under which a bug was reported: its own, or of a lone bug one that may name it too."""
    names = (mutant.clauses[bug], *(mutant.also if len(mutant.clauses) == 1 else ()))
    return next((name for name in names if name in result.raised), "")


def _check_size(mutant: Mutant, case: Case) -> None:
    more = case.P // ITEMS[mutant.items[0]].P  # an item further down may have more ranks
    assert case.rows <= mutant.rows, case
    assert case.in_features <= more * mutant.in_features, case
    assert case.out_features <= more * mutant.out_features, case


def _verdict(mutant: Mutant, bug: int, said: tuple[str, ...]) -> str:
    """Whether what was said of a bug is right, wrong or nothing."""
    if not said:
        return "none"
    for expected in (*mutant.looks[bug : bug + 1], *mutant.also_looks):
        subject, _, sentence = expected.partition(": ")
        if sentence and any(line.startswith(f"{subject}: consistent with {sentence}") for line in said):
            return "right"
    return "wrong"


def _row(mutant: Mutant, result: Result, naive: bool) -> dict[str, object]:
    reports = []
    for bug, clause in enumerate(mutant.clauses):
        named = _named(mutant, bug, result)
        said = result.diagnoses[named].looks if named else ()
        case = str(result.raised[named]) if named else ""
        verdict = _verdict(mutant, bug, said)
        reports.append({"clause": named or f"not {clause}", "case": case, "said": list(said), "verdict": verdict})
    return {"name": str(mutant), "worst": result.worst, "reports": reports, "naive": naive}


RIGHT = ("torch_tp", "numpy")
CONTROLS = [
    f"{procedure}-{layer}-P{P}-{dtype}"
    for P in (1, 2, 4)
    for dtype in DTYPES
    for layer in ("column", "row", "merged", "qkv", "copy", "reduce", "gather", "scatter")
    for procedure in ("run", "precision")
    if f"{procedure}-{layer}-P{P}-{dtype}" in ITEMS
]


@pytest.mark.parametrize("impl", [*RIGHT, *(mutant.impl for mutant in lawful())], ids=lambda impl: impl.split(":")[-1])
def test_a_correct_implementation_is_never_accused(
    impl: str, request: pytest.FixtureRequest, record_property: pytest.RecordProperty
) -> None:
    """Gaussian and exact values, every dtype, every P, spread evenly over the items."""
    each = -(-int(request.config.getoption("--examples", EXAMPLES_OF_CORRECT)) // len(CONTROLS))
    with opened(impl) as suite:
        accused = {name: Watch(suite, name).run(7, shrink=False, examples=each) for name in CONTROLS}
        judged = sum(suite.tally.examples.values())

    record_property("control", {"name": impl.split(":")[-1], "examples": judged})
    assert {name: clauses for name, clauses in accused.items() if clauses} == {}
    assert suite.tally.intermittent == []
