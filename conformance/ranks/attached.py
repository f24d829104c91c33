"""The interface of `RankGroup.call` over ranks that torchrun started, on one host or several.

Rank 0 makes `AttachedRanks(setup)` and calls; it is itself a rank, and handles each command like the others, which run
`serve_attached(setup)`. The rules:

- All talk goes over a gloo group of its own, so that it disturbs neither the backend nor the groups under test. A
  command is its length and its deadline, then bytes; an answer is its length, then bytes. Nothing is unpickled.
- Nobody can replace these ranks. A rank that has not handled a command by its deadline says so on stderr, with its
  stack and the collectives it had entered, and ends its process with status `HUNG_STATUS`; torchrun then ends the
  others. If rank 0 itself is not stuck, its call first returns: that rank is `hung`, and the group takes no more
  commands.
- An empty command ends the ranks.
"""

from __future__ import annotations

import faulthandler
import math
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from conformance.ranks import host, rank
from conformance.ranks.group import BrokenGroup
from conformance.ranks.trail import Trail, read_trail
from conformance.ranks.values import Fate, RankSetup, Reply, tell_faults

HUNG_STATUS = 86
_TICK_SECONDS = 0.1
_LINGER_SECONDS = 0.5
_BACKSTOP_SECONDS = 1.0  # after this much more, a rank whose interpreter is stuck is ended without asking it
_IDLE = timedelta(days=30)  # ranks may wait for a command as long as the caller thinks
_TRAIL_LENGTH = struct.Struct("<I")


class AttachedRanks:
    """The caller's side, on rank 0."""

    def __init__(self, setup: RankSetup) -> None:
        self.setup = setup
        self.fault = ""
        self._seat = _Seat(setup)
        if self._seat.rank != 0:
            raise ValueError(f"rank {self._seat.rank} is not the caller: use serve_attached there")

    @property
    def healthy(self) -> bool:
        return not self.fault

    def call(self, command: bytes, deadline: float) -> tuple[Reply, ...]:
        """One reply per rank, as `RankGroup.call` makes them."""
        if not command:
            raise ValueError("an empty command ends the ranks: use close()")
        if self.fault:
            raise BrokenGroup(self.fault)
        limit = time.monotonic() + deadline
        try:
            self._seat.tell(command, deadline)
        except RuntimeError as error:
            self.fault = f"a rank is gone: {error}"
            raise BrokenGroup(self.fault) from error
        answers: list[bytes | None] = [self._seat.answer(command, deadline)]
        with self._seat.watch(deadline + 2 * _BACKSTOP_SECONDS):
            answers += [self._seat.hear(r) for r in range(1, self.setup.world)]
        replies = tuple(_reply(r, answer, limit) for r, answer in enumerate(answers))
        if any(answer is None for answer in answers):
            self.fault = tell_faults(replies)
        if all(reply.fate == "returned" for reply in replies):
            return tuple(Reply(reply.rank, "returned", reply.payload) for reply in replies)
        return replies

    def close(self) -> None:
        """Ends the loops of the other ranks, and the process group of all."""
        if not self.fault:
            self.fault = "closed"
            self._seat.tell(b"", 0.0)
            self._seat.leave()


def serve_attached(setup: RankSetup) -> None:
    """The side of every other rank; returns when the caller closes."""
    seat = _Seat(setup)
    while True:
        command, deadline = seat.listen()
        if not command:
            return seat.leave()
        seat.say(seat.answer(command, deadline))


