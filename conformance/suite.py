"""The way from a Case to its verdict: observe it, hold what its ranks saw against the truth, keep count.

A failed rank is a finding like any other: its case runs once more on fresh ranks, and if the failure does not come back
the case is `intermittent`, which fails the run but is neither shrunk nor counted as passed. Within one item a line that
failed keeps its verdict, so that what is random in an implementation cannot confuse the shrinking of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conformance.adapters.protocol import Declaration
from conformance.known import Known
from conformance.observers import Groups, Options, observer
from conformance.reporting.failure.lost import lost_ranks
from conformance.reporting.failure.stacks import shown
from conformance.reporting.record import Failure, Sighting
from conformance.tally import Tally
from spec import STANDARD, Case, Clause, Finding, Observation, Truth, applicable, judge, normal

DEADLINE, COMPILE_DEADLINE = 10.0, 300.0
# A rank's first checkpoint imports torch's compiler.
CHECKPOINT_DEADLINE = 60.0
# Every case that hangs costs its deadline. Once one was confirmed the next need not wait so long, and after some of
# them an item has shown what it can.
DEADLINE_AFTER_HANG, HANGS_PER_ITEM = 1.0, 20
# Of an implementation that declares a deadline each hang costs all of it.
FULL_HANGS_PER_ITEM = 3
_NOT_RUN = "not run: "


@dataclass(frozen=True)
class Verdict:
    """What the suite says of one case: the clauses it broke, what the ranks saw, or why it did not run."""

    case: Case
    findings: tuple[Finding, ...] = ()
    groups: Groups = ()
    declined: str = ""
    intermittent: str = ""


class Suite:
    """One implementation under examination, in one worker.

    Attributes:
        tally: what was judged so far.
        failures: what a report keeps of failures that were explained, if the options ask for it.
        sightings: which of the known deviations that depend on the machine were there.
        observer: who runs the cases.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.tally = options, Tally()
        self.failures: list[Failure] = []
        self.sightings: list[Sighting] = []
        self.observer = observer(options)
        self._known = Known.read(options.known) if options.known else Known()
        self.begin_item()

    def __repr__(self) -> str:
        return f"Suite({self.options.impl})"

    @property
    def declaration(self) -> Declaration:
        """What the implementation says of itself.

        Raises:
            StartFailed: the adapter cannot be found, imported or made; the text has its sentence.
            NotDeclared: it cannot say what it is.
        """
        return self.observer.declare()

    def begin_item(self) -> None:
        """Forget what only the last item's cases had shown."""
        self._failed: dict[str, Verdict] = {}
        self._hangs = 0
        self._hung_at: set[tuple[str, ...]] = set()

    def examine(self, case: Case) -> Verdict:
        """Run one case, judge it and count it."""
        verdict = self._failed.get(case.text) or self._verdict(case)
        if verdict.declined:
            hung = verdict.declined.startswith(_NOT_RUN)
            names = () if hung else (clause.name for clause in self._clauses(case))
            self.tally.decline(case, verdict.declined, names)
        elif verdict.intermittent:
            self.tally.intermittent.append(f"{case}\n{verdict.intermittent}")
        else:
            failing = frozenset(finding.clause.name for finding in verdict.findings)
            judged = self._judged(verdict)
            self.tally.count(case, judged, failing, self.blamed(verdict), self._unseen(verdict, judged))
        if verdict.findings:
            self._failed[case.text] = verdict
        return verdict

    def blamed(self, verdict: Verdict) -> tuple[Finding, ...]:
        """The findings that fail the run: MUST, or SHOULD of a strict implementation, and not known."""
        strict = self.declaration.strict
        return tuple(
            finding
            for finding in verdict.findings
            if (strict or finding.clause.level == "MUST")
            and not self._known.explains(finding.clause.name, verdict.case)
        )

    def look(self, case: Case) -> Verdict | None:
        """A verdict for a diagnosis, neither counted nor kept; None where the case cannot be run."""
        if case.world not in self.options.world_sizes:
            return None
        groups = self._observe(case, self._deadline(case))
        if groups[0][0].declined:
            return None
        findings = self._judge(case, groups)
        if _parted(findings):
            self.observer.renew(case)
        return Verdict(case, findings, groups)

    def close(self) -> None:
        """End all ranks."""
        self.observer.close()

    def _verdict(self, case: Case) -> Verdict:
        if self._hangs >= (FULL_HANGS_PER_ITEM if self.declaration.deadline else HANGS_PER_ITEM):
            return Verdict(case, declined=f"{_NOT_RUN}{self._hangs} cases of this item had hung already")
        groups = self._observe(case, self._deadline(case))
        if groups[0][0].declined:
            return Verdict(case, groups=groups, declined=groups[0][0].declined)
        return self._verdict_on_loss(case, groups) if _lost(groups) else self._verdict_on_return(case, groups)

    def _verdict_on_return(self, case: Case, groups: Groups) -> Verdict:
        findings = self._judge(case, groups)
        if _parted(findings):
            self.observer.renew(case)
        elif findings and not self.observer.sound(case):
            self.observer.renew(case)
            groups = self._observe(case, self._full_deadline(case))
            findings = self._judge(case, groups)
        return Verdict(case, findings, groups)

    def _verdict_on_loss(self, case: Case, groups: Groups) -> Verdict:
        """A loss must come back on fresh ranks, except a hang like one that did."""
        if not (_has_hung(groups) and _standing(groups) in self._hung_at):
            again = self._observe(case, self._full_deadline(case))
            if not _lost(again):
                # After a hang deadlines are short: the ranks may only have been slow.
                slow = _has_hung(groups) and self._deadline(case) < self._full_deadline(case)
                if slow:
                    return self._verdict_on_return(case, again)
                return Verdict(case, groups=groups, intermittent=_told(case, groups))
            groups = again
        if _has_hung(groups):
            self._hangs += 1
            self._hung_at.add(_standing(groups))
        findings = self._judge(case, groups)
        return Verdict(case, findings, groups, intermittent="" if findings else _told(case, groups))

    def _observe(self, case: Case, deadline: float) -> Groups:
        """What the ranks saw, in the words of the contract."""
        groups, semantics = self.observer.observe(case, deadline), self.declaration.semantics
        if semantics == STANDARD:
            return groups
        return tuple(normal(semantics, case, truth_of(case, n, seen), seen) for n, seen in enumerate(groups))

    def _judge(self, case: Case, groups: Groups) -> tuple[Finding, ...]:
        clauses = self._clauses(case)
        return tuple(
            finding
            for number, seen in enumerate(groups)
            for finding in judge(case, truth_of(case, number, seen), seen, number, clauses)
        )

    def _clauses(self, case: Case) -> tuple[Clause, ...]:
        """The clauses that were asked for; those about ranks always, since a lost rank answers for itself alone."""
        wanted = ("ranks.", *self.options.clauses) if self.options.clauses else ("",)
        return tuple(clause for clause in applicable(case) if clause.name.startswith(wanted))

    def _judged(self, verdict: Verdict) -> list[str]:
        """The clauses that could have failed on what was seen."""
        names = [clause.name for clause in self._clauses(verdict.case)]
        if _lost(verdict.groups):
            return [name for name in names if name.startswith("ranks.")]
        steps = [step for seen in verdict.groups[0] for step in seen.steps.values()]
        blind: tuple[str, ...] = ()
        if all(step.collectives is None for step in steps):
            blind += ("collectives.", "one-rank.no-collective", "refuse.no-collective", "state.local")
        dense = [step for step in steps if step.name == "dense"]
        blind += () if dense else ("one-rank.bits",)
        blind += () if any("nodes" in step.facts for step in dense) else ("one-rank.nodes",)
        return [name for name in names if not name.startswith(blind)]

    def _unseen(self, verdict: Verdict, judged: Sequence[str]) -> list[str]:
        """The clauses about something that cannot be observed here; of lost ranks nothing is said."""
        if _lost(verdict.groups):
            return []
        return [clause.name for clause in self._clauses(verdict.case) if clause.name not in judged]

    def _deadline(self, case: Case) -> float:
        """An implementation that asked for more time may need it for every case."""
        full = self._full_deadline(case)
        shortened = self._hangs and self.options.device == "cpu" and not self.declaration.deadline
        return min(full, DEADLINE_AFTER_HANG) if shortened else full

    def _full_deadline(self, case: Case) -> float:
        declared = self.declaration.deadline or DEADLINE
        for procedure, deadline in (("compile", COMPILE_DEADLINE), ("checkpoint", CHECKPOINT_DEADLINE)):
            if case.procedure.startswith(procedure):
                return max(declared, deadline)
        return declared

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # for Hypothesis, which would print every field


