"""Where a run is: implementation, items, examples per second, failures, time left, and what is running.

On a terminal one line that rewrites itself stands in the place of pytest's dots; a failed test leaves a line of its own
above it. Elsewhere, and with -v, a line is added now and then, each complete in itself.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any, Final

import pytest

from conformance.items import Item, items
from conformance.reporting.session.collect import name_of

EVERY: Final = 30.0  # seconds between two plain lines
Kind = tuple[str, int]


@dataclass(frozen=True)
class Job:
    """One test, as far as it matters to progress.

    Attributes:
        kind: (what it does, world size); tests of one kind are taken to cost alike.
        label: what it is called beside others of its world.
        world: number of ranks; 0 where its name does not tell.
    """

    kind: Kind
    label: str
    world: int


@lru_cache
def _items() -> Mapping[str, Item]:
    return {str(item): item for item in items()}


def job_of(nodeid: str) -> Job:
    """What a test's id says of it; one that is no item of the suite is called by its name."""
    words, _, name = name_of(nodeid).rpartition(" ")
    item = _items().get(name)
    if item is None:
        return Job((words, 0), f"{words} {name}".strip() or nodeid.rpartition("::")[2], 0)
    world = max(item.P, item.world)
    label = f"{item.procedure} {item.layer} {item.autocast or item.dtype}"
    return Job((f"{words} {item.procedure}".strip(), world), f"{words} {label}".strip(), world)


@dataclass
class State:
    """What is known of a run so far.

    Attributes:
        to_come: tests that have not ended, by id; running: those of them that have begun.
        costs: kind -> seconds that each test of it took.
        workers: how many tests run at once.
    """

    name: str
    total: int = 0
    to_come: dict[str, Job] = field(default_factory=dict[str, Job])
    running: dict[str, Job] = field(default_factory=dict[str, Job])
    costs: dict[Kind, list[float]] = field(default_factory=dict[Kind, list[float]])
    failed: dict[str, None] = field(default_factory=dict[str, None])
    examples: int = 0
    workers: int = 1


def time_left(costs: Mapping[Kind, Sequence[float]], to_come: Iterable[Job], workers: int) -> tuple[float, bool] | None:
    """Seconds until the last test ends, and whether a test of every kind to come was seen.

    A kind that was not seen is taken to cost what the median test did. Small worlds run first and larger ones cost
    more, so the result is then rather too low. None while nothing was seen.
    """
    if not costs:
        return None
    known = {kind: median(seconds) for kind, seconds in costs.items()}
    other = median([cost for seconds in costs.values() for cost in seconds])
    counts = Counter(job.kind for job in to_come)
    seconds = sum(n * known.get(kind, other) for kind, n in counts.items())
    return seconds / max(workers, 1), all(kind in known for kind in counts)


def line(state: State, elapsed: float) -> str:
    """All there is to say, what matters most first; `elapsed` is in seconds."""
    done = state.total - len(state.to_come)
    said = [f"{state.name}: {done} of {state.total} items", f"{state.examples} examples"]
    if state.examples and elapsed > 0:
        rate = state.examples / elapsed
        said[-1] += f", {rate:.{0 if rate >= 10 else 1}f}/s"
    if state.failed:
        said.append(f"{len(state.failed)} failed")
    left = time_left(state.costs, state.to_come.values(), state.workers)
    if left and state.to_come:
        seconds, all_seen = left
        said.append(f"{'about' if all_seen else 'at least'} {_rounded(seconds)} left")
    return "; ".join([", ".join(said), *_running(state.running.values())])


def _running(jobs: Iterable[Job]) -> list[str]:
    by_world: dict[int, list[str]] = {}
    for job in jobs:
        by_world.setdefault(job.world, []).append(job.label)
    return [(f"world {world}: " if world else "") + ", ".join(labels) for world, labels in sorted(by_world.items())]


def _rounded(seconds: float) -> str:
    if seconds < 55:
        return f"{max(round(seconds, -1), 10):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A pytest plugin that says where the run is; in an xdist worker it says nothing."""

    def __init__(self, config: pytest.Config, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = State(name)
        self._config, self._clock = config, clock
        self._began = self._spoke = 0.0
        self._live = False
        self._workers = set[str]()

    @property
    def _terminal(self) -> Any:
        return self._config.pluginmanager.getplugin("terminalreporter")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        if not self.state.total:
            self._begin(ids)
        self._workers.add(node.gateway.id)
        self.state.workers = len(self._workers)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._workers.discard(node.gateway.id)
        self.state.workers = max(len(self._workers), 1)

    def _begin(self, ids: Sequence[str]) -> None:
        self.state.total, self.state.to_come = len(ids), {nodeid: job_of(nodeid) for nodeid in ids}
        self._began = self._spoke = self._clock()
        terminal = self._terminal
        if terminal is not None and ids and not self._config.option.collectonly:
            quiet = self._config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) <= 0
            rewrites = terminal.isatty() and os.environ.get("TERM") != "dumb"
            self._live = quiet and rewrites and all(map(name_of, ids))
        if self._live:
            terminal.showfspath = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self.state.running.clear()
            self._rewrite()
            self._live = False

    @pytest.hookimpl(tryfirst=True)  # before pytest begins a line about the test
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.state.running[nodeid] = job_of(nodeid)
        self._show()

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Any, Any]:
        """No dots where the line is; they count as ever, and what pytest says at the end is as ever."""
        status = yield
        return (status[0], "", "") if self._live else status

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = getattr(report, "found", None)
        if found:
            self.state.examples += sum(n for _, n in found["tally"]["examples"])
        if report.when == "call":
            self.state.costs.setdefault(job_of(report.nodeid).kind, []).append(report.duration)
        if report.failed and report.nodeid not in self.state.failed:
            self.state.failed[report.nodeid] = None
            if self._live:
                self._terminal.rewrite(f"FAILED {name_of(report.nodeid)}", erase=True)
                self._terminal.line("")
                self._rewrite()
        if report.when not in ("setup", "call", "teardown"):  # of a worker that died
            self._end(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._end(nodeid)

    def _end(self, nodeid: str) -> None:
        self.state.running.pop(nodeid, None)
        self.state.to_come.pop(nodeid, None)
        self._rewrite()

    def _show(self) -> None:
        """The line, if it is time for one."""
        if self._live:
            self._rewrite()
        elif self._terminal is not None and self._clock() - self._spoke >= EVERY:
            self._spoke = self._clock()
            if self._config.get_terminal_writer().width_of_current_line:
                self._terminal.line("")
            self._terminal.currentfspath = None
            self._terminal.write_line(self._line())
            self._terminal.flush()

    def _rewrite(self) -> None:
        if self._live:
            text, width = self._line(), self._config.get_terminal_writer().fullwidth - 1
            self._terminal.rewrite(text if len(text) <= width else text[: width - 3] + "...", erase=True)
            self._terminal.currentfspath = -2  # so that whoever writes a line next begins one
            self._terminal.flush()

    def _line(self) -> str:
        return line(self.state, self._clock() - self._began)
