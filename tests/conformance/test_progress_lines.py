"""What a run says of where it is: the text from a state, and when and where it is written."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.reporting.session.progress import EVERY, Job, Progress, State, job_of, line, time_left

ROOT = Path(__file__).parents[2]
FILE = "conformance/test_conformance.py"
ONE, TWO = Job(("run", 1), "run row float32", 1), Job(("run", 2), "run row float32", 2)
TWICE = Job(("twice", 2), "twice row float32", 2)
MUTANT = f"{ROOT / 'tests/mutants/bias.py'}:BiasDividedBeforeReduction"


@pytest.mark.parametrize(
    ("test", "job"),
    [
        ("test_conforms[run-row-P2-float32]", Job(("run", 2), "run row float32", 2)),
        ("test_conforms[run-row-P2of4-float32]", Job(("run", 4), "run row float32", 4)),
        ("test_conforms[no-grad-column-P1-float32]", Job(("no-grad", 1), "no-grad column float32", 1)),
        ("test_conforms[run-row-P1-autocast-float16]", Job(("run", 1), "run row float16", 1)),
        ("test_compiles[compile-copy-P2-float32]", Job(("compile", 2), "compile copy float32", 2)),
        ("test_conforms_small[run-row-P2-float32]", Job(("small run", 2), "small run row float32", 2)),
        (
            "test_known_deviation_is_still_there[row.weight.shard-0]",
            Job(("known", 0), "known row.weight.shard-0", 0),
        ),
    ],
)
def test_an_item_is_known_by_its_name(test: str, job: Job) -> None:
    assert job_of(f"{FILE}::{test}") == job


def test_a_test_that_is_not_the_suite_s_is_called_by_its_name() -> None:
    assert job_of("tests/test_other.py::test_it[a-1]") == Job(("", 0), "test_it[a-1]", 0)


def test_time_left_is_the_median_of_each_kind_divided_by_the_workers() -> None:
    costs = {ONE.kind: [1.0, 2.0, 90.0], TWO.kind: [10.0]}

    assert time_left(costs, [ONE, ONE, TWO], 2) == ((2 * 2.0 + 10.0) / 2, True)


def test_a_kind_that_was_not_seen_is_taken_for_a_median_one_and_the_sum_for_a_lower_bound() -> None:
    costs = {ONE.kind: [1.0, 3.0], TWO.kind: [8.0]}

    assert time_left(costs, [TWICE], 1) == (3.0, False)


def test_there_is_no_time_left_to_tell_before_a_test_has_ended() -> None:
    assert time_left({}, [ONE, TWO], 2) is None


def test_the_line_says_nothing_of_what_is_not_known_yet() -> None:
    state = State("mine", 2, {"a": ONE, "b": TWO}, {"a": ONE})

    assert line(state, 0.0) == "mine: 0 of 2 items, 0 examples; world 1: run row float32"


def test_the_line_says_all_there_is_world_by_world() -> None:
    state = State(
        "mine",
        10,
        {"a": TWO, "b": ONE, "c": TWICE},
        {"a": TWO, "b": ONE, "c": TWICE},
        {ONE.kind: [20.0], TWO.kind: [100.0], TWICE.kind: [300.0]},
        {"d": None},
        350,
        2,
    )

    assert line(state, 5.0) == (
        "mine: 7 of 10 items, 350 examples, 70/s, 1 failed, about 4 min left; world 1: run row float32;"
        " world 2: run row float32, twice row float32"
    )


def test_the_line_of_a_run_that_has_ended_says_nothing_of_time() -> None:
    assert line(State("mine", 1, costs={ONE.kind: [1.0]}, examples=25), 5.0) == "mine: 1 of 1 items, 25 examples, 5.0/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "10 s"), (44.0, "40 s"), (59.0, "1 min"), (61.0, "1 min"), (3599.0, "1 h 0 min"), (5000.0, "1 h 23 min")],
)
def test_time_is_told_no_finer_than_it_is_known(seconds: float, text: str) -> None:
    assert f"about {text} left" in line(State("mine", 1, {"a": ONE}, costs={ONE.kind: [seconds]}), 1.0)


class Terminal:
    """pytest's terminal reporter, as far as progress uses it; what it is told stands in `text`."""

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal, self.text, self.showfspath, self.currentfspath = is_terminal, "", True, None

    def isatty(self) -> bool:
        return self.is_terminal

    def line(self, text: str) -> None:
        self.text += f"{text}\n"

    write_line = line

    def rewrite(self, text: str, erase: bool) -> None:
        assert erase
        self.text += f"\r{text}"

    def flush(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(terminal: Terminal | None, clock: Clock, width: int = 60, verbose: int = 0, column: int = 0) -> Progress:
    writer = SimpleNamespace(fullwidth=width, width_of_current_line=column)
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(getplugin=lambda _: terminal),
        option=SimpleNamespace(collectonly=False),
        get_verbosity=lambda _: verbose,
        get_terminal_writer=lambda: writer,
    )
    return Progress(config, "mine", clock)


