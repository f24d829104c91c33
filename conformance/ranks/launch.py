"""The worker's hand on processes: the one fork server of this worker, and each rank with its wires."""

from __future__ import annotations

import atexit
import os
import re
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field

from conformance.ranks import host
from conformance.ranks.channel import Channel
from conformance.ranks.forkserver import PRELOAD, STATUS

FORK_SECONDS = 60.0  # the first fork waits for the imports of the server
STOP_SECONDS = 1.0
_TAIL_BYTES = 8192
_BELOW_HANDLER = re.compile(r'  File "[^"\n]*ranks/rank\.py", line \d+ in answer\n(  File .*\n?)*')
# sys.path is given before anything but the standard library is imported, so the server finds what the worker finds.
_SERVER = """
import sys
sys.path[:] = sys.argv[2:]
from conformance.ranks.forkserver import main
main(int(sys.argv[1]))
"""
_OWN_PACKAGE = __name__.partition(".")[0] + "."
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class RankProcess:
    """A process that the fork server started for this worker."""

    def __init__(self, status: int) -> None:
        self.pid = 0
        self.sentinel = status  # readable when the process has ended
        self.exitcode: int | None = None

    def learn_pid(self, seconds: float) -> None:
        """The server's first report."""
        ready = self._readable(seconds)
        report = os.read(self.sentinel, STATUS.size) if ready else b""
        if not report:
            what = "has ended" if ready else f"did not answer within {seconds:g} s"
            raise RuntimeError(f"the fork server {what}; {sys.executable} must be able to import {', '.join(PRELOAD)}")
        (self.pid,) = STATUS.unpack(report)

    def wait(self, seconds: float) -> int | None:
        """The exit code, once the process has ended; None if it has not by then."""
        if self.exitcode is None and self._readable(seconds):
            report = os.read(self.sentinel, STATUS.size)
            self.exitcode = STATUS.unpack(report)[0] if report else -signal.SIGKILL  # without a server ranks are killed
        return self.exitcode

    def signal(self, number: int) -> None:
        if self.wait(0) is None:
            with suppress(ProcessLookupError):  # it may have ended and the server not yet said so
                os.kill(self.pid, number)

    def _readable(self, seconds: float) -> bool:
        poll = select.poll()  # unlike select.select it takes descriptors above 1023
        poll.register(self.sentinel, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))


@dataclass(eq=False)
class Member:
    """One rank as the worker sees it: its process, its wires, and what is known of it in the present command."""

    rank: int
    process: RankProcess
    channel: Channel
    output: int  # read end of its stdout and stderr
    trail: int
    stacks: int
    answer: bytes | None = None
    dead: bool = False
    tail: bytearray = field(default_factory=bytearray)

    def read_output(self) -> bool:
        """Takes what the rank has printed, keeping the end of it; False when there will be no more."""
        try:
            chunk = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return True
        self.tail += chunk
        del self.tail[:-_TAIL_BYTES]
        return bool(chunk)

    def read_output_tail(self) -> str:
        self.read_output()
        return self.tail.decode("utf-8", "replace")

    def read_stacks(self) -> str:
        """What faulthandler wrote, without the frames below the handler, which are the same in every stack."""
        return _BELOW_HANDLER.sub("", os.pread(self.stacks, 1 << 18, 0).decode("ascii", "replace"))

    def release(self) -> None:
        self.channel.close()
        for fd in (self.process.sentinel, self.output, self.trail, self.stacks):
            os.close(fd)


class _ForkServer:
    """The fork server of this worker, started on first use and again if it has gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._owner = 0

    def start(self) -> socket.socket:
        """Returns at once: the server's imports take a second or two beside the caller's work."""
        if self._requests is None or not self._is_alive():
            self.stop()
            self._requests, far = socket.socketpair()
            with host.interrupts_held():  # for ever in the server and its ranks: Ctrl-C is for the worker
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVER, str(far.fileno()), *sys.path],
                    pass_fds=[far.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ONE_THREAD,
                )
            far.close()
            self._owner = os.getpid()
        return self._requests

    def _is_alive(self) -> bool:
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._process is not None and self._owner == os.getpid():
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # it is still importing, and has no ranks
                self._process.kill()
                self._process.wait()
        self._process = None


_server = _ForkServer()
start_fork_server = _server.start
atexit.register(_server.stop)


def start_rank(r: int, meeting: host.Meeting, handler: str) -> Member:
    """Starts a process that will be rank r with this handler. It waits for the frame that says so."""
    requests = _server.start()
    near, far = socket.socketpair()
    output, printed = os.pipe()
    sentinel, status = os.pipe()
    trail, stacks = host.unnamed_file("trail"), host.unnamed_file("stacks")
    os.set_blocking(output, False)
    member = Member(r, RankProcess(sentinel), Channel(near, blocking=False), output, trail, stacks)
    wires = [status, far.fileno(), printed, trail, stacks] + ([meeting] if isinstance(meeting, int) else [])
    try:
        socket.send_fds(requests, [_to_prepare(handler)], wires)
    finally:
        far.close()
        os.close(printed)
        os.close(status)
    try:
        member.process.learn_pid(FORK_SECONDS)
    except BaseException:
        member.release()
        raise
    return member


def _to_prepare(handler: str) -> bytes:
    """The module that the server imports before it forks: only of this package, which is the same on any sys.path."""
    name = handler.partition(":")[0].encode() if handler.startswith(_OWN_PACKAGE) else b""
    return bytes([len(name)]) + name
