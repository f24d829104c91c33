"""A worker that examines mutants in a row, most of which lose a rank; it prints what was said of them and what is left.

python losing_program.py FIRST_SEED LAST_SEED [LEAK]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance import suite as suite_module
from conformance.observers import Options
from conformance.ranks import group, host, launch
from conformance.suite import Suite, Verdict
from spec import Case

LOSING = Path(__file__).parents[1] / "conformance" / "losing_ranks.py"
sys.path.insert(0, str(LOSING.parent))
from losing_ranks import MOODS  # noqa: E402 - tests are no package

WAITING = {"ranks.same-collectives", "ranks.finish"}
DEAD, RAISED = {"ranks.alive"}, {"ranks.no-exception"}
NAMED = {
    **{"": set(), "sleep": WAITING, "stay away": WAITING, "spin": WAITING},
    **{"die": DEAD, "exit": DEAD, "crash": DEAD, "raise": RAISED, "leave": RAISED},
}


def examine(suite: Suite, seed: int) -> tuple[str, str]:
    """What the seed asks for, and what is wrong with the verdict on it, if anything."""
    mood = MOODS[seed % len(MOODS)]
    # Only what hangs has a short time: a right one may be slow on a busy machine.
    suite_module.DEADLINE = 0.15 if NAMED[mood] is WAITING else 60.0
    verdict = suite.examine(Case.parse(f"row P=2 batch=1 in=2 out=1 float32 seed={seed}"))
    return mood, _wrong(verdict, NAMED[mood])


def _wrong(verdict: Verdict, wanted: set[str]) -> str:
    named = {finding.clause.name for finding in verdict.findings}
    right = named <= wanted and bool(named) == bool(wanted)
    if right and not verdict.intermittent and not verdict.declined:
        return ""
    return f"{verdict.case}: {sorted(named)} {verdict.intermittent} {verdict.declined}"


def left() -> dict[str, list[str]]:
    """Processes below this one, its descriptors, and files where temporary ones go."""
    below = _descendants(os.getpid())
    descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    return {
        "processes": sorted(str(pid) for pid in below),
        "descriptors": sorted(name.partition(":")[0] for name in descriptors),
        "files": sorted(map(str, Path(tempfile.gettempdir()).rglob("*"))),
        "shared memory": sorted(os.listdir("/dev/shm")),
        "working folder": sorted(os.listdir()),
    }


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")  # the listing's own is closed again


def _descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found, before = {pid}, set[int]()
    while found != before:
        before = set(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def _named_file(folder: str) -> Callable[[str], int]:
    return lambda name: tempfile.mkstemp(prefix="leaked-", dir=folder)[0]


def leak(what: str) -> None:
    """Break what lets go of it."""
    change: dict[str, tuple[Any, str, Any]] = {
        "processes": (launch.RankProcess, "signal", lambda self, number: None),
        "descriptors": (launch.Member, "release", lambda self: self.channel.close()),
        "files": (host, "unnamed_file", _named_file(tempfile.gettempdir())),
        "shared memory": (host, "unnamed_file", _named_file("/dev/shm")),
        "working folder": (host, "unnamed_file", _named_file(".")),
    }
    setattr(*change[what])
    group.KILL_SECONDS = 0.1


def main(first: int, last: int, leaking: str = "") -> None:
    options = Options(f"{LOSING}:LosesAsAsked")
    suite = Suite(options)
    examine(suite, 0)  # what a worker has for good, such as the fork server, is there from now on
    suite.close()
    before = left()
    if leaking:
        leak(leaking)
    suite, moods, wrong = Suite(options), Counter[str](), list[str]()
    for seed in range(first, last):
        if seed % len(MOODS) == 0:
            suite.begin_item()  # which forgets hangs, of which it takes a few only
        mood, fault = examine(suite, seed)
        moods[mood] += 1
        wrong += [fault] if fault else []
    suite.close()
    print(json.dumps({"moods": moods, "wrong": wrong, "before": before, "after": left()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
