"""The text of a failure and of the closing table, pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faulty import BiasBeforeReduction

from conformance.observers import InProcess, Options
from conformance.reporting.failure.raised import explain, raise_first
from conformance.reporting.failure.text import failure
from conformance.reporting.session.tables import closing_table
from conformance.suite import Suite, Verdict
from conformance.tally import Tally
from spec import REGISTER, Case, ContractViolation, Finding, Observation, Violation

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
  looks    output: consistent with a bias that is counted P times
  next     Add the bias once, in a row layer after the reduction: inside F.linear every rank adds it.
  probe    told from row P=4 batch=5 in=24 out=7 float64 bias values=small seed=0"""

LOST = """\
  ranks    the ranks part at collective #1
           expected  one sequence on all ranks
           got       rank 0 entered #1 all-reduce 4 B float32, and waits in it
                     rank 1 entered no collective, never joined #1
  collectives
           the ranks part at #1, their first collective
           rank 0 hung: entered #1 all-reduce 4 B float32, and waits in it
           rank 1 hung: entered no collective, never joined #1
  stacks   innermost call first
  rank 0   did not finish
             File "a.py", line 7 in wait
  rank 1   did not finish
             File "b.py", line 7 in forward"""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite in front of a simulation that adds the bias before the reduction."""
    suite = Suite(Options(impl="numpy"))
    monkeypatch.setattr(suite, "observer", InProcess(BiasBeforeReduction()))
    return suite


def test_a_failure_says_requirement_case_replay_and_both_sides(faulty: Suite) -> None:
    verdict = faulty.examine(Case.parse(LINE))

    with pytest.raises(ContractViolation) as raised:
        raise_first(faulty.options, verdict, verdict.findings)
    explain(faulty, raised.value)

    assert str(raised.value) == BIAS_ONCE


REAL = "row P=2 batch=1 in=128 out=2 float32 bias values=positive procedure=precision seed=0"
NUMBER = r"[\d.e+-]+"
ROUNDING = (
    rf"\n  rounding output: error {NUMBER}, bound {NUMBER}, ratio {NUMBER}: more than rounding; a correct one errs by"
    rf"\s+{NUMBER} there, at most {NUMBER} of the bound$"
)


def test_a_real_valued_failure_says_whether_it_is_a_bug_or_rounding(faulty: Suite) -> None:
    verdict = faulty.examine(Case.parse(REAL))
    with pytest.raises(ContractViolation) as raised:
        raise_first(faulty.options, verdict, verdict.findings)
    explain(faulty, raised.value)

    assert re.search(ROUNDING, str(raised.value))


def test_every_failure_of_a_group_is_explained(faulty: Suite) -> None:
    """Hypothesis raises two bugs as a group, which may be nested in another."""
    verdict = faulty.examine(Case.parse(LINE))
    with pytest.raises(ContractViolation) as raised:
        raise_first(faulty.options, verdict, verdict.findings)
    explain(faulty, ExceptionGroup("two", [ExceptionGroup("one", [raised.value]), ValueError("no violation")]))

    assert "  looks    output: consistent with" in str(raised.value)


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


def _stack(file: str, function: str) -> str:
    return f'Current thread 0x01 (most recent call first):\n  File "{file}", line 7 in {function}\n'


def test_lost_ranks_are_shown_with_their_collectives_and_stacks() -> None:
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
    seen = (
        Observation(0, fate="hung", entered=("#1 all-reduce 4 B float32", "#1 waits"), stack=_stack("a.py", "wait")),
        Observation(1, fate="hung", stack=_stack("b.py", "forward")),
    )
    clause = REGISTER["ranks.same-collectives"]
    # A clause about ranks asks for no truth.
    finding = Finding(clause, 0, tuple(clause.check(case, None, seen)))  # type: ignore[arg-type]

    text = failure(Options(), Verdict(case, (finding,), (seen,)), (finding,))

    assert text.partition('seed=0"\n')[2] == LOST


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
