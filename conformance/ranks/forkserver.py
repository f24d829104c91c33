"""A process with torch and numpy imported that forks ranks: a fresh rank costs milliseconds, not the import of torch.

It is a clean exec, so it is safe although the worker has imported jax, and nothing of the worker is in it.
`multiprocessing` has such a server too, which does not serve here: each child of it keeps it alive, so that one rank
stuck in a collective leaves all of them behind when the worker is killed; its socket stays on disk then; and children
import the worker's `__main__` again (the pytest script).

The rules: a request is a module that the rank will need, as one byte for the length of its name and the name, and some
descriptors: where the process id and later the exit status go to, then what `rank.main` takes. The module is imported
here, once for all ranks; if it cannot be, they will say why. Requests come over a socket pair that has no name and no
other user. When the worker has ended, however it did, that socket is at its end, and the server kills all ranks and
ends. When the server is killed, the kernel kills them.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import traceback
from contextlib import suppress

from conformance.ranks import host, rank

PRELOAD = ("numpy", "numpy.random", "json", "hashlib", "torch", "torch.distributed", "torch.utils._python_dispatch")
# The first backward of a process imports this, in a second; it is not public, so another torch may do without it.
_FOR_BACKWARD = "torch.fx.experimental.symbolic_shapes"
_MOST_DESCRIPTORS = 8
STATUS = struct.Struct("<i")  # the process id, or the exit code as subprocess gives it: minus the signal that killed it


def main(requests_fd: int) -> None:
    """The life of the server."""
    for name in PRELOAD:
        importlib.import_module(name)
    with suppress(ImportError):
        importlib.import_module(_FOR_BACKWARD)
    gc.freeze()  # or the collector of each rank would copy all pages by writing to them
    _Server(socket.socket(fileno=requests_fd)).serve()


class _Server:
    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._prepared: set[str] = set()
        self._statuses: dict[int, int] = {}  # of each living rank: process id -> where its exit status goes
        self._woken, waker = socket.socketpair()
        for end in (self._woken, waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only has to wake the selector
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ, self._on_request)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_child)
        self._not_for_ranks = (requests, self._woken, waker, self._selector)

    def serve(self) -> None:
        try:
            while all(key.data() for key, _ in self._selector.select()):
                pass
        finally:
            for pid in self._statuses:
                os.kill(pid, signal.SIGKILL)

    def _on_request(self) -> bool:
        length, fds, _, _ = socket.recv_fds(self._requests, 1, _MOST_DESCRIPTORS)
        if not length:
            return False
        name = self._requests.recv(length[0], socket.MSG_WAITALL).decode() if length[0] else ""
        if name and name not in self._prepared:
            self._prepare(name)
        status, *wires = fds
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_rank(server, status, wires)
        for fd in wires:
            os.close(fd)
        self._statuses[pid] = status
        _report(status, pid)
        return True

    def _prepare(self, name: str) -> None:
        self._prepared.add(name)
        with suppress(BaseException):
            importlib.import_module(name)
            gc.freeze()

    def _become_rank(self, server: int, status: int, wires: list[int]) -> None:
        """Never returns, and lets no exception out into the server's loop."""
        try:
            host.die_with(server)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for own in self._not_for_ranks:
                own.close()
            for fd in (status, *self._statuses.values()):
                os.close(fd)
            rank.main(*wires)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _on_child(self) -> bool:
        self._woken.recv(4096)
        for pid in list(self._statuses):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = self._statuses.pop(pid)
                _report(status, os.waitstatus_to_exitcode(code))
                os.close(status)
        return True


def _report(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the worker may want to know no more
        os.write(status, STATUS.pack(number))
