"""What differs between operating systems. Linux has what is wanted; elsewhere the nearest thing there is."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1


# Where ranks meet: a descriptor that travels to them, or a path.
Meeting = int | str


def unnamed_file(name: str) -> int:
    """A descriptor of an empty file that no directory lists, so that nothing is left of it after its users."""
    if LINUX:
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def rendezvous() -> Iterator[Meeting]:
    """The file on which ranks meet: an unnamed one on Linux, elsewhere one in a private directory, gone afterwards."""
    if LINUX:
        fd = unnamed_file("rendezvous")
        try:
            yield fd
        finally:
            os.close(fd)
    else:
        folder = tempfile.mkdtemp(prefix="ranks-")
        try:
            yield os.path.join(folder, "store")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def meeting_path(meeting: Meeting) -> str:
    """What a rank opens. Each opening of an unnamed file is one of its own, with its own locks, as for any path."""
    return f"/proc/self/fd/{meeting}" if isinstance(meeting, int) else meeting


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block. A process started inside it, and all that it forks, never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def loopback() -> str:
    """The name of the interface that leads to this host alone."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def run_as_batch() -> None:
    """Gives up wake-up preemption, which makes gloo 5 to 10 times slower where ranks outnumber cores."""
    if LINUX:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def die_with(parent: int) -> None:
    """Ends this process, whatever it is doing, when its parent has ended; a Linux kernel does this, others do not."""
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call above took effect
            os._exit(1)
