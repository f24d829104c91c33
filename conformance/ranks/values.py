"""What goes into a group of ranks and what comes out of it: plain frozen values, the same in the worker and in the
ranks.

A handler is named `package.module:factory`. The rank imports the module and calls `factory(context)`; what that
returns is called once per command, `handler(command: bytes) -> bytes | Raised`. If it has a `close` method, that is
called once when the group ends politely, never after a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["returned", "raised", "died", "hung", "victim"]


@dataclass(frozen=True)
class RankSetup:
    """Everything that ranks must know to start. Groups of equal setups are interchangeable."""

    world: int
    handler: str  # "package.module:factory", imported inside the ranks only
    options: Mapping[str, str] = field(default_factory=dict)  # handed to the factory as they are
    backend: str = "gloo"
    device: str = "cpu"  # "cpu" | "cuda"
    # Layouts of process groups, made at start by every rank in this order: (((0, 1), (2, 3)), ((0, 2), (1, 3))).
    subgroups: tuple[tuple[tuple[int, ...], ...], ...] = ()
    sys_path: tuple[str, ...] = ()  # put in front of the ranks' sys.path, which otherwise is the worker's

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        if self.world < 1:
            raise ValueError(f"world={self.world}: a group has at least one rank")
        module, _, factory = self.handler.partition(":")
        if not module or not factory:
            raise ValueError(f"handler={self.handler!r}: write it as 'package.module:factory'")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r}: 'cpu' or 'cuda'")
        for ranks in (ranks for layout in self.subgroups for ranks in layout):
            if not ranks or not all(0 <= r < self.world for r in ranks) or len(set(ranks)) != len(ranks):
                raise ValueError(f"subgroup {ranks}: needs distinct ranks between 0 and {self.world - 1}")

    def __hash__(self) -> int:
        options = tuple(sorted(self.options.items()))
        return hash((self.world, self.handler, options, self.backend, self.device, self.subgroups, self.sys_path))


@dataclass(frozen=True)
class Context:
    """What a factory is given, inside a rank."""

    rank: int
    world: int
    device: Any  # torch.device
    options: Mapping[str, str]
    groups: Mapping[tuple[int, ...], Any]  # ranks -> ProcessGroup, the whole world and the subgroups this rank is in
    log: Callable[[str], None]  # one line, written before the rank enters a collective; never blocks


@dataclass(frozen=True)
class Raised:
    """A handler's answer when it stopped early because of an exception; the payload describes it."""

    payload: bytes


@dataclass(frozen=True)
class Reply:
    """What became of one rank in one command.

    returned: the handler returned bytes.
    raised: it returned `Raised`, or an exception escaped from it, and payload is None.
    died: the process ended.
    victim: it had not answered when another rank's fault had used up the grace.
    hung: it had not answered when the deadline passed, and no rank had died or raised.
    """

    rank: int
    fate: Fate
    payload: bytes | None = None  # of the handler, also that of Raised
    entered: tuple[str, ...] = ()  # lines logged in this command, filled if any rank did not simply return
    stack: str = ""  # Python stack of one that hung, is a victim or crashed; traceback of an escaped exception
    exit: str = ""  # of a rank that died: "killed by signal 9 (SIGKILL)", "exit code 3"
    output: str = ""  # the tail of its stdout and stderr in this command, filled like `entered`


def tell_faults(replies: Iterable[Reply]) -> str:
    """One line that names the ranks that did not simply return."""
    faulty = (reply for reply in replies if reply.fate != "returned")
    return "; ".join(f"rank {reply.rank} {reply.fate} {reply.exit}".rstrip() for reply in faulty)


class StartFailed(RuntimeError):
    """A group did not come up: its ranks could not join, or the handler could not be imported or made."""

    def __init__(self, setup: RankSetup, replies: tuple[Reply, ...]) -> None:
        self.setup = setup
        self.replies = replies
        lines = [f"{setup.world} ranks for {setup.handler} did not start"]
        for reply in replies:
            if reply.fate != "returned":
                lines += [tell_faults([reply]), reply.stack.rstrip(), reply.output.rstrip()]
        super().__init__("\n".join(line for line in lines if line))
