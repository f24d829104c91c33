"""Who runs a case and brings back what its ranks saw: the pool's ranks, torchrun's, or a controller in this process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from conformance.adapters.find import CONTROLLERS, find
from conformance.adapters.protocol import Adapter, Declaration, Group
from conformance.ranks import RankPool, RankSetup, Reply
from conformance.wire import decode
from spec import Case, Observation, Raised, Semantics

if TYPE_CHECKING:
    from conformance.ranks.attached import AttachedRanks

Groups = tuple[tuple[Observation, ...], ...]
_SECONDS_TO_DECLARE, _SECONDS_TO_SING = 60.0, 5.0


class NotDeclared(RuntimeError):
    """An adapter was made but could not say what it is; the text is its own error."""


@dataclass(frozen=True)
class Options:
    """What the command line chose.

    Attributes:
        attached: on the ranks that torchrun started, of which this process is rank 0.
        scratch: a folder for what compilers keep, of the caller's making; empty for theirs.
        records: keep of every failure what a report needs.
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
    records: bool = False


class Observer(Protocol):
    """Runs cases."""

    def declare(self) -> Declaration:
        """What the implementation says of itself."""
        ...

    def observe(self, case: Case, deadline: float) -> Groups:
        """What every rank saw, by group, in the order of the group's ranks."""
        ...

    def sound(self, case: Case) -> bool:
        """Whether the ranks that ran a case still add up known numbers on its groups."""
        ...

    def renew(self, case: Case) -> None:
        """Have fresh ranks for the next case of this world."""
        ...

    def close(self) -> None:
        """End all ranks."""
        ...


def observer(options: Options) -> Observer:
    """The observer that the options ask for."""
    if options.impl in CONTROLLERS:
        return InProcess(find(options.impl))
    return Attached(options) if options.attached else Pooled(options)


class InProcess:
    """A controller, such as a simulation, in this very process."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def declare(self) -> Declaration:
        return self.adapter.declare()

    def observe(self, case: Case, deadline: float) -> Groups:
        declined = self.adapter.declines(case) or self.adapter.declare().semantics.declines(case, "cpu")
        if declined:
            return tuple((Observation(0, declined=declined),) for _ in case.group_ranks)
        session = self.adapter.open(Group(0, case.P))
        return tuple(tuple(session.run(case, number)) for number in range(len(case.group_ranks)))

    def sound(self, case: Case) -> bool:
        return True

    def renew(self, case: Case) -> None:
        pass

    def close(self) -> None:
        pass


class Pooled:
    """Ranks of this process's own pool, replaced when they fail."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._pool: RankPool | None = None
        self._declaration: Declaration | None = None

    def declare(self) -> Declaration:
        if self._declaration is None:
            self._declaration = _declaration(
                self._call(self.options.world_sizes[0], b"declare", _SECONDS_TO_DECLARE)[0]
            )
        return self._declaration

    def observe(self, case: Case, deadline: float) -> Groups:
        command = f"run {case.text}".encode()
        if not self.declare().controller:
            return _grouped(case, self._call(case.world, command, deadline))
        reply = self._call(1, command, deadline)[0]
        everyone = decode(reply.payload) if reply.payload else (_observation(reply),) * case.world
        return tuple(everyone[start : start + case.P] for start in range(0, case.world, case.P))

    def sound(self, case: Case) -> bool:
        if self.declare().controller:
            return True
        total = str(case.P * (case.P + 1) // 2).encode()
        replies = self._call(case.world, f"canary {case.text}".encode(), _SECONDS_TO_SING)
        return all(reply.payload == total for reply in replies)

    def renew(self, case: Case) -> None:
        if self._pool is not None:
            self._pool.discard(rank_setup(self.options, case.world))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _call(self, world: int, command: bytes, deadline: float) -> tuple[Reply, ...]:
        if self._pool is None:
            self._pool = RankPool()
        return self._pool.call(rank_setup(self.options, world), command, deadline)


class Attached(Pooled):
    """Ranks that torchrun started; nobody can replace them."""

    _ranks: AttachedRanks | None = None

    def renew(self, case: Case) -> None:
        pass

    def close(self) -> None:
        if self._ranks is not None:
            self._ranks.close()

    def _call(self, world: int, command: bytes, deadline: float) -> tuple[Reply, ...]:
        if self._ranks is None:
            from conformance.ranks.attached import AttachedRanks

            self._ranks = AttachedRanks(rank_setup(self.options, self.options.world_sizes[0]))
        # This process is a rank as well, and pytest's warnings-as-errors are not for the implementation.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._ranks.call(command, deadline)


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


def _declaration(reply: Reply) -> Declaration:
    if reply.fate != "returned" or not reply.payload:
        raise NotDeclared(f"the adapter's declare() or versions() failed: {_last_line(reply.stack) or reply.exit}")
    fields = json.loads(reply.payload)
    return Declaration(**fields | {"semantics": Semantics.from_data(fields["semantics"])})


def _grouped(case: Case, replies: Sequence[Reply]) -> Groups:
    seen = [_observation(reply) for reply in replies]
    return tuple(tuple(replace(seen[r], rank=n) for n, r in enumerate(ranks)) for ranks in case.group_ranks)


def _observation(reply: Reply) -> Observation:
    """A rank's reply as an observation; whatever the pool knows of a lost rank goes with it."""
    known: Mapping[str, Any] = {"fate": reply.fate, "entered": reply.entered, "stack": reply.stack}
    end = f"{reply.exit}\n{reply.output}".strip()
    if reply.payload is not None:
        return replace(decode(reply.payload)[0], exit=end, **known)
    name, _, text = _last_line(reply.stack).partition(": ")
    raised = Raised((name, "BaseException"), text, reply.stack) if reply.fate == "raised" else None
    return Observation(reply.rank, raised=raised, exit=end, **known)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
