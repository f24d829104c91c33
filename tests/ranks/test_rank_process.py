"""What a rank is as a process: nothing of the worker in it, quiet, and gone with the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Run as a test file of its own, so that the worker is each of the programs that people start.
INNER = f"""
import hypothesis, jax, pytest
from conformance.ranks import RankGroup, RankSetup

@pytest.mark.parametrize("world", [1, 2])
def test_clean(world):
    with RankGroup.start(RankSetup(world, "handlers:script", sys_path=({str(HERE)!r},))) as group:
        for reply in group.call(b"state", 60):
            facts = dict(line.split(" ", 1) for line in reply.payload.decode().splitlines())
            assert facts["modules"] == "none"
            assert facts["main"] == "None"
"""


def facts(reply):
    return dict(line.split(" ", 1) for line in reply.payload.decode().splitlines())


def test_a_rank_as_a_process(start):
    """Scheduling, interface, threads, standard streams and arguments."""
    for reply in start(2, options={"option": "given"}).call(b"reduce state", 20):
        assert facts(reply) == {
            "modules": "none",
            "main": "None",
            "batch": "True",
            "interface": "lo",
            "threads": "1",
            "stdin": "/dev/null",
            "read": "''",
            "argv": "rank",
            "option": "given",
            "environment": "none",
        }


def test_a_rank_has_the_environment_of_the_worker_at_the_start_of_its_group(start, monkeypatch):
    """Not the one of the moment when the fork server started."""
    start(1).call(b"state", 20)
    monkeypatch.setenv("RANKS_TEST_LATE", "late")

    assert facts(start(1).call(b"state", 20)[0])["environment"] == "late"


@pytest.mark.parametrize(
    "program", [["-m", "pytest"], [str(Path(sys.executable).parent / "pytest")], ["-m", "pytest", "-n", "2"]]
)
def test_nothing_of_the_worker_is_in_a_rank(tmp_path, program):
    """Whichever program the worker is, with jax, hypothesis and pytest imported there; far from the checkout."""
    (tmp_path / "test_inner.py").write_text(INNER)
    run = subprocess.run(
        [
            sys.executable,
            *program,
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "--rootdir",
            str(tmp_path),
            "test_inner.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout


def test_the_check_for_clean_ranks_can_fail(start):
    """A handler that imports pytest is seen to have done so."""
    assert facts(start(1, "handlers:with_pytest").call(b"state", 20)[0])["modules"] == "pytest,_pytest"


def test_the_worker_does_not_import_torch():
    """It pays for neither time nor memory of what only ranks need."""
    code = "import sys, conformance.ranks.attached; sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
