"""What a rank is as a process: nothing of the worker in it, quiet, and gone with the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.ranks import StartFailed, launch

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


@pytest.fixture
def _new_server():
    """A fork server that has prepared nothing yet; other tests may have had it import their handlers."""
    launch._server.stop()


def facts(reply):
    return dict(line.split(" ", 1) for line in reply.payload.decode().splitlines())


@pytest.mark.usefixtures("_new_server")
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


@pytest.mark.usefixtures("_new_server")
def test_the_check_for_clean_ranks_can_fail(start):
    """A handler that imports pytest is seen to have done so."""
    assert facts(start(1, "handlers:with_pytest").call(b"state", 20)[0])["modules"] == "pytest,_pytest"


@pytest.mark.parametrize(
    ("handler", "request_"),
    [
        ("conformance.adapters.serve:serve", b"\x1aconformance.adapters.serve"),
        ("handlers:script", b"\x00"),
        ("conformancelike.serve:serve", b"\x00"),
    ],
)
def test_a_handler_is_prepared_where_every_sys_path_finds_the_same(handler, request_):
    """So in this package; a setup may put another folder in front, where another module has that name."""
    assert launch._to_prepare(handler) == request_


@pytest.mark.usefixtures("_new_server")
def test_a_prepared_handler_is_in_every_rank_from_its_birth(start):
    """Those with another handler too, which shows it."""
    with pytest.raises(StartFailed, match="no_such_factory"):
        start(1, "conformance.adapters.serve:no_such_factory")
    assert facts(start(1).call(b"state", 20)[0])["modules"] == "spec"


def test_what_cannot_be_prepared_fails_in_the_rank(start):
    """With its traceback; the server goes on."""
    with pytest.raises(StartFailed, match=r"(?s)rank 0 raised.*No module named 'conformance.not_there'"):
        start(1, "conformance.not_there:factory")
    assert start(1).call(b"echo=hi", 20)[0].payload == b"0/1 hi"


def test_the_worker_does_not_import_torch():
    """It pays for neither time nor memory of what only ranks need."""
    code = "import sys, conformance.ranks.attached; sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
