"""Bugs planted in torch_tp, on real ranks: the suite's own items find each and name the clause that it breaks.

The table says what must be named; it was written before anything ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conformance import suite as suite_module
from conformance.items import items
from conformance.observers import Options
from conformance.report import failure
from conformance.suite import Suite
from conformance.test_conformance import examine
from spec import Case, ContractViolation
from spec.reference import cache_compilations_in

PLANTED = Path(__file__).parents[1] / "planted"
ITEMS = {str(item): item for item in items()}


@dataclass(frozen=True)
class Bug:
    """One planted bug and what must be said of it.

    Attributes:
        clause: that names the bug.
        also: clauses that name it in cases which cannot show `clause`, such as an output of one element or of no row.
        rows, width: of the smallest case, at most; width per rank.
    """

    impl: str
    item: str
    clause: str
    also: tuple[str, ...] = ()
    rows: int = 2
    width: int = 2

    def __str__(self) -> str:
        return f"{self.impl.partition(':')[2]}-{self.item}"


INPUT_GRADIENT, BUDGET = "column.backward.input-grad-reduced", "collectives.backward-budget"
WRONG = [
    Bug("values.py:BiasBeforeReduction", "run-row-P2-float32", "row.forward.bias-once", ("row.forward.value",)),
    Bug("values.py:BiasDividedBeforeReduction", "run-row-P2-float32", "row.backward.bias-grad"),
    Bug("values.py:BiasOnRankZero", "run-row-P2-float32", "row.backward.bias-grad"),
    Bug("values.py:InputGradientNotReduced", "run-column-P2-float32", INPUT_GRADIENT, (BUDGET,)),
    Bug("values.py:GatherReversed", "run-gather-P2-float32", "gather.forward"),
    Bug("values.py:GatherReversed", "run-column-P2-float32", "column.forward.gathered"),
    Bug("values.py:WrongCutOfSquares", "run-column-P2-float32", "column.weight.shard", width=4),
    Bug("values.py:GatherBackwardSums", "run-gather-P2-float32", "gather.backward", (BUDGET,)),
    Bug("values.py:WorldForGroup", "run-row-P2of4-float32", "collectives.group"),
    Bug("values.py:UpstreamReducedInPlace", "run-copy-P2-float32", "purity.upstream"),
    Bug("values.py:TemporaryReduced", "run-reduce-P2-float32", "reduce.forward"),
    Bug("values.py:TemporaryReduced", "run-copy-P2-float32", "copy.backward"),
    Bug("values.py:ShardIsView", "run-column-P2-float32", "parameters.own-storage"),
    Bug("precision.py:ReducesInBfloat16", "run-row-P2-float32", "row.forward.value", ("collectives.dtype",)),
    Bug("precision.py:ReducesInBfloat16", "precision-row-P2-float32", "precision.forward", width=64),
    Bug("precision.py:AccumulatesInBfloat16", "precision-column-P2-bfloat16", "precision.forward", rows=3, width=128),
    Bug("precision.py:AccumulatesInBfloat16", "precision-row-P2-bfloat16", "precision.forward", (), 3, 96),
    Bug("precision.py:AccumulatesInBfloat16", "precision-column-P2-float32", "precision.forward", rows=3, width=128),
    Bug(
        "precision.py:WeightGradientInBfloat16",
        "precision-column-P2-bfloat16",
        "precision.weight-grad",
        rows=512,
        width=96,
    ),
    Bug("precision.py:DividesBeforeReduction", "precision-row-P2-float16", "row.forward.value", width=64),
    Bug("precision.py:DividesBeforeReduction", "precision-reduce-P2-float16", "reduce.forward"),
]
LOST = [
    Bug("lost_ranks.py:Raises", "run-row-P2-float32", "ranks.no-exception"),
    Bug("lost_ranks.py:Dies", "run-row-P2-float32", "ranks.alive"),
]
STUCK = [
    Bug("lost_ranks.py:StaysAway", "run-row-P2-float32", "ranks.same-collectives"),
    Bug("lost_ranks.py:AnotherSize", "run-row-P2-float32", "ranks.same-collectives"),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled(pytestconfig: pytest.Config) -> None:
    cache = getattr(pytestconfig, "cache", None)
    cache_compilations_in(str(cache.mkdir("jax")) if cache else "")


@pytest.fixture(scope="module")
def right() -> Iterator[Suite]:
    suite = Suite(Options())
    yield suite
    suite.close()


def failures(suite: Suite, item: str, examples: int = 25, shrink: bool = True) -> dict[str, ContractViolation]:
    """What the suite's own test of an item raises: by clause, the failure on its smallest case."""

    @settings(
        settings.get_profile("tests"),
        max_examples=examples,
        database=None,
        suppress_health_check=list(HealthCheck),  # ranks that hang are slow on purpose
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        examine(ITEMS[item], suite, data)

    raised: dict[str, ContractViolation] = {}
    suite.begin_item()
    try:
        run()
    except* ContractViolation as group:
        raised = {error.clause.name: error for error in group.exceptions if isinstance(error, ContractViolation)}
    return raised


def found(bug: Bug, **how: int) -> dict[str, ContractViolation]:
    suite = Suite(Options(str(PLANTED / bug.impl)))
    try:
        return failures(suite, bug.item, **how)
    finally:
        suite.close()


def the_case(failure: ContractViolation) -> Case:
    """The case that a report says it is about."""
    line = next(line for line in str(failure).splitlines() if line.startswith("  case "))
    return Case.parse(line.removeprefix("  case "))


def check_report(bug: Bug, raised: dict[str, ContractViolation]) -> str:
    """The report on the bug's own clause, which says what every report must, about a small case."""
    assert bug.clause in raised, f"named were {list(raised)}"
    assert set(raised) <= {bug.clause, *bug.also}
    failure = raised[bug.clause]
    text, case = str(failure), the_case(failure)
    assert f"\n{bug.clause} (" in text
    assert "  rank " in text
    assert case.P == 2
    assert case.rows <= bug.rows
    assert case.in_features <= bug.width * (1 if case.layer == "column" else 2)
    assert case.out_features <= bug.width * (2 if case.layer == "column" else 1)
    return text


@pytest.mark.parametrize("bug", WRONG, ids=str)
def test_wrong_numbers_are_named(bug: Bug) -> None:
    check_report(bug, found(bug))


@pytest.mark.parametrize("bug", LOST, ids=str)
def test_a_lost_rank_is_named(bug: Bug) -> None:
    text = check_report(bug, found(bug, examples=1))

    assert "rank 0 victim: entered #1 all-reduce 4 B float32" in text or "rank 0 raised: entered #1" in text
    assert "entered no collective, never joined #1" in text
    assert ("printed last\n             not enough memory for Row" in text) == ("Raises" in bug.impl)
    assert text.count('lost_ranks.py", line') == (2 if "Raises" in bug.impl else 1), "every rank's stack, once"


def test_ranks_that_part_do_not_spoil_the_cases_after() -> None:
    """The next collective would meet the one that was left out, and an innocent case would hang."""
    bug = Bug("lost_ranks.py:StaysAwayWhenEmpty", "run-row-P2-float32", "ranks.same-collectives", rows=0)
    suite = Suite(Options(str(PLANTED / bug.impl)))
    try:
        raised = failures(suite, bug.item)
    finally:
        suite.close()

    assert [bug.clause] == list(raised)
    assert the_case(raised[bug.clause]).rows == 0
    assert suite.tally.intermittent == []


@pytest.mark.parametrize("bug", STUCK, ids=str)
def test_ranks_that_part_are_named_with_where_each_stands(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "DEADLINE", 1.0)
    text = check_report(bug, found(bug, examples=1, shrink=False))

    assert "rank 0 hung: entered #1 all-reduce 4 B float32, and waits in it" in text
    other = "rank 1 hung: entered #1 all-reduce 8 B" if "AnotherSize" in bug.impl else "rank 1 returned: entered no"
    assert other in text
    assert 'lost_ranks.py", line' in text, "the stack of the rank that hangs"


def test_a_rank_that_is_stuck_elsewhere_is_told_from_those_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sum that it finished and the next that it never joined."""
    monkeypatch.setattr(suite_module, "DEADLINE", 1.0)
    suite = Suite(Options(str(PLANTED / "lost_ranks.py:SleepsAfterwards")))
    verdict = suite.examine(Case.parse("row P=2 batch=1 in=2 out=1 float32 world=4 procedure=twice seed=0"))
    suite.close()

    text = failure(suite.options, verdict, verdict.findings[2:])
    assert [finding.group for finding in verdict.findings] == [0, 0, 1, 1]
    assert "all ranks entered #1 all-reduce 4 B float32; they part at #2" in text
    assert "rank 0 (global 2) hung: entered #2 all-reduce 4 B float32, and waits in it" in text
    assert "rank 1 (global 3) hung: finished #1 all-reduce 4 B float32, never joined #2" in text
    stuck = text.partition("  rank 1 (global 3) did not finish\n")[2].splitlines()[0]
    assert stuck.endswith("in sum_and_sleep")


def test_ranks_that_part_are_named_though_it_kills_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that aborts a rank over sizes that do not fit dies of the ranks' parting: that is the cause."""
    monkeypatch.setattr(suite_module, "DEADLINE", 1.0)
    suite = Suite(Options(str(PLANTED / "lost_ranks.py:AnotherSize")))
    verdict = suite.examine(Case.parse("row P=2 batch=3 in=2 out=1 float32 seed=0"))
    suite.close()

    assert verdict.findings[0].clause.name == "ranks.same-collectives"


@pytest.mark.parametrize("item", sorted({bug.item for bug in WRONG}))
def test_the_right_layers_pass_the_same_items(item: str, right: Suite) -> None:
    assert failures(right, item) == {}
    assert right.tally.examples
    assert right.tally.intermittent == []


def test_a_hang_accuses_no_case_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a hang deadlines are short, and ranks are fresh; a case that is right passes all the same."""
    monkeypatch.setattr(suite_module, "DEADLINE", 2.0)
    suite = Suite(Options(str(PLANTED / "lost_ranks.py:StaysAway")))
    hung = suite.examine(Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0"))
    passing = suite.examine(Case.parse("column P=2 batch=1 in=1 out=2 float32 frozen=x seed=0"))
    suite.close()

    assert hung.findings
    assert (passing.findings, passing.intermittent) == ((), "")


def test_what_does_not_come_back_is_neither_a_finding_nor_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_FLAG", str(tmp_path / "flag"))
    suite = Suite(Options(str(PLANTED / "lost_ranks.py:DiesOnce")))
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
    first, again = suite.examine(case), suite.examine(case)
    suite.close()

    assert "rank 1 died: killed by signal 9 (SIGKILL)" in first.intermittent
    assert first.findings == ()
    assert suite.tally.intermittent == [f"{case}\n{first.intermittent}"]
    assert again.intermittent == ""
    assert suite.tally.examples == {2: 1}