IDS = [f"{FILE}::test_conforms[run-row-P{P}-float32]" for P in (1, 2, 4)]


def collect(made: Progress, ids: list[str]) -> None:
    session: Any = SimpleNamespace(items=[SimpleNamespace(nodeid=nodeid) for nodeid in ids])
    made.pytest_collection_finish(session)


def run(made: Progress, nodeid: str, outcome: str = "passed", when: str = "call") -> None:
    found = {"tally": {"examples": [[1, 20], [2, 5]]}}
    report: Any = SimpleNamespace(nodeid=nodeid, when=when, duration=2.0, failed=outcome == "failed", found=found)
    made.pytest_runtest_logreport(report)


def test_elsewhere_a_line_is_said_when_half_a_minute_has_passed_and_not_before() -> None:
    terminal, clock = Terminal(False), Clock()
    made = progress(terminal, clock, column=5)
    collect(made, IDS)
    made.pytest_runtest_logstart(IDS[0])
    run(made, IDS[0])
    made.pytest_runtest_logfinish(IDS[0])
    clock.now = EVERY - 1
    made.pytest_runtest_logstart(IDS[1])
    assert terminal.text == ""
    clock.now = EVERY
    made.pytest_runtest_logstart(IDS[2])

    # On a line of its own: pytest had written something on this one.
    assert terminal.text == (
        "\nmine: 1 of 3 items, 25 examples, 0.8/s, at least 10 s left;"
        " world 2: run row float32; world 4: run row float32\n"
    )
    assert terminal.showfspath
    clock.now = 2 * EVERY - 1
    made.pytest_runtest_logstart(IDS[2])
    assert terminal.text.count("mine: ") == 1


def test_on_a_terminal_one_line_is_written_over_itself_and_never_wraps() -> None:
    terminal = Terminal(True)
    made = progress(terminal, Clock(), width=50)
    collect(made, IDS)
    for nodeid in IDS:
        made.pytest_runtest_logstart(nodeid)
    run(made, IDS[0])
    made.pytest_runtest_logfinish(IDS[0])

    assert "\n" not in terminal.text
    assert not terminal.showfspath
    lines = terminal.text.split("\r")[1:]
    assert lines[0] == "mine: 0 of 3 items, 0 examples; world 1: run r..."
    assert lines[-1] == "mine: 1 of 3 items, 25 examples, at least 10 s..."
    assert {len(text) for text in lines} == {49}


def test_on_a_terminal_a_failed_test_leaves_one_line_above() -> None:
    terminal = Terminal(True)
    made = progress(terminal, Clock())
    collect(made, IDS)
    run(made, IDS[0], "failed")
    run(made, IDS[0], "failed", "teardown")

    assert terminal.text.startswith("\rFAILED run-row-P1-float32\n\rmine: 0 of 3 items, 25 examples, 1 failed, ")
    assert terminal.text.count("FAILED") == 1


