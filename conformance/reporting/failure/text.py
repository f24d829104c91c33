"""A verdict as text: requirement, case, expected against got, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.diagnosis import Diagnosis
from conformance.observers import Options
from conformance.reporting.failure.lost import lost_ranks
from conformance.suite import Verdict
from spec import Finding

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
        f"  replay   {replay(options, verdict)}",
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
    also = others(blamed)
    if also:
        lines += _wrapped("also", "broken by this case: " + ", ".join(also))
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
    for number, text in enumerate(rounding(diagnosis)):
        lines += _wrapped("rounding" if number == 0 else "", text)
    return lines


def others(blamed: Sequence[Finding]) -> tuple[str, ...]:
    """The clauses that were broken besides the first, each once."""
    names = (finding.clause.name for finding in blamed if finding.clause is not blamed[0].clause)
    return tuple(dict.fromkeys(names))


def rounding(diagnosis: Diagnosis) -> tuple[str, ...]:
    """The excessive errors, or else the first there is."""
    return tuple(map(str, [error for error in diagnosis.errors if error.excessive] or diagnosis.errors[:1]))


def replay(options: Options, verdict: Verdict) -> str:
    """The command that runs the case again."""
    defaults = Options()
    given = [
        (flag, getattr(options, name), getattr(defaults, name))
        for flag, name in (("--impl", "impl"), ("--backend", "backend"), ("--device", "device"))
    ]
    words = "".join(f" {flag} {value}" for flag, value, default in given if value != default)
    return f'python -m conformance replay{words} "{verdict.case}"'


def adapter_sentence(error: Exception) -> str:
    """The adapter's own sentence out of the traceback of a rank that did not start."""
    own = [line for line in str(error).splitlines() if "NoSuchAdapter: " in line]
    return own[-1].partition("NoSuchAdapter: ")[2] if own else str(error)


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
