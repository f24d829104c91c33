"""What a rank announces of its collectives: when it enters each, when it waits for it, and how that ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from adapters_for_tests import Mine

from conformance.adapters.progress import Progress
from conformance.adapters.protocol import Group
from conformance.adapters.watch import CollectiveLog
from spec import Case


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Unfinished:
    """Stands in for a Work whose wait returns before it is complete, as on a GPU, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.complete = error, False

    def is_completed(self) -> bool:
        return self.complete

    def wait(self) -> bool:
        if self.error:
            raise self.error
        return True


def waited_for(progress: Progress, work: Unfinished) -> None:
    """As if an operator had returned this handle, and its caller waits."""
    progress._held[id(work)] = progress.enter("all-reduce 8 B float32"), work
    with progress.watching_waits():
        dist.Work.wait(work)  # type: ignore[arg-type]


def test_a_collective_is_announced_to_its_end() -> None:
    lines: list[str] = []
    with CollectiveLog(lines.append):
        dist.all_reduce(torch.ones(2))
        work = dist.all_reduce(torch.ones(3), async_op=True)
        assert work is not None
        lines.append("the caller goes on")
        work.wait()
        work.wait()  # which is no news

    assert lines == [
        *("#1 all-reduce 8 B float32", "#1 waits", "#1 finished"),
        *("#2 all-reduce 12 B float32", "the caller goes on", "#2 waits", "#2 finished"),
    ]


def test_what_nobody_waits_for_is_never_said_to_be_finished() -> None:
    lines: list[str] = []
    with CollectiveLog(lines.append):
        dist.all_reduce(torch.ones(2), async_op=True)
        torch.ones(3) + 1

    assert lines == ["#1 all-reduce 8 B float32"]


def test_logs_of_one_case_are_numbered_on() -> None:
    """And one of them may see the wait for what another saw begin."""
    lines: list[str] = []
    first = CollectiveLog(lines.append)
    second = first.another()
    with first:
        work = dist.all_reduce(torch.ones(2), async_op=True)
    with second:
        dist.all_reduce(torch.ones(2))
        assert work is not None
        work.wait()

    assert [line for line in lines if "B" in line] == ["#1 all-reduce 8 B float32", "#2 all-reduce 8 B float32"]
    assert lines[-2:] == ["#1 waits", "#1 finished"]
    assert (len(first.take()), len(second.take())) == (1, 1)


@pytest.mark.parametrize("procedure", ["pipeline", "interleave"])
def test_all_runs_of_a_procedure_are_numbered_on(procedure: str) -> None:
    lines: list[str] = []
    session = Mine().open(Group(0, 1, dist.group.WORLD, announce=lines.append))
    session.run(Case.parse(f"row P=1 batch=1 in=2 out=1 float32 procedure={procedure} seed=0"), 0)

    assert [line for line in lines if "B" in line] == [f"#{number} all-reduce 4 B float32" for number in (1, 2, 3)]


def test_waits_are_torch_s_own_again_afterwards() -> None:
    plain, log = dist.Work.wait, CollectiveLog(lambda line: None)
    with log:
        assert dist.Work.wait is not plain
    assert dist.Work.wait is plain
    with pytest.raises(RuntimeError), log:
        torch.ones(2) @ torch.ones(3)
    assert dist.Work.wait is plain

    lines: list[str] = []
    with CollectiveLog(lines.append):
        work = dist.all_reduce(torch.ones(2), async_op=True)
    assert work is not None
    work.wait()
    assert lines == ["#1 all-reduce 8 B float32"]


def test_a_wait_that_returns_early_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waited for is announced once it is complete."""
    monkeypatch.setattr(dist.Work, "wait", Unfinished.wait)
    lines: list[str] = []
    progress, work = Progress(lines.append), Unfinished()
    waited_for(progress, work)
    progress.look()
    assert lines == ["#1 all-reduce 8 B float32", "#1 waits"]

    work.complete = True
    progress.look()
    progress.look()
    assert lines[2:] == ["#1 finished"]


def test_a_wait_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist.Work, "wait", Unfinished.wait)
    lines: list[str] = []
    progress, work = Progress(lines.append), Unfinished(RuntimeError("Connection closed by peer"))
    with pytest.raises(RuntimeError, match="closed by peer"):
        waited_for(progress, work)
    work.complete = True
    progress.look()

    assert lines[1:] == ["#1 waits", "#1 failed"]
