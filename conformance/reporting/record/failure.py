"""What a record keeps of one failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownReason:
    """Why a deviation is known.

    Attributes:
        machine: what of the machine decides whether it is there; empty where it is there on every one.
    """

    reason: str
    link: str
    machine: str = ""


@dataclass(frozen=True)
class Sighting:
    """Whether a run saw a known deviation that depends on the machine."""

    clause: str
    world: int
    layer: str
    item: str
    case: str
    known: KnownReason
    seen: bool

    def line(self) -> str:
        """What there is to say of it."""
        here = "seen in this run" if self.seen else "not seen in this run"
        return f"depends on the machine, {here}: {self.clause} ({self.case}): {self.known.machine}"


@dataclass(frozen=True)
class ViolationText:
    """One reason why a clause does not hold, as `spec.Violation` has it."""

    rank: int | None
    step: str
    what: str
    expected: str
    got: str


@dataclass(frozen=True)
class DiagnosisText:
    """What a failure looks like, as the terminal shows it; `probe` is a case line or empty."""

    looks: tuple[str, ...]
    next: str
    passes: tuple[str, ...]
    probe: str
    rounding: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """One failure, as small as it got, or one known deviation.

    Attributes:
        also: the other clauses that its case broke.
        lost: what is known of lost ranks. text: all of it as the terminal shows it.
        evidence: expected and seen tensors of the clause's group (see `conformance.reporting.evidence`).
    """

    clause: str
    world: int
    layer: str
    item: str
    case: str
    replay: str
    known: KnownReason | None
    violations: tuple[ViolationText, ...]
    also: tuple[str, ...]
    diagnosis: DiagnosisText
    lost: tuple[str, ...]
    text: str
    evidence: dict[str, Any] | None
