"""One group of ranks, seen from the worker: give all of them a command, and learn within the deadline what became of
each.

The rules of `call`:

- Each rank answers, dies, or does neither. When all have answered, the call is over.
- When a rank dies or raises while others have not answered, these have `GRACE_SECONDS` left, and `PATIENCE_SECONDS`
  more if one of them has entered no collective in this command, so waits for nobody, and may be about to raise too.
  Those that then still have not answered are victims. If no rank died or raised and the deadline passes, those that
  have not answered hung.
- Stacks of all that have not answered are taken before anything is killed.
- Ranks that all returned, or all returned `Raised`, are kept for the next command. After anything else the group is
  broken: all its ranks are killed before `call` returns, and it takes no more commands.

Nothing is left running: not after `close`, not after any exception out of `call` (Ctrl-C), not when the worker ends.
"""

from __future__ import annotations

import atexit
import os
import selectors
import signal
import time
import weakref

from conformance.ranks import host, rank
from conformance.ranks.launch import Member, start_fork_server, start_rank
from conformance.ranks.outcome import conclude, exit_text, has_entered, is_fault
from conformance.ranks.values import RankSetup, Reply, StartFailed, tell_faults

GRACE_SECONDS = 0.25
PATIENCE_SECONDS = 0.5
START_SECONDS = 120.0
CLOSE_SECONDS = 0.5  # for a polite end
KILL_SECONDS = 2.0  # for killed processes to be gone

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class BrokenGroup(RuntimeError):
    """A command was given to a group that is closed or has had a fault; start a new one."""


class RankGroup:
    """P ranks that persist from command to command. Make one with `RankGroup.start(setup)`."""

    def __init__(self, setup: RankSetup) -> None:
        self.setup = setup
        self.fault = ""  # why the group takes no more commands
        self._members: list[Member] = []
        self._selector = selectors.DefaultSelector()
        self._number = 0
        self._owner = os.getpid()

    @classmethod
    def start(cls, setup: RankSetup, deadline: float = START_SECONDS) -> RankGroup:
        """Starts the ranks and returns when all have joined and made their handlers, else raises StartFailed."""
        start_fork_server()
        group = cls(setup)
        _groups.add(group)
        try:
            with host.rendezvous() as meeting:
                with host.interrupts_held():  # no rank between started and known
                    for r in range(setup.world):
                        group._add(start_rank(r, meeting, setup.handler))
                for member in group._members:
                    group._send(member, rank.welcome(setup, member.rank, meeting))
                replies = group._finish_command(group._collect(deadline))
            if any(reply.fate != "returned" for reply in replies):
                raise StartFailed(setup, replies)
        except BaseException:
            group._kill("did not start")
            raise
        return group

    @property
    def healthy(self) -> bool:
        """Whether all ranks are there and the group takes commands. Notices ranks that have died since the last one."""
        if not self.fault:
            self._handle_events(0)
            dead = [member for member in self._members if member.dead]
            if dead:
                names = ", ".join(f"rank {member.rank} ({exit_text(member)})" for member in dead)
                self._kill(f"died between commands: {names}")
        return not self.fault

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes, by rank; none once the group is broken or closed."""
        return tuple(member.process.pid for member in self._members)

    def call(self, command: bytes, deadline: float) -> tuple[Reply, ...]:
        """Hands the command to every rank; one reply per rank, in order, in `deadline` seconds and little more."""
        if not 0 < deadline < rank.COLLECTIVE_SECONDS:
            raise ValueError(f"deadline={deadline}: more than 0 and less than {rank.COLLECTIVE_SECONDS} seconds")
        if not self.healthy:
            raise BrokenGroup(self.fault)
        try:
            self._number += 1
            for member in self._members:
                self._send(member, command)
            return self._finish_command(self._collect(deadline))
        except BaseException:
            self._kill("interrupted in a command")
            raise

    def close(self) -> None:
        """Ends the ranks, politely if they can do so quickly."""
        if self.fault:
            return
        for member in self._members:
            member.channel.end()
        limit = time.monotonic() + CLOSE_SECONDS
        for member in self._members:
            member.process.wait(limit - time.monotonic())
        self._kill("closed")

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A command under way

    def _add(self, member: Member) -> None:
        self._members.append(member)
        self._selector.register(member.channel, _READ, (member, self._on_channel))
        self._selector.register(member.output, _READ, (member, self._on_output))
        self._selector.register(member.process.sentinel, _READ, (member, self._on_exit))

    def _send(self, member: Member, command: bytes) -> None:
        member.answer = None
        member.tail.clear()
        try:
            if not member.channel.push(command):
                self._selector.modify(member.channel, _READ | _WRITE, (member, self._on_channel))
        except EOFError:
            self._lost(member)

    def _collect(self, deadline: float) -> bool:
        """Waits for answers as the rules say; True when a rank died or raised."""
        limit = time.monotonic() + deadline
        fault = patient = False
        while waiting := [member for member in self._members if member.answer is None and not member.dead]:
            left = limit - time.monotonic()
            if left <= 0:
                if not fault or patient or all(has_entered(member, self._number) for member in waiting):
                    break
                patient = True
                limit += PATIENCE_SECONDS
                continue
            self._handle_events(left)
            if not fault and any(map(is_fault, self._members)):
                fault = True
                limit = time.monotonic() + GRACE_SECONDS
        return fault or any(map(is_fault, self._members))

    def _handle_events(self, timeout: float) -> None:
        for key, mask in self._selector.select(timeout):
            member, handle = key.data
            handle(member, mask)

    def _on_channel(self, member: Member, mask: int) -> None:
        if member.channel not in self._selector.get_map():
            return  # its end was noticed by another event of the same round
        try:
            if mask & _WRITE and member.channel.flush():
                self._selector.modify(member.channel, _READ, (member, self._on_channel))
            if mask & _READ and (frame := member.channel.pull()) is not None:
                member.answer = frame
        except EOFError:
            self._lost(member)

    def _on_output(self, member: Member, _: int) -> None:
        if not member.read_output():
            self._selector.unregister(member.output)

    def _on_exit(self, member: Member, _: int) -> None:
        self._selector.unregister(member.process.sentinel)
        while not member.dead:  # until the last answer has been read
            before = member.answer
            self._on_channel(member, _READ)
            if member.answer is before:
                self._lost(member)

    def _lost(self, member: Member) -> None:
        member.dead = True
        if member.channel in self._selector.get_map():
            self._selector.unregister(member.channel)

    def _finish_command(self, fault: bool) -> tuple[Reply, ...]:
        replies, kept = conclude(self._members, self._number, fault)
        if not kept:
            self._kill(tell_faults(replies))
        return replies

    def _kill(self, fault: str) -> None:
        """Ends all ranks at once and lets go of everything they had."""
        if self.fault or os.getpid() != self._owner:
            return
        with host.interrupts_held():
            self.fault = fault
            _groups.discard(self)
            self._selector.close()
            for member in self._members:
                member.process.signal(signal.SIGKILL)
            limit = time.monotonic() + KILL_SECONDS
            for member in self._members:
                member.process.wait(limit - time.monotonic())
                member.release()
            self._members = []


def _kill_all() -> None:
    for group in list(_groups):
        group._kill("the worker ended")


_groups: weakref.WeakSet[RankGroup] = weakref.WeakSet()
atexit.register(_kill_all)
