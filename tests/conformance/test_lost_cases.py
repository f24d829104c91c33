"""Cases that lose ranks: what the report says of each rank, and that no case after it pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance import suite as suite_module
from conformance.observers import Options
from conformance.reporting.failure.text import failure
from conformance.suite import Suite, Verdict
from spec import Case
from spec.reference import cache_compilations_in

HERE = Path(__file__).parent
MUTANTS = HERE.parent / "mutants" / "lost_ranks.py"
LOSING = HERE / "losing_ranks.py"
ROW = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")

Examine = Callable[..., tuple[Suite, Verdict]]


@pytest.fixture(scope="module", autouse=True)
def _compiled(pytestconfig: pytest.Config) -> None:
    cache = getattr(pytestconfig, "cache", None)
    cache_compilations_in(str(cache.mkdir("jax")) if cache else "")


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Examine]:
    """Run a case on an implementation that loses ranks, without the usual patience."""
    opened: list[Suite] = []
    monkeypatch.setattr(suite_module, "DEADLINE", 1.0)

    def run(name: str, case: Case = ROW, file: Path = MUTANTS) -> tuple[Suite, Verdict]:
        opened.append(Suite(Options(f"{file}:{name}")))
        return opened[-1], opened[-1].examine(case)

    yield run
    for suite in opened:
        suite.close()


def report(suite: Suite, verdict: Verdict) -> str:
    return failure(suite.options, verdict, verdict.findings)


@pytest.mark.parametrize(
    ("name", "clause", "stacks"), [("Raises", "ranks.no-exception", 2), ("Dies", "ranks.alive", 1)]
)
def test_a_lost_rank_is_named(examine: Examine, name: str, clause: str, stacks: int) -> None:
    suite, verdict = examine(name)
    text = report(suite, verdict)

    assert verdict.findings[0].clause.name == clause
    assert "rank 0 victim: entered #1 all-reduce 4 B float32" in text or "rank 0 raised: entered #1" in text
    assert "entered no collective, never joined #1" in text
    assert ("printed last\n             not enough memory for Row" in text) == (name == "Raises")
    assert text.count('lost_ranks.py", line') == stacks, "every rank's stack, once"


@pytest.mark.parametrize("name", ["StaysAway", "AnotherSize"])
def test_ranks_that_part_are_named_with_where_each_stands(examine: Examine, name: str) -> None:
    suite, verdict = examine(name)
    text = report(suite, verdict)

    assert verdict.findings[0].clause.name == "ranks.same-collectives"
    assert "rank 0 hung: entered #1 all-reduce 4 B float32, and waits in it" in text
    other = "rank 1 hung: entered #1 all-reduce 8 B" if name == "AnotherSize" else "rank 1 returned: entered no"
    assert other in text
    assert 'lost_ranks.py", line' in text, "the stack of the rank that hangs"


def test_ranks_that_part_do_not_spoil_the_cases_after(examine: Examine) -> None:
    """The next collective would meet the one that was left out, and an innocent case would hang."""
    suite, verdict = examine("StaysAwayWhenEmpty", Case.parse("row P=2 batch=0 in=2 out=1 float32 seed=0"))
    innocent = suite.examine(ROW)

    assert verdict.findings[0].clause.name == "ranks.same-collectives"
    assert (innocent.findings, innocent.intermittent) == ((), "")


def test_a_rank_that_is_stuck_elsewhere_is_told_from_those_that_wait_for_it(examine: Examine) -> None:
    """By the sum that it finished and the next that it never joined."""
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 world=4 procedure=twice seed=0")
    suite, verdict = examine("SleepsAfterwards", case, LOSING)

    text = failure(suite.options, verdict, verdict.findings[2:])
    assert [finding.group for finding in verdict.findings] == [0, 0, 1, 1]
    assert "all ranks entered #1 all-reduce 4 B float32; they part at #2" in text
    assert "rank 0 (global 2) hung: entered #2 all-reduce 4 B float32, and waits in it" in text
    assert "rank 1 (global 3) hung: finished #1 all-reduce 4 B float32, never joined #2" in text
    stuck = text.partition("  rank 1 (global 3) did not finish\n")[2].splitlines()[0]
    assert stuck.endswith("in sum_and_sleep")


def test_ranks_that_part_are_named_though_it_kills_one(examine: Examine) -> None:
    """A transport that aborts a rank over sizes that do not fit dies of the ranks' parting: that is the cause."""
    _, verdict = examine("AnotherSize", Case.parse("row P=2 batch=3 in=2 out=1 float32 seed=0"))

    assert verdict.findings[0].clause.name == "ranks.same-collectives"


def test_a_hang_accuses_no_case_that_follows(examine: Examine) -> None:
    """After a hang deadlines are short, and ranks are fresh; a case that is right passes all the same."""
    suite, hung = examine("StaysAway")
    passing = suite.examine(Case.parse("column P=2 batch=1 in=1 out=2 float32 frozen=x seed=0"))

    assert hung.findings
    assert (passing.findings, passing.intermittent) == ((), "")


def test_what_does_not_come_back_is_neither_a_finding_nor_a_pass(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_FLAG", str(tmp_path / "flag"))
    suite, first = examine("DiesOnce", ROW, LOSING)
    again = suite.examine(ROW)

    assert "rank 1   died: killed by signal 9 (SIGKILL)" in first.intermittent
    assert first.findings == ()
    assert suite.tally.intermittent == [f"{ROW}\n{first.intermittent}"]
    assert again.intermittent == ""
    assert suite.tally.examples == {2: 1}


def test_what_is_only_slow_after_a_hang_is_no_hang(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a hang deadlines are short, but a hang that stands elsewhere is given its full time once more."""
    monkeypatch.setattr(suite_module, "DEADLINE", 4.0)
    suite, hung = examine("HangsOnceOthersSlow", Case.parse("row P=2 batch=1x1x1 in=2 out=1 float32 seed=0"), LOSING)
    slow = suite.examine(ROW)

    assert hung.findings[0].clause.name == "ranks.finish"
    assert (slow.findings, slow.intermittent) == ((), "")
    assert suite.tally.intermittent == []


@pytest.mark.parametrize(
    ("name", "procedure", "hangs"),
    [("Slow", "run", True), ("SlowAndSaysSo", "run", False), ("Slow", "checkpoint", False)],
)
def test_a_case_has_the_time_that_its_implementation_or_its_procedure_needs(
    examine: Examine, name: str, procedure: str, hangs: bool
) -> None:
    suite, verdict = examine(
        name, Case.parse(f"row P=1 batch=1 in=2 out=1 float32 procedure={procedure} seed=0"), LOSING
    )

    assert [finding.clause.name for finding in verdict.findings] == ["ranks.finish"] * hangs
    assert (verdict.intermittent, suite.tally.intermittent) == ("", [])


def test_an_implementation_with_a_deadline_keeps_it_after_a_hang(examine: Examine) -> None:
    suite, hung = examine("SlowAndOnceStuck", Case.parse("row P=1 batch=1x1x1 in=2 out=1 float32 seed=0"), LOSING)
    slow = suite.examine(Case.parse("row P=1 batch=1 in=2 out=1 float32 seed=0"))

    assert hung.findings[0].clause.name == "ranks.finish"
    assert (slow.findings, slow.intermittent) == ((), "")
