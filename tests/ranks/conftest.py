"""What the tests of the ranks share: setups for the handlers beside this file, groups that are closed, and a clean-up
check.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.ranks import RankGroup, RankPool, RankSetup

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture
def setup_of() -> Callable[..., RankSetup]:
    """Makes the setup of a world whose handlers are those beside this file."""

    def make(world: int, handler: str = "handlers:script", **rest: Any) -> RankSetup:
        return RankSetup(world, handler, sys_path=(str(HERE),), **rest)

    return make


@pytest.fixture
def start(setup_of: Callable[..., RankSetup]) -> Iterator[Callable[..., RankGroup]]:
    """Starts groups that end with the test."""
    groups: list[RankGroup] = []

    def make(world: int, *args: Any, **rest: Any) -> RankGroup:
        groups.append(RankGroup.start(setup_of(world, *args, **rest)))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


@pytest.fixture
def pool() -> Iterator[RankPool]:
    with RankPool() as pool:
        yield pool


class Worker:
    """A Python program of its own that uses ranks, and every process that comes from it."""

    def __init__(self, tmp_path: Path, *args: str, **rest: Any) -> None:
        self.mark = f"RANKS_TEST_MARK={uuid.uuid4()}"
        self.temp = tmp_path / "temp"
        self.temp.mkdir()
        name, _, value = self.mark.partition("=")
        # torch's compiler makes its cache on import, among temporary files unless told where; it is not ours to remove.
        places = {"TMPDIR": str(self.temp), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, *args],
            env=os.environ | places | {name: value, "PYTHONPATH": f"{ROOT}:{HERE}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a test can press Ctrl-C in it as a terminal does, for all processes
            **rest,
        )

    def wait_for(self, line: str) -> None:
        """Returns when it has printed this line."""
        assert self.process.stdout is not None
        seen = []
        while (text := self.process.stdout.readline()).strip() != line:
            seen.append(text)
            assert text, f"ended without {line!r}: {seen} {self.process.communicate()[1]}"

    def living(self) -> set[int]:
        """Processes that carry the mark, by /proc."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:
                continue  # not ours to read, or gone meanwhile
        return found

    def left(self, within: float = 10.0) -> set[int]:
        """Processes that are still there after so many seconds."""
        limit = time.monotonic() + within
        while (living := self.living()) and time.monotonic() < limit:
            time.sleep(0.05)
        return living

    def files_left(self) -> list[Path]:
        return list(self.temp.rglob("*"))

    def files_of_ours(self) -> list[Path]:
        """Without the folders of pytest, which keeps them on purpose."""
        return [path for path in self.temp.iterdir() if not path.name.startswith("pytest-of-")]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts programs; whatever a failed test leaves of them is killed."""
    workers: list[Worker] = []

    def make(*args: str, **rest: Any) -> Worker:
        workers.append(Worker(tmp_path, *args, **rest))
        return workers[-1]

    yield make
    for each in workers:
        for pid in each.living():
            os.kill(pid, 9)
        each.process.communicate()
