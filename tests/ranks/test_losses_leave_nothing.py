"""Hundreds of lost ranks in a row leave nothing behind, and accuse nobody who stands between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROGRAM = str(Path(__file__).parent / "losing_program.py")
LEFT = ["processes", "descriptors", "files", "shared memory", "working folder"]


def run(worker: Any, folder: Path, *arguments: str) -> tuple[dict[str, Any], Any]:
    """What the program printed, and the program."""
    folder.mkdir()
    program = worker(PROGRAM, *arguments, cwd=folder)
    out, errors = program.process.communicate(timeout=600)
    assert program.process.returncode == 0, errors
    return json.loads(out.splitlines()[-1]), program


def test_two_hundred_losses_in_a_row_leave_nothing(worker, tmp_path):
    """They hang, die, crash, exit and raise; those in between that do not must pass."""
    said, program = run(worker, tmp_path / "here", "0", "220")

    assert said["wrong"] == []
    assert (said["moods"].pop(""), sum(said["moods"].values())) == (20, 200)
    assert said["after"] == said["before"]
    assert program.left() == set()
    assert program.files_left() == []


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_behind_would_be_seen(worker, tmp_path, what):
    """The same with something broken in the pool, each time something else; only that is found."""
    said, program = run(worker, tmp_path / "here", "1", "3", what)
    for name in set(said["after"]["shared memory"]) - set(said["before"]["shared memory"]):
        Path("/dev/shm", name).unlink()

    before, after = said["before"], said["after"]
    assert [name for name in LEFT if before[name] != after[name]] == [what]
    assert len(after[what]) > len(before[what])
    assert program.left() == set()
