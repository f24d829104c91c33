"""What a run has judged, so that a worker can hand it to the one that reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spec import Case, Finding


@dataclass
class Tally:
    """Counts of one worker, or of all of them added up.

    Attributes:
        judged: (clause, world size) -> examples in which the clause could have failed.
        broken: the same -> examples in which it did.
        blamed: the same -> examples in which that failed the run.
        declined: (reason, layer, world size) -> examples.
        examples: world size -> examples judged.
        intermittent: failures that did not come back, as text.
    """

    judged: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    broken: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    blamed: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    declined: Counter[tuple[str, str, int]] = field(default_factory=Counter[tuple[str, str, int]])
    examples: Counter[int] = field(default_factory=Counter[int])
    intermittent: list[str] = field(default_factory=list[str])

    def count(self, case: Case, clauses: Iterable[str], failing: frozenset[str], blamed: Sequence[Finding]) -> None:
        """One judged example."""
        self.examples[case.world] += 1
        for name in clauses:
            self.judged[name, case.world] += 1
        for name in failing:
            self.broken[name, case.world] += 1
        for name in {finding.clause.name for finding in blamed}:
            self.blamed[name, case.world] += 1

    def decline(self, case: Case, reason: str) -> None:
        """One example that the implementation does not have."""
        self.declined[reason, case.layer, case.world] += 1

    def add(self, other: Tally) -> None:
        """Add another worker's counts."""
        for name in ("judged", "broken", "blamed", "declined", "examples"):
            getattr(self, name).update(getattr(other, name))
        self.intermittent += other.intermittent

    def as_data(self) -> dict[str, Any]:
        """Plain lists, for the way from a worker to the reporter."""
        counters = ("judged", "broken", "blamed", "declined")
        data: dict[str, Any] = {name: [[*key, n] for key, n in getattr(self, name).items()] for name in counters}
        return data | {
            "examples": [[world, n] for world, n in self.examples.items()],
            "intermittent": list(self.intermittent),
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Tally:
        """The inverse of `as_data`."""
        counters = ("judged", "broken", "blamed", "declined")
        made = cls(**{name: Counter({tuple(entry[:-1]): entry[-1] for entry in data[name]}) for name in counters})
        made.examples = Counter(dict(data["examples"]))
        made.intermittent = list(data["intermittent"])
        return made
