"""What became of each rank in a command: from what the worker has seen of it to its reply.

Looking comes first: stacks of those that have not answered are taken while they are still there. Nothing here ends a
rank.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from conformance.ranks import rank
from conformance.ranks.launch import Member
from conformance.ranks.trail import read_trail
from conformance.ranks.values import Fate, Reply

STACK_SECONDS = 0.3
EXIT_SECONDS = 1.0  # for a process whose end was noticed to leave its exit status


def conclude(members: Sequence[Member], number: int, fault: bool) -> tuple[tuple[Reply, ...], bool]:
    """The replies to command `number`, and whether the ranks may be given another one.

    `fault` says that a rank died or raised, so that those that have not answered are its victims.
    """
    if not fault and all(member.answer is not None for member in members):
        return tuple(Reply(member.rank, "returned", (member.answer or b"")[1:]) for member in members), True
    waiting = [member for member in members if member.answer is None and not member.dead]
    _take_stacks(waiting)
    stuck: Fate = "victim" if fault else "hung"
    replies = tuple(_reply(member, number, stuck) for member in members)
    agreed = all(not member.dead and (member.answer or b"")[:1] == rank.RAISED for member in members)
    return replies, agreed


def is_fault(member: Member) -> bool:
    return member.dead or (member.answer is not None and member.answer[:1] != rank.RETURNED)


def has_entered(member: Member, number: int) -> bool:
    """Whether the rank has entered a collective in command `number`."""
    begun, entered = read_trail(member.trail)
    return begun == number and bool(entered)


def exit_text(member: Member) -> str:
    """How the process of a dead rank ended."""
    code = member.process.wait(EXIT_SECONDS)
    if code is None:
        return "closed its connection without ending"
    if code >= 0:
        return f"exit code {code}"
    known = -code in set(signal.Signals)
    return f"killed by signal {-code}" + (f" ({signal.Signals(-code).name})" if known else "")


def _reply(member: Member, number: int, stuck: Fate) -> Reply:
    begun, entered = read_trail(member.trail)
    if begun < number:
        entered = ()
    if member.dead:
        text = exit_text(member) + (", before it began this command" if begun < number else "")
        output = member.read_output_tail()  # only now is it complete
        return Reply(member.rank, "died", _payload(member), entered, member.read_stacks(), text, output)
    output = member.read_output_tail()
    if member.answer is None:
        return Reply(member.rank, stuck, None, entered, member.read_stacks(), output=output)
    kind, payload = member.answer[:1], member.answer[1:]
    traceback = payload.decode(errors="replace") if kind == rank.ESCAPED else ""
    fate: Fate = "returned" if kind == rank.RETURNED else "raised"
    return Reply(member.rank, fate, _payload(member), entered, traceback, output=output)


def _payload(member: Member) -> bytes | None:
    """What its handler answered, if it did; a rank may die just after that."""
    kind, payload = (member.answer or b"")[:1], (member.answer or b"")[1:]
    return payload if kind in (rank.RETURNED, rank.RAISED) else None


def _take_stacks(members: list[Member]) -> None:
    """Asks every rank for its stack and returns when all seem to have written it."""
    for member in members:
        member.process.signal(rank.STACK_SIGNAL)
    limit = time.monotonic() + STACK_SECONDS
    before: list[int] = []
    sizes = [0 for _ in members]
    while time.monotonic() < limit and not (sizes == before and all(sizes)):
        time.sleep(0.01)
        before, sizes = sizes, [os.fstat(member.stacks).st_size for member in members]
