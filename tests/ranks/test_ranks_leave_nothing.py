"""Nothing is left: no process, no descriptor, no file; after faults, after Ctrl-C, after kill -9."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from conformance.ranks import RankPool

# A worker that has one idle group, and one that does what the first argument says for ever.
WORKER = """
import sys, threading
from conformance.ranks import RankPool, RankSetup

here = sys.argv[2]
pool = RankPool()
pool.call(RankSetup(1, "handlers:script", sys_path=(here,)), b"reduce", 60)
busy = RankSetup(2, "handlers:script", sys_path=(here,))
pool.call(busy, b"reduce", 60)
threading.Timer(0.5, lambda: print("busy", flush=True)).start()
pool.call(busy, sys.argv[1].encode(), 600)
"""
BUSY = ["sleep=600", "spin", "1:sleep=600 reduce"]
HERE = str(Path(__file__).parent)


def open_descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
        except OSError:
            continue  # that of the listing itself
    return sorted(found)


def children() -> set[str]:
    """Processes whose parent is this one or that have no program any more, so zombies too."""
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == os.getpid()}


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def grandchildren() -> set[str]:
    ours = {int(pid) for pid in children()}
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) in ours}


@pytest.mark.parametrize("command", [b"1:refuse", b"1:kill reduce", b"1:throw reduce"])
def test_fifty_faults_leave_no_descriptor_and_no_process(setup_of, command):
    """Each group of them is replaced, and gone."""
    setup = setup_of(2)
    with RankPool(limit=1) as pool:
        pool.call(setup, b"reduce", 60)
        pool.discard(setup)
        before = open_descriptors(), children(), grandchildren()
        for _ in range(50 if command == b"1:refuse" else 8):
            pool.call(setup, command, 60)
        after = open_descriptors(), children(), grandchildren()

    assert after == before


def test_close_ends_all_groups(setup_of):
    """And the pool can be used again."""
    pool = RankPool()
    pool.call(setup_of(1), b"reduce", 60)
    pool.close()
    before = open_descriptors(), grandchildren()
    for world in (1, 2):
        pool.call(setup_of(world), b"reduce", 60)
    pool.close()

    assert (open_descriptors(), grandchildren()) == before


@pytest.mark.parametrize("command", BUSY)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_in_a_command(worker, command, how):
    """Killed, asked to end, or by Ctrl-C, which all processes of a terminal get; its ranks are stuck at that moment."""
    program = worker("-c", WORKER, command, HERE)
    program.wait_for("busy")
    assert len(program.living()) == 5  # the worker, the fork server, three ranks

    if how == signal.SIGINT:
        os.killpg(program.process.pid, how)
    else:
        program.process.send_signal(how)
    errors = program.process.communicate(timeout=60)[1]

    assert program.left() == set()
    assert program.files_left() == []
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == (how == signal.SIGINT)


def test_ctrl_c_while_ranks_start(worker):
    """Most of that time torch is imported in the fork server."""
    program = worker("-c", "print('start', flush=True)\n" + WORKER, "spin", HERE)
    program.wait_for("start")
    time.sleep(0.3)
    os.killpg(program.process.pid, signal.SIGINT)
    errors = program.process.communicate(timeout=60)[1]

    assert program.left() == set()
    assert program.files_left() == []
    assert errors.count("Traceback") <= 1


def test_a_worker_that_forgets_to_close(worker):
    """Its normal end is enough."""
    program = worker("-c", WORKER, "reduce", HERE)
    out, errors = program.process.communicate(timeout=60)

    assert (out, errors, program.process.returncode) == ("busy\n", "", 0)
    assert program.left() == set()
    assert program.files_left() == []


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "with workers"])
def test_a_run_of_the_suite_that_is_asked_to_end(worker, tmp_path, workers):
    """It removes the folder for what compilers keep before it ends."""
    suite = str(Path(HERE).parents[1] / "conformance")
    program = worker("-m", "pytest", suite, "-k", "P2-float32", "-p", "no:cacheprovider", *workers, cwd=tmp_path)
    program.wait_for("ranks: world sizes 1, 2, 4, backend gloo, device cpu")
    time.sleep(2)
    before = program.files_of_ours()
    program.process.send_signal(signal.SIGTERM)
    program.process.communicate(timeout=60)

    assert program.process.returncode == -signal.SIGTERM
    assert program.left() == set()
    assert (len(before), program.files_of_ours()) == (1, [])


def test_ranks_end_with_a_killed_fork_server(start):
    """The one process that could end them is gone; the kernel does it, and the next group has a new server."""
    group = start(2)
    (server,) = {_parent(Path(f"/proc/{pid}/stat")) for pid in group.pids}
    os.kill(server, signal.SIGKILL)
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in group.pids) and time.monotonic() < limit:
        time.sleep(0.02)

    assert not group.healthy
    assert start(2).call(b"echo=hi", 60)[0].payload == b"0/2 hi"


def test_an_interrupted_call_ends_its_group(start):
    """Whatever comes out of `call`: the ranks are in the middle of a command."""
    group = start(2)
    pids = group.pids

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            group.call(b"spin", 60)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert not group.healthy
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
