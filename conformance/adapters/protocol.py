"""What an adapter is: two kinds, one process per rank, or one controller that holds all ranks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final, Protocol, runtime_checkable

from spec import STANDARD, Case, Observation, Semantics

# The version of what this module and docs/adapters.md ask of an adapter, and all versions that the suite still runs.
ADAPTER_CONTRACT: Final = 1
KNOWN_CONTRACTS: Final = (ADAPTER_CONTRACT,)
# What an adapter may ask for; a rank's collectives wait for an hour, longer than any case.
LONGEST_DEADLINE: Final = 1800.0


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
class Requirement:
    """A package that an implementation is, or needs.

    Attributes:
        distribution: its name as pip knows it.
        tested: the version that the adapter was written for.
        module: what is imported of it.
        install: the arguments of pip that install it; by default the distribution at its tested version.
    """

    distribution: str
    tested: str
    module: str
    install: str = ""

    @property
    def command(self) -> str:
        """What installs it."""
        return f"python -m pip install {self.install or f'{self.distribution}=={self.tested}'}"

    @property
    def version(self) -> str:
        """The version that is installed here.

        Raises:
            NoSuchAdapter: there is none.
        """
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            raise NoSuchAdapter(f"{self.distribution} is not installed; {self.command}") from None

    def note(self) -> str:
        """For the header: a version that the adapter was not written for, or an empty string."""
        if self.version == self.tested:
            return ""
        return f"{self.distribution} {self.version} is untested, {self.tested} is what was tested: {self.command}"

    def check(self) -> None:
        """Import it.

        Raises:
            NoSuchAdapter: it is not installed, or cannot be imported.
        """
        found = self.version
        try:
            importlib.import_module(self.module)
        except Exception as error:
            raise NoSuchAdapter(
                f"{self.distribution} {found} cannot be imported ({type(error).__name__}: {error}); {self.command}"
            ) from error


@dataclass(frozen=True)
class Declaration:
    """What an implementation says of itself.

    Attributes:
        name, versions: for the header.
        strict: SHOULD clauses count as MUST.
        controller: one process holds all ranks.
        flags: numerics switches as they stand in the ranks.
        semantics: what it defines otherwise; observations are translated accordingly before they are judged.
        notes: sentences for the header, such as a version that nobody has tested.
        deadline: seconds that a case may take before its ranks count as hanging; 0 is what the suite gives.
        models: it can parallelise whole models, see `conformance.adapters.models`.
        fused: which of merged and qkv it has; the suite has no items of the others.
    """

    name: str
    versions: Mapping[str, str]
    strict: bool = False
    controller: bool = False
    flags: Mapping[str, str] = field(default_factory=dict[str, str])
    semantics: Semantics = STANDARD
    notes: Sequence[str] = ()
    deadline: float = 0.0
    models: bool = False
    fused: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.deadline <= LONGEST_DEADLINE:
            raise ValueError(f"deadline = {self.deadline!r}; it must be from 0 to {LONGEST_DEADLINE} seconds")


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
    """An implementation under test; docs/adapters.md says all of it.

    It may state `contract`, the version that it was written for; without one it is taken for the newest.

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
