"""Groups of ranks, kept by setup: the same setup finds its ranks still there, and after a fault finds fresh ones.

At most `limit` groups are alive, the one used longest ago makes room. A rank that dies between two commands cannot be
blamed on the next: its group is replaced before that command is sent, and `died_idle` says what was found.
"""

from __future__ import annotations

from conformance.ranks.group import RankGroup
from conformance.ranks.launch import start_fork_server
from conformance.ranks.values import RankSetup, Reply


class RankPool:
    """The groups of one worker. Not for use by several threads."""

    def __init__(self, limit: int = 2) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: a pool keeps at least one group")
        self.limit = limit
        self.died_idle: list[str] = []
        self._groups: dict[RankSetup, RankGroup] = {}  # the one used last is last
        start_fork_server()

    def call(self, setup: RankSetup, command: bytes, deadline: float) -> tuple[Reply, ...]:
        """As `RankGroup.call`, on the group of this setup, started if there is none without a fault."""
        return self._group(setup).call(command, deadline)

    def discard(self, setup: RankSetup) -> None:
        """Ends the group of this setup, if there is one; the next call meets fresh ranks."""
        if setup in self._groups:
            self._groups.pop(setup).close()

    def close(self) -> None:
        """Ends all groups. The pool may be used again."""
        while self._groups:
            self.discard(next(iter(self._groups)))

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _group(self, setup: RankSetup) -> RankGroup:
        group = self._groups.pop(setup, None)
        if group is not None and not group.fault and not group.healthy:
            self.died_idle.append(group.fault)
        if group is None or group.fault:
            while len(self._groups) >= self.limit:
                self.discard(next(iter(self._groups)))
            group = RankGroup.start(setup)
        self._groups[setup] = group
        return group
