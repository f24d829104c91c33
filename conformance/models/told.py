"""What a run has to say of models: laws by size of the group, from the properties that each test's report carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spec import LAWS

JUDGED: Final = "laws_judged"
BROKEN: Final = "laws_broken"
SIZE: Final = "world_size"


@dataclass
class Laws:
    """(law, P) -> in how many models it was judged, and in how many it was broken."""

    judged: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    broken: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    def add(self, properties: Iterable[tuple[str, Any]]) -> None:
        """Count one test, if it was one of a model."""
        found = dict(properties)
        if JUDGED in found:
            for counter, name in ((self.judged, JUDGED), (self.broken, BROKEN)):
                counter.update((law, int(found[SIZE])) for law in str(found[name]).split())

    def lines(self, sizes: Sequence[int]) -> list[str]:
        """A table, empty where no model was judged."""
        names = [name for name in LAWS if any(law == name for law, _ in self.judged)]
        if not names:
            return []
        width = max(map(len, names))
        rows = [f"{'law, by models':<{width}}" + "".join(f"{f'world {P}':>14}" for P in sizes)]
        for name in names:
            rows.append(f"{name:<{width}}" + "".join(f"{self._cell(name, P):>14}" for P in sizes))
        return rows

    def _cell(self, name: str, P: int) -> str:
        judged, broken = self.judged[name, P], self.broken[name, P]
        return f"FAIL {broken}/{judged}" if broken else str(judged or "-")
