"""Verdicts as text: a failure, the header, and the table that closes a run."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.diagnosis import Diagnosis, diagnose
from conformance.lost import lost_ranks
from conformance.observers import Options
from conformance.suite import Suite, Verdict
from conformance.tally import Tally
from spec import REGISTER, ContractViolation, Finding

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


def header(options: Options, suite: Suite, profile: str, seed: str) -> list[str]:
    """What was examined, with what, on what."""
    declared = suite.declaration
    worlds = ", ".join(map(str, options.world_sizes))
    versions = ", ".join(f"{name} {version}" for name, version in declared.versions.items())
    flags = ", ".join(f"{name}={value}" for name, value in declared.flags.items())
    return [
        f"conformance of {declared.name} ({versions})",
        f"  ranks: world sizes {worlds}, backend {options.backend}, device {options.device}",
        f"  numerics: {flags or 'NumPy'}",
        f"  examples: profile {profile}, seed {seed}; {len(REGISTER)} clauses, truth by JAX (float64, one CPU device)",
    ]


def adapter_sentence(error: Exception) -> str:
    """The adapter's own sentence out of the traceback of a rank that did not start."""
    own = [line for line in str(error).splitlines() if "NoSuchAdapter: " in line]
    return own[-1].partition("NoSuchAdapter: ")[2] if own else str(error)


def closing_table(tally: Tally, worlds: Sequence[int], not_run: Sequence[str]) -> list[str]:
    """Clauses by world size with examples judged; then what was not judged, and why."""
    sizes = sorted({world for _, world in tally.judged} | set(worlds))
    width = max((len(name) for name, _ in tally.judged), default=10)
    lines = [f"{'clause':<{width}}" + "".join(f"{f'world {size}':>14}" for size in sizes)]
    judged = {name for name, _ in tally.judged}
    for name in (name for name in REGISTER if name in judged):
        lines.append(f"{name:<{width}}" + "".join(f"{_cell(tally, name, size):>14}" for size in sizes))
    total = sum(tally.examples.values())
    lines.append(
        f"{'examples':<{width}}" + "".join(f"{tally.examples[size]:>14}" for size in sizes) + f"   {total} in all"
    )
    unjudged = [name for name in REGISTER if name not in judged]
    if unjudged:
        lines.append(f"never judged: {', '.join(unjudged)}")
    for (reason, layer, world), count in sorted(tally.declined.items()):
        lines.append(f"unsupported: {layer} at world size {world}, {count} examples: {reason}")
    lines += [f"not run: {reason}" for reason in not_run]
    lines += [f"intermittent (fails the run): {text}" for text in tally.intermittent]
    return lines


def _cell(tally: Tally, name: str, size: int) -> str:
    judged, broken, blamed = (counter[name, size] for counter in (tally.judged, tally.broken, tally.blamed))
    if not judged:
        return "-"
    if blamed:
        return f"FAIL {blamed}/{judged}"
    label = "should" if REGISTER[name].level == "SHOULD" else "known"
    return f"{label} {broken}/{judged}" if broken else str(judged)


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
