"""From a failing verdict to its diagnosis: read the case, run a probe and some contrasts, and say what fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conformance.diagnosis import runs
from conformance.diagnosis import sentences as say
from conformance.diagnosis.conduct import conduct
from conformance.diagnosis.facts import facts
from conformance.diagnosis.guesses import fitting, ranks
from conformance.diagnosis.probe import contrasts, is_larger, probes, single_rank
from conformance.diagnosis.rounding import Error, errors
from conformance.diagnosis.tensors import Tensor, tensors
from conformance.suite import Verdict
from spec import Case, Finding, Observation, Truth
from spec.bounds import reduced

Found = tuple[str, str]
_NAMES_RANKS = re.compile(r"\branks? \d")
_WITHOUT_NUMBERS = (say.NO_GRADIENT.partition("{")[0], say.HELD_BY_SOME.partition("{")[0], say.OTHER_SHAPE)
Look = Callable[[Case], Verdict | None]
"""Runs and judges a case without counting it; None where it cannot be run."""


@dataclass(frozen=True)
class Diagnosis:
    """What can be said of a failure.

    Attributes:
        looks: sentences "<subject>: consistent with <mistake>", the likeliest first; empty where nothing fits.
        passes: in what words the same case passes, such as "with contiguous tensors".
        probe: the case that the sentences were read from, if it is another than the failing one.
        errors: of a real-valued case, every tensor's error beside its bound and a control.
    """

    looks: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    probe: Case | None = None
    errors: tuple[Error, ...] = ()

    @property
    def next(self) -> str:
        """Where to look, or what to try, for the first sentence; empty where there is none."""
        return say.next_step(self.looks[0].partition(": consistent with ")[2]) if self.looks else ""


def diagnose(verdict: Verdict, finding: Finding, look: Look, world_sizes: tuple[int, ...] = ()) -> Diagnosis:
    """What the failure of one clause looks like; `look` runs further cases, and may run none."""
    case, seen, clause = verdict.case, verdict.groups[finding.group], finding.clause.name
    told = facts(clause, case, seen)
    if any(entry.fate != "returned" or entry.raised for entry in seen) or clause.startswith("ranks."):
        return Diagnosis(_lines(told))
    told = told or conduct(clause, case, seen)
    truth = _truth(case, finding.group)
    passes = tuple(words for words, other in contrasts(case) if _passes(look(other), clause))
    measured = tuple(errors(case, truth, seen))
    if told:
        return Diagnosis(_lines(told), passes, None, measured)
    subject = _excessive(measured) if measured else _subject(case, finding.group, seen)
    late = case.procedure == "delay" and subject == "later"  # which changes from run to run on purpose
    if subject and not late:
        named = "output" if subject == "later" else subject
        if _unsteady(verdict, look):
            return Diagnosis(_lines([(named, say.UNSTEADY)]), (), None, measured)
        if "with contiguous tensors" in passes:
            return Diagnosis(_lines([(named, say.CONTIGUOUS_ONLY)]), passes, None, measured)
    if clause.endswith(".replicas") and not subject:
        return Diagnosis(_lines([(_unequal(seen), say.REPLICAS_DIFFER)]), passes, None, measured)
    told, probe = _read(verdict, finding.group, subject, look, world_sizes)
    return Diagnosis(_lines(told or _lost_bits(case, clause, subject, look)), passes, probe, measured)


def _unequal(seen: Sequence[Observation]) -> str:
    """The first tensor of the first run whose bits are not the same on all ranks."""
    steps = [entry.steps["first"] for entry in seen]
    if len({step.output.bits for step in steps if step.output is not None}) > 1:
        return "output"
    names = [n for n in steps[0].gradients if len({a.bits for s in steps if (a := s.gradients.get(n))}) > 1]
    return f"gradient of {names[-1]}" if names else "output"


def _lines(told: Sequence[Found]) -> tuple[str, ...]:
    return tuple(f"{subject}: consistent with {sentence}" for subject, sentence in told)


def _truth(case: Case, group: int) -> Truth:
    from spec.reference import truth

    return truth(case, group)


def _passes(verdict: Verdict | None, clause: str) -> bool:
    return verdict is not None and not verdict.declined and not any(f.clause.name == clause for f in verdict.findings)


def _read(
    verdict: Verdict, group: int, subject: str, look: Look, worlds: tuple[int, ...]
) -> tuple[list[Found], Case | None]:
    """The sentence for the first wrong tensor, read from the clearest case in which it is the first wrong one.

    Nothing is read from a lesser case where nothing fits a clearer one: there many mistakes give the same numbers.
    """
    for case in probes(verdict.case, worlds) if subject else ():
        seen = verdict if case == verdict.case else look(case)
        if seen is None or not seen.findings or _lost(seen.groups[group]):
            continue
        if (_subject(case, group, seen.groups[group]) or "later") != subject:
            continue
        told = _told(case, group, seen.groups[group], subject, clear=is_larger(case, verdict.case))
        # Another P has other ranks, which a reader would look for in vain.
        if told and case.P != verdict.case.P and _NAMES_RANKS.search(told[0][1]):
            continue
        return told, None if case == verdict.case or not told else case
    return [], None


def _lost(seen: Sequence[Observation]) -> bool:
    return any(entry.fate != "returned" or entry.raised or entry.declined for entry in seen)


def _subject(case: Case, group: int, seen: Sequence[Observation]) -> str:
    """The name of the first wrong tensor of the first run, "later" where that is right, or nothing."""
    truth = _truth(case, group)
    if not truth.runs or "first" not in seen[0].steps:
        return ""
    wrong = _first_wrong(case, truth, seen)
    return wrong.name if wrong else "later"


def _first_wrong(case: Case, truth: Truth, seen: Sequence[Observation]) -> Tensor | None:
    return next((tensor for tensor in tensors(case, truth, seen) if tensor.wrong), None)


def _told(case: Case, group: int, seen: Sequence[Observation], subject: str, clear: bool) -> list[Found]:
    """What fits in one case; where mistakes are hard to tell apart, only what no numbers are needed for."""
    truth = _truth(case, group)
    wrong = _first_wrong(case, truth, seen)
    if wrong is None:
        return runs.found(case, truth, seen)
    sentences = fitting(wrong)
    if not sentences or not (clear or sentences[0].startswith(_WITHOUT_NUMBERS)):
        return []
    right = [r for r in range(case.P) if r not in wrong.wrong]
    some = right and not _NAMES_RANKS.search(sentences[0])
    return [(subject, say.on_some(sentences[0], ranks(wrong.wrong)) if some else sentences[0])]


def _excessive(measured: Sequence[Error]) -> str:
    """The first tensor whose error no rounding explains."""
    names = [error.tensor for error in measured if error.excessive]
    return "" if not names else names[0] if names[0] == "output" else f"gradient of {names[0]}"


def _lost_bits(case: Case, clause: str, subject: str, look: Look) -> list[Found]:
    """Numbers that come out wrong where small integers come out right have lost their last bits.

    They lose them in a rank's own sum, or in the reduction, which a single rank does not have.
    """
    computed = subject == "output" or subject.startswith("gradient")
    small = [probe for probe in probes(case, ()) if probe.dtype == case.dtype and probe.values == "small"]
    if case.values == "small" or not computed or not all(_passes(look(probe), clause) for probe in small):
        return []
    own = (subject, say.NARROW_SUM.format(dtype="float64" if case.compute_dtype == "float64" else "float32"))
    if not reduced(case, subject.removeprefix("gradient of ")):
        return [own]
    for alone in single_rank(case):
        verdict = look(alone)
        if verdict is not None:
            in_reduction = (subject, say.NARROW_REDUCTION.format(dtype=case.compute_dtype))
            return [own if not _passes(verdict, clause) or _suspicious(verdict) else in_reduction]
    return []


def _suspicious(verdict: Verdict) -> bool:
    """Whether a real-valued case errs by much more than a correct implementation does, though within the bound."""
    measured = errors(verdict.case, _truth(verdict.case, 0), verdict.groups[0])
    return any(error.control_ratio is not None and error.ratio > 1.25 * error.control_ratio for error in measured)


def _unsteady(verdict: Verdict, look: Look) -> bool:
    """Whether the very same case, run again, gives other bits."""
    again = look(verdict.case)
    if again is None or any(map(_lost, again.groups)):
        return False
    return any(
        step.output != other.steps[name].output or step.gradients != other.steps[name].gradients
        for seen, repeated in zip(verdict.groups, again.groups, strict=True)
        for entry, other in zip(seen, repeated, strict=True)
        for name, step in entry.steps.items()
        if name in other.steps
    )
