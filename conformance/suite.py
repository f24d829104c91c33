"""The way from a Case to its verdict: run it on ranks, hold what they saw against the truth, sort causes, keep count.

A failed rank is a finding like any other: its case runs once more on fresh ranks, and if the failure does not come back
the case is `intermittent`, which fails the run but is neither shrunk nor counted as passed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conformance.adapters.find import CONTROLLERS, find
from conformance.adapters.protocol import Declaration, Group
from conformance.known import Known
from conformance.ranks import RankPool, RankSetup, Reply, StartFailed
from conformance.tally import Tally
from conformance.wire import decode
from spec import Case, Clause, Finding, Observation, Raised, Truth, applicable, judge

if TYPE_CHECKING:
    from conformance.ranks.attached import AttachedRanks

DEADLINE, COMPILE_DEADLINE = 10.0, 300.0
# Every case that hangs costs its deadline; once a hang is confirmed, shrinking it need not wait so long again.
DEADLINE_AFTER_HANG = 1.0


@dataclass(frozen=True)
class Options:
    """What the command line chose.

    Attributes:
        attached: on the ranks that torchrun started, of which this process is rank 0.
        scratch: a folder for what compilers keep, of the caller's making; empty for theirs.
    """

    impl: str = "torch_tp"
    world_sizes: tuple[int, ...] = (1, 2, 4)
    backend: str = "gloo"
    device: str = "cpu"
    clauses: tuple[str, ...] = ()
    known: str = ""
    sys_path: tuple[str, ...] = ()
    attached: bool = False
    scratch: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the suite says of one case: the clauses it broke, what the ranks saw, or why it did not run."""

    case: Case
    findings: tuple[Finding, ...] = ()
    groups: tuple[tuple[Observation, ...], ...] = ()
    declined: str = ""
    intermittent: str = ""


