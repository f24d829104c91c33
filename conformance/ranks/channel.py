"""Frames over a socket: eight bytes of length, then the payload. The one transport between the worker and its ranks.

The worker's end never blocks, so that no rank, dead, stopped or stuck in the middle of a frame, can hold the worker
beyond a deadline. The rank's end blocks: it has nothing else to do. `EOFError` says that the other end is gone.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 16


class Channel:
    """One end of a connection on which at most one frame is under way in each direction."""

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        sock.setblocking(blocking)
        self._sock = sock
        self._inbox = bytearray()
        self._outbox = memoryview(b"")

    def fileno(self) -> int:
        return self._sock.fileno()

    def push(self, payload: bytes) -> bool:
        """Starts to send a frame; True when all of it has left, else call `flush` when the socket is writable."""
        self._outbox = memoryview(_LENGTH.pack(len(payload)) + payload)
        return self.flush()

    def flush(self) -> bool:
        try:
            while self._outbox:
                self._outbox = self._outbox[self._sock.send(self._outbox) :]
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise EOFError from error
        return True

    def pull(self) -> bytes | None:
        """Reads once; a frame if that completed one, else None."""
        try:
            chunk = self._sock.recv(max(_CHUNK, self._missing()))
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise EOFError from error
        if not chunk:
            raise EOFError
        self._inbox += chunk
        if self._missing() > 0:
            return None
        frame = bytes(memoryview(self._inbox)[_LENGTH.size :])
        self._inbox.clear()
        return frame

    def send(self, payload: bytes) -> None:
        """A whole frame, on the blocking end."""
        self.push(payload)

    def receive(self) -> bytes:
        """A whole frame, on the blocking end."""
        while (frame := self.pull()) is None:
            pass
        return frame

    def end(self) -> None:
        """Says that no more frames will come from here."""
        with suppress(OSError):  # the other end may be gone already
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()

    def _missing(self) -> int:
        if len(self._inbox) < _LENGTH.size:
            return _LENGTH.size - len(self._inbox)
        (length,) = _LENGTH.unpack_from(self._inbox)
        return _LENGTH.size + int(length) - len(self._inbox)
