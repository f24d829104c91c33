"""The register: every clause of the contract under a name that never changes.

A clause is a title, a text in the contract's words, a level, the cases in which it could fail, and a pure check of
(case, truth, observations of one group, in rank order) that yields Violations. Checks return reasons; only `judge` puts
them together, and only `conformance` raises. Names are append-only, never positions: a changed meaning is a new name.

Clauses stand in the order of causes: where one example breaks several, the first names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from spec.case import Case
from spec.observation import Observation
from spec.truth import Truth

Level = Literal["MUST", "SHOULD"]


@dataclass(frozen=True)
class Violation:
    """One reason why a clause does not hold.

    Attributes:
        rank: the rank in the group, or None where it concerns the group as a whole.
        step: the run of the procedure it was seen in.
        what: one line: which tensor or property, and how it differs.
        expected, got: both sides, for people.
    """

    rank: int | None
    step: str
    what: str
    expected: str = ""
    got: str = ""


Check = Callable[[Case, Truth, Sequence[Observation]], Iterable[Violation]]
Applies = Callable[[Case], bool]


class ContractViolation(AssertionError):
    """Base of one exception class per clause, so that a test runner never takes one clause's failure for another's.

    Attributes:
        evidence: whatever the one who raised it wants to find in it again.
    """

    clause: Clause
    evidence: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Clause:
    """One named requirement of the contract.

    Attributes:
        applies: the cases in which an implementation could break it.
        error: the exception class of this clause.
        origin: public threads about bugs that it would have caught.
    """

    name: str
    level: Level
    title: str
    text: str
    applies: Applies
    check: Check
    error: type[ContractViolation]
    origin: str = ""


@dataclass(frozen=True)
class Finding:
    """A clause that an example broke, in which group, and why."""

    clause: Clause
    group: int
    violations: tuple[Violation, ...]


REGISTER: dict[str, Clause] = {}


def clause(
    name: str, title: str, text: str, applies: Applies, level: Level = "MUST", origin: str = ""
) -> Callable[[Check], Check]:
    """Enter a check into the register.

    Raises:
        ValueError: the name is taken.
    """

    def enter(check: Check) -> Check:
        if name in REGISTER:
            raise ValueError(f"clause {name} is in the register already; a changed meaning needs a new name")
        class_name = "".join(word.capitalize() for word in name.replace(".", "-").split("-"))
        members = {"__doc__": title, "__module__": __name__}
        error: type[ContractViolation] = type(class_name, (ContractViolation,), members)
        REGISTER[name] = Clause(name, level, title, " ".join(text.split()), applies, check, error, origin)
        error.clause = REGISTER[name]
        return check

    return enter


@lru_cache(maxsize=64)
def applicable(case: Case) -> tuple[Clause, ...]:
    """The clauses that this case could break, in the order of causes."""
    return tuple(entry for entry in REGISTER.values() if entry.applies(case))


def judge(
    case: Case,
    truth: Truth,
    observations: Sequence[Observation],
    group: int = 0,
    clauses: Sequence[Clause] | None = None,
) -> list[Finding]:
    """Every clause that the observations of one group break.

    A rank that was lost, or raised, answers for itself: then only the clauses about ranks are judged, since what the
    others saw follows from it.
    """
    entries = applicable(case) if clauses is None else clauses
    lost = any(seen.fate != "returned" or seen.raised for seen in observations)
    findings: list[Finding] = []
    for entry in entries:
        if lost and not entry.name.startswith("ranks."):
            continue
        violations = tuple(entry.check(case, truth, observations))
        if violations:
            findings.append(Finding(entry, group, violations))
    return findings