@dataclass
class Suite:
    """One implementation under examination, in one worker.

    Attributes:
        tally: what was judged so far.
    """

    options: Options
    tally: Tally = field(default_factory=Tally)
    _pool: RankPool | None = None
    _attached: AttachedRanks | None = None
    _declaration: Declaration | None = None
    _hangs: bool = False

    def __post_init__(self) -> None:
        self._controller = find(self.options.impl) if self.options.impl in CONTROLLERS else None
        self._known = Known.read(self.options.known) if self.options.known else Known()

    def __repr__(self) -> str:
        return f"Suite({self.options.impl})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def declaration(self) -> Declaration:
        """What the implementation says of itself; starts a rank to ask it.

        Raises:
            StartFailed: the adapter cannot be found, imported or made; the text has its sentence.
        """
        if self._declaration is None:
            if self._controller is not None:
                self._declaration = self._controller.declare()
            else:
                reply = self._call(1, b"declare", DEADLINE)[0]
                self._declaration = Declaration(**json.loads(reply.payload or b"{}"))
        return self._declaration

    def begin_item(self) -> None:
        """Forget what only the last item's cases had shown."""
        self._hangs = False

    def examine(self, case: Case) -> Verdict:
        """Run one case, judge it and count it."""
        verdict = self._verdict(case)
        if verdict.declined:
            self.tally.decline(case, verdict.declined)
        elif verdict.intermittent:
            self.tally.intermittent.append(f"{case}\n{verdict.intermittent}")
        else:
            failing = frozenset(finding.clause.name for finding in verdict.findings)
            judged = [clause.name for clause in self._clauses(case)]
            if _lost(verdict.groups):
                judged = [name for name in judged if name.startswith("ranks.")]
            self.tally.count(case, judged, failing, self.blamed(verdict))
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

    def close(self) -> None:
        """End all ranks."""
        if self._pool is not None:
            self._pool.close()
        if self._attached is not None:
            self._attached.close()

    def _clauses(self, case: Case) -> tuple[Clause, ...]:
        wanted = self.options.clauses
        return tuple(c for c in applicable(case) if not wanted or any(c.name.startswith(prefix) for prefix in wanted))

    def _verdict(self, case: Case) -> Verdict:
        groups = self._observe(case)
        declined = groups[0][0].declined
        if declined:
            return Verdict(case, groups=groups, declined=declined)
        lost = _lost(groups)
        if lost and self._controller is None:
            groups = self._observe(case, confirming=True)
            if not _lost(groups):
                return Verdict(case, groups=groups, intermittent=lost)
            self._hangs |= any(seen.fate == "hung" for group in groups for seen in group)
        findings = self._judge(case, groups)
        if lost and not findings:
            # No clause that was asked for answers for the loss, and what was lost cannot have passed.
            return Verdict(case, groups=groups, intermittent=lost)
        if findings and not lost and not self._canary_sings(case):
            groups = self._observe(case)
            findings = self._judge(case, groups)
        return Verdict(case, findings, groups)

    def _judge(self, case: Case, groups: Sequence[Sequence[Observation]]) -> tuple[Finding, ...]:
        clauses = self._clauses(case)
        return tuple(
            finding
            for number, seen in enumerate(groups)
            for finding in judge(case, _truth(case, number, seen), seen, number, clauses)
        )

    def _observe(self, case: Case, confirming: bool = False) -> tuple[tuple[Observation, ...], ...]:
        """What every rank saw, by group, in the order of the group's ranks."""
        if self._controller is not None:
            return self._simulate(case)
        deadline = COMPILE_DEADLINE if case.procedure.startswith("compile") else DEADLINE
        if self._hangs and not confirming and self.options.device == "cpu":
            deadline = min(deadline, DEADLINE_AFTER_HANG)
        controlled = self.declaration.controller
        replies = self._call(1 if controlled else case.world, f"run {case.text}".encode(), deadline)
        if not controlled:
            seen = [_observation(reply) for reply in replies]
            return tuple(tuple(replace(seen[r], rank=n) for n, r in enumerate(ranks)) for ranks in case.group_ranks)
        everyone = decode(replies[0].payload) if replies[0].payload else (_observation(replies[0]),) * case.world
        return tuple(everyone[start : start + case.P] for start in range(0, case.world, case.P))

    def _simulate(self, case: Case) -> tuple[tuple[Observation, ...], ...]:
        assert self._controller is not None
        declined = self._controller.declines(case)
        if declined:
            return tuple((Observation(0, declined=declined),) for _ in case.group_ranks)
        session = self._controller.open(Group(0, case.P))
        return tuple(tuple(session.run(case, number)) for number in range(len(case.group_ranks)))

    def _canary_sings(self, case: Case) -> bool:
        """Whether the ranks of a failed case still add up known numbers; if not, fresh ranks take their place."""
        if self._controller is not None:
            return True
        total = str(case.world * (case.world + 1) // 2).encode()
        sings = all(reply.payload == total for reply in self._call(case.world, b"canary", DEADLINE))
        if not sings and not self.options.attached:
            self._ranks.discard(rank_setup(self.options, case.world))
        return sings

    def _call(self, world: int, command: bytes, deadline: float) -> tuple[Reply, ...]:
        if not self.options.attached:
            return self._ranks.call(rank_setup(self.options, world), command, deadline)
        if self._attached is None:
            from conformance.ranks.attached import AttachedRanks

            self._attached = AttachedRanks(rank_setup(self.options, self.options.world_sizes[0]))
        # This process is a rank as well, and pytest's warnings-as-errors are not for the implementation.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._attached.call(command, deadline)

    @property
    def _ranks(self) -> RankPool:
        if self._pool is None:
            self._pool = RankPool()
        return self._pool


def rank_setup(options: Options, world: int) -> RankSetup:
    """What ranks of a world must know: the adapter, and every group that a case of this world may use."""
    layouts = [_neighbours(size, world) for size in (1, 2) if size < world and world % size == 0]
    if world == 4:
        layouts.append(((0, 2), (1, 3)))
    chosen = {"impl": options.impl, "scratch": options.scratch}
    handler, groups = "conformance.adapters.serve:serve", tuple(layouts)
    return RankSetup(world, handler, chosen, options.backend, options.device, groups, options.sys_path)


def _neighbours(size: int, world: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(start, start + size)) for start in range(0, world, size))


def _truth(case: Case, group: int, seen: Sequence[Observation]) -> Truth:
    """The truth, unless a lost rank makes it useless."""
    if any(entry.fate != "returned" for entry in seen):
        return Truth(())
    from spec.reference import truth

    return truth(case, group)


def _observation(reply: Reply) -> Observation:
    """A rank's reply as an observation; whatever the pool knows of a lost rank goes with it."""
    known = {"fate": reply.fate, "entered": reply.entered, "stack": reply.stack}
    if reply.payload is not None:
        return replace(decode(reply.payload)[0], **known)
    raised = None
    if reply.fate == "raised":
        raised = Raised(("Exception",), reply.stack.strip().rpartition("\n")[2], reply.stack)
    return Observation(reply.rank, raised=raised, exit=f"{reply.exit}\n{reply.output}".strip(), **known)


def _lost(groups: Sequence[Sequence[Observation]]) -> str:
    """What became of ranks that did not simply answer, or an empty string."""
    return "\n".join(
        f"rank {seen.rank} {seen.fate} {seen.raised or seen.exit}".rstrip()
        for group in groups
        for seen in group
        if seen.fate != "returned"
    )


__all__ = ["Options", "StartFailed", "Suite", "Verdict"]