@pytest.mark.parametrize("when", ["call", "???"])
def test_a_test_whose_worker_died_has_ended_with_its_report(when: str) -> None:
    made = progress(Terminal(True), Clock())
    collect(made, IDS)
    run(made, IDS[0], "failed", when)

    assert (IDS[0] not in made.state.to_come) == (when == "???")


@pytest.mark.parametrize(
    ("is_terminal", "verbose", "ids", "live"),
    [
        (True, 0, IDS, True),
        (True, -1, IDS, True),
        (True, 1, IDS, False),
        (False, 0, IDS, False),
        (True, 0, [*IDS, "tests/test_other.py::test_it"], False),
    ],
)
def test_dots_make_way_where_the_line_is_and_nowhere_else(
    is_terminal: bool, verbose: int, ids: list[str], live: bool
) -> None:
    made = progress(Terminal(is_terminal), Clock(), verbose=verbose)
    collect(made, ids)
    hook = made.pytest_report_teststatus()
    next(hook)
    with pytest.raises(StopIteration) as told:
        hook.send(("passed", ".", "PASSED"))

    assert told.value.value == (("passed", "", "") if live else ("passed", ".", "PASSED"))


def test_nothing_is_said_where_pytest_has_no_terminal() -> None:
    clock = Clock()
    made = progress(None, clock)
    collect(made, IDS)
    clock.now = 2 * EVERY
    made.pytest_runtest_logstart(IDS[0])
    run(made, IDS[0], "failed")
    made.pytest_runtest_logfinish(IDS[0])

    assert made.state.failed == {IDS[0]: None}


def test_workers_are_those_that_collected_and_did_not_end() -> None:
    made = progress(Terminal(False), Clock())
    nodes: list[Any] = [SimpleNamespace(gateway=SimpleNamespace(id=name)) for name in ("gw0", "gw1")]
    for node in nodes:
        made.pytest_xdist_node_collection_finished(node, IDS)
    assert (made.state.total, made.state.workers) == (3, 2)
    for node in nodes:
        made.pytest_testnodedown(node)

    assert made.state.workers == 1


def on_a_terminal(where: Path, *args: str) -> str:
    """What `pytest conformance` with these arguments writes to a terminal."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance"), *args]
    environment = os.environ | {
        "CI": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TERM": "xterm",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(command, cwd=where, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(mine, 4096):
                said += piece
        except OSError:  # Linux's word for the end of a terminal
            pass
        process.wait()
    os.close(mine)
    return said.decode()


def test_a_run_on_a_terminal_shows_the_line_in_place_of_dots(tmp_path: Path) -> None:
    said = on_a_terminal(tmp_path, "--impl", "numpy", "-k", "run-copy-P1-float32 or run-copy-P2-float32")

    assert re.search(r"\rnumpy: 0 of 2 items, 0 examples; world 1: run copy float32 +\r", said)
    assert re.search(r"\rnumpy: 2 of 2 items, 50 examples, [\d.]+/s *\r\n=", said)
    assert "2 passed" in said
    assert not re.search(r"^\S*test_conformance.py [.F]", said, re.M)


def test_the_line_tells_of_all_workers_and_leaves_what_failed_as_it_was(tmp_path: Path) -> None:
    chosen = "run-row-P1-float32 or run-row-P2-float32"
    said = on_a_terminal(tmp_path, "--impl", MUTANT, "-n", "2", "-k", chosen, "--world-sizes", "1,2")

    assert re.search(r"\rtorch_tp: 0 of 2 items, 0 examples; world 1: run row float32; world 2: run row float32 ", said)
    assert re.search(r"\rFAILED run-row-P2-float32 +\r\n", said)
    assert re.search(r"\rtorch_tp: 2 of 2 items, \d+ examples, [\d.]+/s, 1 failed *\r\n", said)
    assert re.search(r"^FAILED \S*test_conformance.py::test_conforms\[run-row-P2-float32\]", said, re.M)
    assert "row.backward.bias-grad (MUST): " in said
    assert "1 failed, 1 passed" in said
