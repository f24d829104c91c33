"""What is said of storage, of collectives and of lost ranks, from observations that were made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.diagnosis.facts import facts
from spec import Array, Case, Collective, Observation, Raised, Step

COLUMN = Case.parse("column P=2 batch=1 in=2 out=2 float32 seed=0")
ROW = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
SHARD = Array(bytes(8), "float32", (1, 2))
SUM = Collective("all-reduce", 4, "float32")
GATHER = Collective("all-gather", 4, "float32")


def both(step: Step) -> tuple[Observation, ...]:
    return tuple(Observation(rank, {step.name: step}) for rank in range(2))


@pytest.mark.parametrize(
    ("clause", "step", "said"),
    [
        (
            "purity.inputs",
            Step("first", mutated=("x", "g")),
            ("caller's x", "an operation in place on what is the caller's"),
        ),
        (
            "purity.upstream",
            Step("first", mutated=("g",)),
            ("caller's g", "an operation in place on what is the caller's"),
        ),
        (
            "purity.masters",
            Step("first", mutated=("master_weight",)),
            ("caller's master_weight", "an operation in place on what is the caller's"),
        ),
        ("purity.no-alias", Step("first", shared=("output/x",)), ("output", "storage that is shared with x")),
        ("purity.no-alias", Step("first", shared=("x.grad/g",)), ("gradient of x", "storage that is shared with g")),
        (
            "parameters.own-storage",
            Step("first", {"weight": SHARD}, shared=("weight/master_weight",)),
            ("weight", "storage that is shared with the master weight"),
        ),
        (
            "parameters.own-storage",
            Step("first", {"weight": SHARD}, facts={"storage_bytes": {"weight": 16}}),
            ("weight", "a view that keeps the whole master alive"),
        ),
        ("collectives.group", Step("first"), ("collectives", "a reduction over ranks of another group")),
        (
            "collectives.forward-budget",
            Step("first", collectives=(SUM, SUM)),
            ("collectives", "a collective too many: all-reduce 4 B in the forward"),
        ),
        (
            "collectives.forward-budget",
            Step("first", collectives=()),
            ("collectives", "a collective that is left out: all-reduce 4 B in the forward"),
        ),
        (
            "collectives.forward-budget",
            Step("first", collectives=(GATHER,)),
            ("collectives", "another collective: all-gather 4 B in the forward in place of all-reduce 4 B"),
        ),
    ],
)
def test_what_a_clause_shows_by_itself_is_said(clause: str, step: Step, said: tuple[str, str]) -> None:
    assert facts(clause, ROW if clause.startswith("collectives") else COLUMN, both(step)) == [said]


def test_a_clause_about_numbers_shows_nothing_by_itself() -> None:
    assert facts("row.forward.value", ROW, both(Step("first"))) == []


HERE, THERE = (
    Observation(0, fate="hung", entered=("#1 all-reduce 4 B float32", "#1 waits")),
    Observation(1, fate="hung"),
)
ERROR = Raised(("MemoryError", "Exception"), "no room")


def test_ranks_that_part_are_said_with_what_each_did() -> None:
    ((subject, sentence),) = facts("ranks.same-collectives", ROW, (HERE, THERE))

    assert subject == "ranks"
    assert sentence == (
        "ranks in different collectives: rank 0 entered #1 all-reduce 4 B float32, and waits in it; "
        "rank 1 entered no collective, never joined #1"
    )


def test_ranks_that_return_from_different_collectives_are_said_with_them() -> None:
    one, two = Step("first", collectives=(SUM,)), Step("first", collectives=())
    seen = (Observation(0, {"first": one}), Observation(1, {"first": two}))

    assert facts("ranks.same-collectives", ROW, seen) == [
        ("ranks", "ranks in different collectives: rank 0 entered all-reduce 4 B float32; rank 1 entered none")
    ]


def test_a_hang_says_how_far_each_rank_came() -> None:
    assert facts("ranks.finish", ROW, (HERE, replace(THERE, fate="victim"))) == [
        ("ranks", "a hang: rank 0 waits in #1 all-reduce 4 B float32")
    ]


def test_a_crash_says_whose() -> None:
    died = (HERE, Observation(1, fate="died", exit="killed by signal 9"))
    raised = (replace(HERE, fate="victim"), Observation(1, fate="raised", raised=ERROR))
    everyone = tuple(Observation(rank, fate="raised", raised=ERROR) for rank in range(2))

    assert facts("ranks.alive", ROW, died) == [("ranks", "a crash: rank 1's process ends")]
    assert facts("ranks.no-exception", ROW, raised) == [("ranks", "a crash: rank 1 raises MemoryError")]
    assert facts("ranks.no-exception", ROW, everyone) == [("ranks", "a crash: every rank raises MemoryError")]
