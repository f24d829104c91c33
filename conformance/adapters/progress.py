"""How far a rank has come in its collectives, announced line by line, so that the report of a lost rank can say it.

    #3 all-reduce 64 B float32      about to enter its third collective of this case
    #3 waits                        about to wait for it
    #3 finished                     its wait has returned, and the collective is complete
    #3 failed                       its wait has raised

No line says more than is known. A reduction that nobody waits for is never announced as finished, and on a GPU, where
a wait returns while the kernel runs, a finished one only when the rank's next operator finds it complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class Progress:
    """The announcements of one case on one rank, numbered through all its runs."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._count = 0
        self._held: dict[int, tuple[int, Any]] = {}  # id of a Work -> its number, and the Work, which keeps the id
        self._waited: list[tuple[int, Any]] = []

    def enter(self, text: str) -> int:
        """Announces the next collective; returns its number."""
        self._count += 1
        self._announce(f"#{self._count} {text}")
        return self._count

    def hold(self, number: int, result: Any) -> None:
        """Remembers the handle among what the operator of a collective returned; functional ones have none."""
        last = result[-1] if isinstance(result, tuple | list) and result else result
        if isinstance(last, torch.ScriptObject):
            work = dist.Work.unbox(last)  # the very object that the caller gets, as long as it is held here
            self._held[id(work)] = number, work

    def look(self) -> None:
        """Announces what was waited for and is complete."""
        complete = [number for number, work in self._waited if work.is_completed()]
        for number in complete:
            self._announce(f"#{number} finished")
        if complete:
            self._waited = [entry for entry in self._waited if entry[0] not in complete]

    @contextmanager
    def watching_waits(self) -> Iterator[None]:
        """Within it every wait for a held collective is announced.

        torch has no hook for this, so the method is put out for another: in all of this process, which is a rank.
        """
        plain = dist.Work.wait

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if id(work) not in self._held:
                return plain(work, *args, **kwargs)
            number, _ = self._held.pop(id(work))
            self._announce(f"#{number} waits")
            try:
                result = plain(work, *args, **kwargs)
            except BaseException:
                self._announce(f"#{number} failed")
                raise
            self._waited.append((number, work))
            self.look()
            return result

        dist.Work.wait = wait
        try:
            yield
        finally:
            dist.Work.wait = plain
