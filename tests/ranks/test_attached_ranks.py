"""The same calls over ranks that torchrun started: answers, exceptions, and an end of the run where nothing else is
left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAM = str(HERE / "attached_program.py")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | more


def torchrun(*commands: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, *launch, PROGRAM, *commands],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_answers_come_from_all_ranks():
    """Of any size; agreed and single exceptions keep the ranks, with what each had entered."""
    run = torchrun(
        "60 reduce echo=hi", "60 big=3000000", "60 groups", "60 reduce refuse", "60 reduce 1:throw", "60 reduce"
    )

    assert run.returncode == 0, run.stderr
    healthy = "healthy True"
    assert run.stdout.splitlines() == [
        "0 returned b'0/2 hi' () ",
        "1 returned b'1/2 hi' () ",
        healthy,
        "0 returned 3000000 () ",
        "1 returned 3000000 () ",
        healthy,
        "0 returned b'(0,)=0 (0, 1)=1' () ",
        "1 returned b'(0, 1)=1 (1,)=1' () ",
        healthy,
        "0 raised b'refused' ('#2 all-reduce 4 B float32',) ",
        "1 raised b'refused' ('#2 all-reduce 4 B float32',) ",
        healthy,
        "0 returned b'3.0' ('#3 all-reduce 4 B float32',) ",
        "1 raised None ('#3 all-reduce 4 B float32',) ArithmeticError: thrown by the handler",
        healthy,
        "0 returned b'3.0' () ",
        "1 returned b'3.0' () ",
        healthy,
    ]


@pytest.mark.parametrize("command", ["1:sleep=600 reduce", "1:refuse reduce", "0:spin"])
def test_a_hang_ends_the_run_with_a_report(command):
    """The ranks cannot be replaced; each that is stuck says where, and what it had entered."""
    began = time.monotonic()
    run = torchrun("60 reduce", f"2 {command}", "60 reduce")

    assert time.monotonic() - began < 60
    assert run.returncode != 0
    assert "rank 0 is past its deadline" in run.stderr
    assert ("in spin" if command == "0:spin" else "in all_reduce") in run.stderr
    assert command == "0:spin" or "#2 all-reduce 4 B float32" in run.stderr
    assert run.stdout.count("healthy True") == 1


def plain(tmp_path: Path, *commands: str) -> list[subprocess.Popen[str]]:
    """Two ranks without torchrun, which would end rank 0 as soon as rank 1 has ended."""
    code = (
        "import os, runpy, torch.distributed as dist; r = int(os.environ['RANK']);"
        f"dist.init_process_group('gloo', store=dist.FileStore({str(tmp_path / 'store')!r}, 2), rank=r, world_size=2);"
        f"runpy.run_path({PROGRAM!r}, run_name='__main__')"
    )
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *commands],
            env=environment(RANK=str(r), WORLD_SIZE="2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]


@pytest.mark.parametrize(
    ("command", "fate", "status"),
    [("1:sleep=600 echo=hi", "hung", 86), ("1:exit=3 echo=hi", "died", 3), ("1:kill echo=hi", "died", -9)],
)
def test_a_lost_rank_is_named_where_the_caller_is_not_stuck(tmp_path, command, fate, status):
    """The call returns, and there is no further one."""
    caller, other = plain(tmp_path, f"2 {command}", "2 echo=hi")
    try:
        out, errors = caller.communicate(timeout=60)
        _, report = other.communicate(timeout=60)
    finally:
        caller.kill()
        other.kill()

    assert out.splitlines()[:3] == ["0 returned b'0/2 hi' () ", f"1 {fate} None () ", "healthy False"]
    assert f"BrokenGroup: rank 1 {fate}" in errors
    assert other.returncode == status
    assert ("rank 1 is past its deadline" in report) == (fate == "hung")
