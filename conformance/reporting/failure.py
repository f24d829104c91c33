"""A verdict as text: requirement, case, expected against got, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.diagnosis import Diagnosis, diagnose
from conformance.observers import Options
from conformance.reporting.lost import lost_ranks
from conformance.suite import Suite, Verdict
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
        f'  replay   python -m conformance replay{_impl(options)} "{verdict.case}"',
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
    others = dict.fromkeys(finding.clause.name for finding in blamed if finding.clause is not clause)
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
    excessive = [error for error in diagnosis.errors if error.excessive] or diagnosis.errors[:1]
    for number, error in enumerate(excessive):
        lines += _wrapped("rounding" if number == 0 else "", str(error))
    return lines


def raise_first(options: Options, verdict: Verdict, blamed: Sequence[Finding]) -> None:
    """Raise the first cause as its clause's own exception, so that a shrinker never mixes two clauses up."""
    __tracebackhide__ = True
    if blamed:
        error = blamed[0].clause.error(failure(options, verdict, blamed))
        error.evidence = (verdict, tuple(blamed))
        raise error


def explain(suite: Suite, error: BaseException) -> None:
    """Put the diagnosis into the text of every violation in an error.

    To be called once a failure is as small as it gets: a diagnosis runs cases of its own.
    """
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            explain(suite, part)
    elif isinstance(error, ContractViolation) and error.evidence:
        verdict, blamed = error.evidence
        diagnosis = diagnose(verdict, blamed[0], suite.look, suite.options.world_sizes)
        error.args = (failure(suite.options, verdict, blamed, diagnosis),)


def adapter_sentence(error: Exception) -> str:
    """The adapter's own sentence out of the traceback of a rank that did not start."""
    own = [line for line in str(error).splitlines() if "NoSuchAdapter: " in line]
    return own[-1].partition("NoSuchAdapter: ")[2] if own else str(error)


def _impl(options: Options) -> str:
    defaults = Options()
    given = [
        (flag, getattr(options, name), getattr(defaults, name))
        for flag, name in (("--impl", "impl"), ("--backend", "backend"), ("--device", "device"))
    ]
    return "".join(f" {flag} {value}" for flag, value, default in given if value != default)


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
