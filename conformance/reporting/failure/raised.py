"""Failures of tests: raised with what was seen, explained once they are as small as they get, kept for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conformance.diagnosis import Diagnosis, diagnose
from conformance.observers import Options
from conformance.reporting.evidence import evidence
from conformance.reporting.failure.lost import lost_ranks
from conformance.reporting.failure.text import failure, others, replay, rounding
from conformance.reporting.record import DiagnosisText, Failure, KnownReason, ViolationText
from conformance.suite import Suite, Verdict, truth_of
from spec import ContractViolation, Finding


def raise_first(options: Options, verdict: Verdict, blamed: Sequence[Finding]) -> None:
    """Raise the first cause as its clause's own exception, so that a shrinker never mixes two clauses up."""
    __tracebackhide__ = True
    if blamed:
        error = blamed[0].clause.error(failure(options, verdict, blamed))
        error.evidence = (verdict, tuple(blamed))
        raise error


def explain(suite: Suite, error: BaseException) -> None:
    """Put the diagnosis into the text of every violation in an error, and keep each for the report.

    To be called once a failure is as small as it gets: a diagnosis runs cases of its own.
    """
    for violation in violations(error):
        verdict, blamed = violation.evidence
        diagnosis = diagnose(verdict, blamed[0], suite.look, suite.options.world_sizes)
        violation.args = (failure(suite.options, verdict, blamed, diagnosis),)
        if suite.options.records:
            suite.failures.append(recorded(suite, verdict, blamed, diagnosis))


def keep_known(suite: Suite, verdict: Verdict, finding: Finding, known: KnownReason) -> None:
    """Keep a known deviation for the report, like a failure, where there is to be one."""
    if suite.options.records:
        rest = [other for other in verdict.findings if other is not finding]
        diagnosis = diagnose(verdict, finding, suite.look, suite.options.world_sizes)
        suite.failures.append(recorded(suite, verdict, [finding, *rest], diagnosis, known))


def recorded(
    suite: Suite, verdict: Verdict, blamed: Sequence[Finding], diagnosis: Diagnosis, known: KnownReason | None = None
) -> Failure:
    """What a report keeps of a failure; who ran it enters the item."""
    first, case = blamed[0], verdict.case
    seen = verdict.groups[first.group]
    return Failure(
        first.clause.name,
        case.world,
        case.layer,
        "",
        str(case),
        replay(suite.options, verdict),
        known,
        tuple(ViolationText(v.rank, v.step, v.what, v.expected, v.got) for v in first.violations),
        others(blamed),
        DiagnosisText(
            diagnosis.looks, diagnosis.next, diagnosis.passes, str(diagnosis.probe or ""), rounding(diagnosis)
        ),
        tuple(lost_ranks(seen, case.group_ranks[first.group])),
        failure(suite.options, verdict, blamed, diagnosis),
        evidence(case, truth_of(case, first.group, seen), seen, first.group),
    )


def violations(error: BaseException) -> Iterator[ContractViolation]:
    """The violations with evidence in an error; Hypothesis raises several as a group."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from violations(part)
    elif isinstance(error, ContractViolation) and error.evidence:
        yield error
