"""What an adapter is: two kinds, one process per rank, or one controller that holds all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from spec import Case, Observation


class NoSuchAdapter(ValueError):
    """The name of an implementation that leads to no adapter; the text says what is missing and what would do."""


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Group:
    """Where a session runs.

    Attributes:
        rank, size: in the tensor-parallel group (of a controller: rank 0 of the case's P).
        handle: the framework's process group; None for a controller.
        device: the framework's device.
        global_rank: in the world.
        announce: to be called with one line before this rank enters a collective, for reports of lost ranks; what more
            it may be told stands in `spec.clauses.progress`.
    """

    rank: int
    size: int
    handle: Any = None
    device: Any = None
    global_rank: int = 0
    announce: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Declaration:
    """What an implementation says of itself.

    Attributes:
        name, versions: for the header.
        strict: SHOULD clauses count as MUST.
        controller: one process holds all ranks.
        flags: numerics switches as they stand in the ranks.
    """

    name: str
    versions: Mapping[str, str]
    strict: bool = False
    controller: bool = False
    flags: Mapping[str, str] = field(default_factory=dict[str, str])


class Session(Protocol):
    """One implementation on one group."""

    def run(self, case: Case, group: int) -> Sequence[Observation]:
        """What the rank (a controller: every rank of group number `group`, in order) saw of the case."""
        ...

    def close(self) -> None:
        """Undo what opening set up."""
        ...


@runtime_checkable
class Adapter(Protocol):
    """An implementation under test.

    Attributes:
        controller: False where each rank is a process of its own, True where one process holds all ranks.
    """

    controller: bool

    def declare(self) -> Declaration:
        """What the implementation says of itself."""
        ...

    def declines(self, case: Case) -> str:
        """Why the implementation does not have this case, or an empty string."""
        ...

    def open(self, group: Group) -> Session:
        """Set up for one group."""
        ...
