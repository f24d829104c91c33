"""A verdict as text: requirement, case, expected against got, and what it looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conformance.diagnosis import Diagnosis, diagnose
from conformance.observers import Options
from conformance.reporting.lost import lost_ranks
from conformance.reporting.record import DiagnosisText, Failure, KnownReason, ViolationText
from conformance.suite import Suite, Verdict, truth_of
from spec import ContractViolation, Finding

_INDENT = "           "


def failure(options: Options, verdict: Verdict, blamed: Sequence[Finding], diagnosis: Diagnosis | None = None) -> str:
    """Requirement, case, expected against got, for the first cause; the other broken clauses by name."""
    first = blamed[0]
    clause = first.clause
    lines = [
        "",
        f"{clause.name} ({clause.level}): {clause.title}",
        *_wrapped("contract", clause.text),
        f"  case     {verdict.case}",
        f"  replay   {_replay(options, verdict)}",
    ]
    if len(verdict.groups) > 1:
        lines.append(f"  group    {first.group}: global ranks {list(verdict.case.group_ranks[first.group])}")
    for violation in first.violations[:4]:
        where = "ranks" if violation.rank is None else f"rank {violation.rank}"
        lines.append(
            f"  {where:<8} {violation.what}"
            + (f" (in the {violation.step} run)" if violation.step not in ("", "first") else "")
        )
        lines += _side("expected", violation.expected) + _side("got", violation.got)
    if len(first.violations) > 4:
        lines.append(f"{_INDENT}and {len(first.violations) - 4} more")
    others = _others(blamed)
    if others:
        lines += _wrapped("also", "broken by this case: " + ", ".join(others))
    lines += _diagnosed(diagnosis or Diagnosis())
    return "\n".join(lines + lost_ranks(verdict.groups[first.group], verdict.case.group_ranks[first.group]))


def _diagnosed(diagnosis: Diagnosis) -> list[str]:
    lines: list[str] = []
    for number, sentence in enumerate(diagnosis.looks):
        lines += _wrapped("looks" if number == 0 else "", sentence)
    if diagnosis.next:
        lines += _wrapped("next", diagnosis.next)
    if diagnosis.passes:
        lines += _wrapped("passes", f"the same case {', and '.join(diagnosis.passes)}")
    if diagnosis.probe:
        lines += _wrapped("probe", f"told from {diagnosis.probe}")
    for number, text in enumerate(_rounding(diagnosis)):
        lines += _wrapped("rounding" if number == 0 else "", text)
    return lines


def _others(blamed: Sequence[Finding]) -> tuple[str, ...]:
    """The clauses that were broken besides the first, each once."""
    names = (finding.clause.name for finding in blamed if finding.clause is not blamed[0].clause)
    return tuple(dict.fromkeys(names))


def _rounding(diagnosis: Diagnosis) -> tuple[str, ...]:
    return tuple(map(str, [error for error in diagnosis.errors if error.excessive] or diagnosis.errors[:1]))


def recorded(
    suite: Suite, verdict: Verdict, blamed: Sequence[Finding], diagnosis: Diagnosis, known: KnownReason | None = None
) -> Failure:
    """What a report keeps of a failure; who ran it enters the item."""
    from conformance.reporting.evidence import evidence

    first, case = blamed[0], verdict.case
    seen = verdict.groups[first.group]
    return Failure(
        first.clause.name,
        case.world,
        case.layer,
        "",
        str(case),
        _replay(suite.options, verdict),
        known,
        tuple(ViolationText(v.rank, v.step, v.what, v.expected, v.got) for v in first.violations),
        _others(blamed),
        DiagnosisText(
            diagnosis.looks, diagnosis.next, diagnosis.passes, str(diagnosis.probe or ""), _rounding(diagnosis)
        ),
        tuple(lost_ranks(seen, case.group_ranks[first.group])),
        failure(suite.options, verdict, blamed, diagnosis),
        evidence(case, truth_of(case, first.group, seen), seen, first.group),
    )


def keep_known(suite: Suite, verdict: Verdict, finding: Finding, known: KnownReason) -> None:
    """Keep a known deviation for the report, like a failure, where there is to be one."""
    if suite.options.records:
        rest = [other for other in verdict.findings if other is not finding]
        diagnosis = diagnose(verdict, finding, suite.look, suite.options.world_sizes)
        suite.failures.append(recorded(suite, verdict, [finding, *rest], diagnosis, known))


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


def violations(error: BaseException) -> Iterator[ContractViolation]:
    """The violations with evidence in an error; Hypothesis raises several as a group."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from violations(part)
    elif isinstance(error, ContractViolation) and error.evidence:
        yield error


def adapter_sentence(error: Exception) -> str:
    """The adapter's own sentence out of the traceback of a rank that did not start."""
    own = [line for line in str(error).splitlines() if "NoSuchAdapter: " in line]
    return own[-1].partition("NoSuchAdapter: ")[2] if own else str(error)


def _replay(options: Options, verdict: Verdict) -> str:
    defaults = Options()
    given = [
        (flag, getattr(options, name), getattr(defaults, name))
        for flag, name in (("--impl", "impl"), ("--backend", "backend"), ("--device", "device"))
    ]
    words = "".join(f" {flag} {value}" for flag, value, default in given if value != default)
    return f'python -m conformance replay{words} "{verdict.case}"'


def _wrapped(label: str, text: str) -> list[str]:
    words, lines, line = text.split(), [], ""
    for word in words:
        if len(line) + len(word) > 100:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    lines.append(line)
    return [f"  {label:<8} {lines[0]}", *(_INDENT + rest for rest in lines[1:])]


def _side(label: str, text: str) -> list[str]:
    if not text:
        return []
    first, *rest = text.strip("\n").splitlines()
    if len(rest) > 30:
        rest = [*rest[:14], f"... {len(rest) - 29} lines ...", *rest[-15:]]
    return [f"{_INDENT}{label:<9} {first}", *(f"{_INDENT}{'':<9} {line}" for line in rest)]