def truth_of(case: Case, group: int, seen: Sequence[Observation]) -> Truth:
    """The truth, unless a lost rank makes it useless."""
    if any(entry.fate != "returned" or entry.declined for entry in seen):
        return Truth(())
    from spec.reference import truth

    return truth(case, group)


def _parted(findings: Sequence[Finding]) -> bool:
    """Whether ranks parted in their collectives, and would meet in the next case's."""
    return any(finding.clause.name.startswith("ranks.") for finding in findings)


def _lost(groups: Groups) -> bool:
    return any(seen.fate != "returned" for group in groups for seen in group)


def _standing(groups: Groups) -> tuple[str, ...]:
    """Where every rank was lost: its fate, its last collective without the size, and its innermost call."""
    return tuple(
        " ".join([seen.fate, *(re.sub(r"\d+ B", "", line) for line in seen.entered[-1:]), *shown(seen.stack)[:1]])
        for group in groups
        for seen in group
    )


def _has_hung(groups: Groups) -> bool:
    return any(seen.fate == "hung" for group in groups for seen in group)


def _told(case: Case, groups: Groups) -> str:
    """What became of ranks that did not simply answer."""
    pairs = zip(groups, case.group_ranks, strict=True)
    return "\n".join(line for seen, ranks in pairs for line in lost_ranks(seen, ranks))