class _Seat:
    """What every rank needs: its handler, the group for talk, and a watch over the time it takes."""

    def __init__(self, setup: RankSetup) -> None:
        import torch.distributed as dist

        self._dist = dist
        device = rank.pick_device(setup, int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            timeout = timedelta(seconds=rank.COLLECTIVE_SECONDS)
            bound = device if "nccl" in setup.backend else None
            dist.init_process_group(setup.backend, timeout=timeout, device_id=bound)
        self.rank = dist.get_rank()
        if dist.get_world_size() != setup.world:
            raise ValueError(f"the setup says world={setup.world}, but {dist.get_world_size()} ranks were started")
        self._control = dist.new_group(backend="gloo", timeout=_IDLE)
        self._trail_file = host.unnamed_file("trail")
        self._trail = Trail(self._trail_file)
        self._number = 0
        self._limit = math.inf
        self.handler = rank.make_handler(setup, rank.make_context(setup, self.rank, device, self._trail))
        threading.Thread(target=self._end_if_late, name="watch", daemon=True).start()

    def tell(self, command: bytes, deadline: float) -> None:
        import torch

        head = torch.tensor([len(command), round(deadline * 1000)])
        self._dist.broadcast(head, 0, group=self._control)
        if command:
            self._dist.broadcast(_tensor(command), 0, group=self._control)

    def listen(self) -> tuple[bytes, float]:
        import torch

        head = torch.empty(2, dtype=torch.int64)
        self._dist.broadcast(head, 0, group=self._control)
        length, milliseconds = head.tolist()
        command = torch.empty(length, dtype=torch.uint8)
        if length:
            self._dist.broadcast(command, 0, group=self._control)
        return command.numpy().tobytes(), milliseconds / 1000

    def say(self, answer: bytes) -> None:
        import torch

        self._dist.send(torch.tensor([len(answer)]), 0, group=self._control)
        self._dist.send(_tensor(answer), 0, group=self._control)

    def hear(self, r: int) -> bytes | None:
        """The answer of rank r; None when the connection to it is lost."""
        import torch

        head = torch.empty(1, dtype=torch.int64)
        try:
            self._dist.recv(head, r, group=self._control)
            body = torch.empty(int(head), dtype=torch.uint8)
            self._dist.recv(body, r, group=self._control)
        except RuntimeError:
            return None
        return body.numpy().tobytes()

    def answer(self, command: bytes, deadline: float) -> bytes:
        """Handles a command: one byte for the kind, the trail with its length, the payload."""
        self._number += 1
        self._trail.begin(self._number)
        with self.watch(deadline):
            frame = rank.answer(self.handler, command)
        trail = "\n".join(read_trail(self._trail_file)[1]).encode()
        return frame[:1] + _TRAIL_LENGTH.pack(len(trail)) + trail + frame[1:]

    def leave(self) -> None:
        """Ends all groups, and with the last hold of them their threads.

        A thread of gloo that lets go of a tensor while the interpreter ends aborts the process.
        """
        rank.finish(self.handler)
        del self.handler, self._control

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Within it this rank has so many seconds."""
        self._limit = time.monotonic() + seconds
        faulthandler.dump_traceback_later(seconds + _BACKSTOP_SECONDS, exit=True, file=2)
        try:
            yield
        finally:
            self._limit = math.inf
            faulthandler.cancel_dump_traceback_later()

    def _end_if_late(self) -> None:
        while time.monotonic() < self._limit:
            time.sleep(_TICK_SECONDS)
        entered = "".join(f"\n  {line}" for line in read_trail(self._trail_file)[1]) or " none"
        stacks = host.unnamed_file("stacks")
        faulthandler.dump_traceback(stacks)
        report = f"rank {self.rank} is past its deadline; collectives entered:{entered}\n".encode()
        os.write(2, report + os.pread(stacks, 1 << 18, 0))  # at once, or reports of several ranks would mix
        # When this rank ends, others see their connection break, and no longer where they hung.
        time.sleep(_LINGER_SECONDS)
        os._exit(HUNG_STATUS)


def _tensor(data: bytes) -> Any:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _reply(r: int, answer: bytes | None, limit: float) -> Reply:
    if answer is None:
        fate: Fate = "hung" if time.monotonic() > limit else "died"
        return Reply(r, fate, exit="connection lost; what the rank said last is on its stderr")
    (length,) = _TRAIL_LENGTH.unpack_from(answer, 1)
    start = 1 + _TRAIL_LENGTH.size
    entered = tuple(answer[start : start + length].decode().splitlines())
    payload = answer[start + length :]
    if answer[:1] == rank.ESCAPED:
        return Reply(r, "raised", None, entered, payload.decode(errors="replace"))
    return Reply(r, "returned" if answer[:1] == rank.RETURNED else "raised", payload, entered)
