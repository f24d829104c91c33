"""The text of a failure and of the closing table, pinned."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty import BiasBeforeReduction

from conformance.observers import InProcess, Options
from conformance.report import closing_table, failure, raise_first
from conformance.suite import Suite, Verdict
from conformance.tally import Tally
from spec import REGISTER, Case, Finding, Observation, Violation

LINE = "row P=2 batch=1 in=2 out=2 float32 bias values=small seed=0"
BIAS_ONCE = """
row.forward.bias-once (MUST): The bias enters the row output once
  contract Y = sum_r X_r W_r^T + b: the bias is added once, after the reduction, for every P.
  case     row P=2 batch=1 in=2 out=2 float32 bias values=small seed=0
  replay   python -m conformance replay --impl numpy "row P=2 batch=1 in=2 out=2 float32 bias values=small seed=0"
  rank 0   output minus the product is not the bias
           expected  [-2.,  2.]
           got       [-4.,  4.]
  rank 1   output minus the product is not the bias
           expected  [-2.,  2.]
           got       [-4.,  4.]
  looks    output: consistent with a bias that is counted 2 times"""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite in front of a simulation that adds the bias before the reduction."""
    suite = Suite(Options(impl="numpy"))
    monkeypatch.setattr(suite, "observer", InProcess(BiasBeforeReduction()))
    return suite


def test_a_failure_says_requirement_case_replay_and_both_sides(faulty: Suite) -> None:
    verdict = faulty.examine(Case.parse(LINE))

    assert failure(faulty.options, verdict, verdict.findings) == BIAS_ONCE


def test_a_failure_is_raised_as_its_clause_s_own_exception(faulty: Suite) -> None:
    verdict = faulty.examine(Case.parse(LINE))

    with pytest.raises(REGISTER["row.forward.bias-once"].error, match="The bias enters the row output once"):
        raise_first(faulty.options, verdict, verdict.findings)


def test_a_known_deviation_does_not_fail_the_run(faulty: Suite, tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text(f'[[deviation]]\nclause = "row.forward.bias-once"\ncase = "{LINE}"\nreason = "on purpose"\n')
    suite = Suite(Options(impl="numpy", known=str(file)))
    suite.observer = InProcess(BiasBeforeReduction())

    verdict = suite.examine(Case.parse(LINE))

    assert [finding.clause.name for finding in verdict.findings] == ["row.forward.bias-once"]
    assert suite.blamed(verdict) == ()
    assert suite.tally.blamed.total() == 0


def test_lost_ranks_are_shown_with_their_collectives_and_stacks() -> None:
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
    seen = (
        Observation(0, fate="hung", entered=("#1 all-reduce 4 B float32",), stack="File a.py, line 3 in wait"),
        Observation(1, fate="hung", stack="File b.py, line 7 in forward"),
    )
    clause = REGISTER["ranks.same-collectives"]
    # A clause about ranks asks for no truth.
    finding = Finding(clause, 0, tuple(clause.check(case, None, seen)))  # type: ignore[arg-type]

    text = failure(Options(), Verdict(case, (finding,), (seen,)), (finding,))

    assert "rank 0 hung: entered #1 all-reduce 4 B float32" in text
    assert "rank 1 hung: entered no collective, never joined #1" in text
    assert "File b.py, line 7 in forward" in text


def test_the_closing_table_tells_failed_known_should_and_unsupported_apart() -> None:
    tally, case = Tally(), Case.parse(LINE)
    blamed = (Finding(REGISTER["row.forward.value"], 0, (Violation(0, "first", "differs"),)),)
    names = ["row.forward.value", "row.weight.shard", "collectives.forward-budget", "forward.dtype"]
    failing = frozenset({"row.forward.value", "row.weight.shard", "collectives.forward-budget"})
    tally.count(case, names, failing, blamed)
    tally.decline(case, "has no row")
    tally.intermittent.append("row P=2 ...\nrank 1 died")

    table = closing_table(tally, (2,), ["world size 4: not in --world-sizes"])

    assert [line.split() for line in table[:6]] == [
        ["clause", "world", "2"],
        ["row.weight.shard", "known", "1/1"],
        ["row.forward.value", "FAIL", "1/1"],
        ["forward.dtype", "1"],
        ["collectives.forward-budget", "should", "1/1"],
        ["examples", "1", "1", "in", "all"],
    ]
    assert table[-3:] == [
        "unsupported: row at world size 2, 1 examples: has no row",
        "not run: world size 4: not in --world-sizes",
        "intermittent (fails the run): row P=2 ...\nrank 1 died",
    ]
