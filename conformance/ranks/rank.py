"""The inside of a rank: settle as a process, join the others, make the handler, answer commands until there are no
more.

The rules: a rank prints nothing that anyone must read, writes to no file with a name, never sees Ctrl-C, and ends with
the worker. An answer is one byte for the kind, then the payload. Nothing here imports torch at the top: the worker,
which imports this module to name `main`, does without.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from conformance.ranks import host
from conformance.ranks.channel import Channel
from conformance.ranks.host import Meeting
from conformance.ranks.trail import Trail
from conformance.ranks.values import Context, Raised, RankSetup

RETURNED, RAISED, ESCAPED = b"R", b"X", b"E"
STACK_SIGNAL = signal.SIGUSR1
# Far above any deadline: the worker decides when a collective has waited too long, not torch.
COLLECTIVE_SECONDS = 3600.0

Handler = Callable[[bytes], "bytes | Raised"]


def main(commands: int, output: int, trail_file: int, stacks: int, *meeting_file: int) -> None:
    """The life of a rank, given the descriptors of its wires. The first frame, made by `welcome`, says who it is."""
    _settle(output, stacks)
    channel = Channel(socket.socket(fileno=commands), blocking=True)
    trail = Trail(trail_file)
    handler: Handler | None = None
    try:
        setup, r, meeting = _be_welcomed(channel.receive())
        context = join(setup, r, meeting_file[0] if meeting_file else meeting, trail)
        handler = make_handler(setup, context)
        started = RETURNED
    except BaseException:
        started = ESCAPED + traceback.format_exc().encode(errors="backslashreplace")
    try:
        channel.send(started)
        _serve(channel, trail, handler)
    except EOFError:  # there is no more to do; after a failed start the worker says nothing else
        if handler is not None:
            finish(handler)
    os._exit(0)  # no exit handlers, no destructors: a library's could wait for ranks that are gone


def welcome(setup: RankSetup, r: int, meeting: Meeting) -> bytes:
    """The first frame for rank r, from a worker whose sys.path and environment it is to have."""
    return pickle.dumps((setup, r, meeting if isinstance(meeting, str) else "", sys.path, dict(os.environ)))


def _be_welcomed(frame: bytes) -> tuple[RankSetup, int, str]:
    setup, r, meeting, path, environment = pickle.loads(frame)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    return setup, r, meeting


def _settle(output: int, stacks: int) -> None:
    faulthandler.enable(stacks)
    faulthandler.register(STACK_SIGNAL, stacks)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a rank that crashes leaves no file, and is gone at once
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Lines leave at once; what a library writes to the descriptors themselves comes to the same pipe.
    for name, fd in (("stdout", 1), ("stderr", 2)):
        setattr(
            sys,
            name,
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), errors="backslashreplace", write_through=True),
        )
    sys.argv = ["rank"]  # the server's are not for libraries that parse them


def join(setup: RankSetup, r: int, meeting: Meeting, trail: Trail) -> Context:
    """Makes the process group of the world, and the subgroups, in the order of the setup."""
    host.run_as_batch()  # before gloo starts its threads, which inherit it
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = host.loopback()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)  # ranks share the cores
    store = dist.FileStore(  # type: ignore[attr-defined]  # public, but not in the stubs
        host.meeting_path(meeting), setup.world
    )
    device = pick_device(setup, r)
    dist.init_process_group(
        setup.backend,
        store=store,
        rank=r,
        world_size=setup.world,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        device_id=device if "nccl" in setup.backend else None,
    )
    return make_context(setup, r, device, trail)


def pick_device(setup: RankSetup, r: int) -> Any:
    """cpu, or the GPU of rank r of this host; over gloo ranks may share one."""
    import torch

    if setup.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", r if "nccl" in setup.backend else r % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def make_context(setup: RankSetup, r: int, device: Any, trail: Trail) -> Context:
    """Makes the subgroups and says what a factory is told."""
    import torch.distributed as dist

    groups = {tuple(range(setup.world)): dist.group.WORLD}
    for ranks in (ranks for layout in setup.subgroups for ranks in layout):
        group = dist.new_group(list(ranks))
        if r in ranks:
            groups[ranks] = group
    return Context(r, setup.world, device, dict(setup.options), groups, trail.add)


def make_handler(setup: RankSetup, context: Context) -> Handler:
    sys.path[:0] = setup.sys_path
    module, _, factory = setup.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(module), factory)(context)
    return handler


def _serve(channel: Channel, trail: Trail, handler: Handler | None) -> None:
    number = 0
    while True:
        command = channel.receive()
        number += 1
        trail.begin(number)
        assert handler is not None
        channel.send(answer(handler, command))


def answer(handler: Handler, command: bytes) -> bytes:
    """What the handler makes of the command, as kind and payload. Every exception is an answer, SystemExit too."""
    try:
        result = handler(command)
        if isinstance(result, Raised):
            return RAISED + result.payload
        if isinstance(result, bytes):
            return RETURNED + result
        raise TypeError(f"a handler returns bytes or Raised, not {type(result).__name__}")
    except BaseException:
        return ESCAPED + traceback.format_exc().encode(errors="backslashreplace")


def finish(handler: Handler) -> None:
    """The polite end. The worker waits for it a little, and not longer."""
    import torch.distributed as dist

    if callable(close := getattr(handler, "close", None)):
        close()
    dist.destroy_process_group()
