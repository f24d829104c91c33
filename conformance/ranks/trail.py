"""The trail of a command: which command a rank has begun, and its lines about the collectives that it enters.

The rank writes it into a file without a name that it shares with the worker; the worker looks only when there is
trouble. A file can neither fill up and block the rank, as a pipe can, nor be lost with a killed process. Each write is
one system call: the new line and a NUL, on which the next line is written; what follows the NUL is left over from
earlier commands.
"""

from __future__ import annotations

import os
from collections import deque

_BYTES = 1 << 19
_LINE_BYTES = 400
_KEPT_LINES = 500  # at least so many of the latest lines survive in a command that writes more than _BYTES


class Trail:
    """The rank's side."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.begin(0)

    def begin(self, number: int) -> None:
        """Starts the trail of a command anew."""
        self._header = b"%d\n" % number
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._written = 0
        self._end = 0
        self._write(self._header)

    def add(self, text: str) -> None:
        line = text.encode("ascii", "backslashreplace").replace(b"\n", b" ").replace(b"\0", b" ")[:_LINE_BYTES] + b"\n"
        self._lines.append(line)
        self._written += 1
        if self._end + len(line) >= _BYTES:
            dropped = b"(%d earlier lines dropped)\n" % (self._written - len(self._lines))
            line = self._header + dropped + b"".join(self._lines)
            self._end = 0
        self._write(line)

    def _write(self, line: bytes) -> None:
        os.pwrite(self._fd, line + b"\0", self._end)
        self._end += len(line)


def read_trail(fd: int) -> tuple[int, tuple[str, ...]]:
    """The worker's side: the number of the command that the rank began last, and its lines."""
    text = os.pread(fd, _BYTES + 1, 0).partition(b"\0")[0].decode("ascii", "replace")
    number, *lines = text.splitlines() or ["-1"]
    return int(number), tuple(lines)
