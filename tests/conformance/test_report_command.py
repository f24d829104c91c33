"""`pytest conformance --report FOLDER`, in processes of its own: what it writes, also when it is cut short."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FAULTY = f"{HERE / 'faulty.py'}:BiasBeforeReduction"
COPY = ("--impl", "numpy", "-k", "run-copy", "--world-sizes", "1,2")
ROW = "run-row-P2-float32"
KNOWN = """
[[deviation]]
clause = "row.forward.bias-once"
case = "row P=2 batch=1 in=2 out=2 float32 bias values=small seed=0"
reason = "every rank adds the bias"
link = "https://example.org/thread"

[[deviation]]
clause = "row.forward.value"
case = "row P=4 batch=1 in=4 out=2 float32 bias seed=0"
reason = "every rank adds the bias"
"""


def conformance(where: Path, *args: str, **environment: str) -> CompletedProcess[str]:
    """`python -m pytest conformance` with these arguments, the same examples each time."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "-p", "no:cacheprovider", *args],
        cwd=where,
        env=os.environ | {"CI": "1", "PYTHONPATH": f"{where}{os.pathsep}{HERE}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_in(folder: Path) -> Any:
    """The only run of the report in a folder."""
    report = json.loads((folder / "report.json").read_text())
    assert report["format"] == 1
    (run,) = report["runs"]
    return run


def properties(element: ElementTree.Element) -> list[tuple[str, str]]:
    found = element.find("properties")
    return [(entry.get("name", ""), entry.get("value", "")) for entry in (found if found is not None else ())]


def keys(count: dict[str, Any]) -> tuple[Any, ...]:
    return count["clause"], count["world"], count["layer"]


def test_a_report_is_the_same_with_and_without_workers(tmp_path: Path) -> None:
    alone = conformance(tmp_path, *COPY, "--report", "alone")
    shared = conformance(tmp_path, *COPY, "--report", "shared", "-n", "2")
    one, two = run_in(tmp_path / "alone"), run_in(tmp_path / "shared")

    assert (alone.returncode, shared.returncode) == (0, 0), alone.stdout + shared.stdout
    assert [keys(n) for n in one["counts"]] == [keys(n) for n in two["counts"]]
    for run in (one, two):
        alive = {n["world"]: n["judged"] for n in run["counts"] if n["clause"] == "ranks.alive"}
        assert alive == {1: 100, 2: 100}
    assert one["examples"] == two["examples"] == {"1": 100, "2": 100}
    assert sorted(one["items"]["names"]) == sorted(two["items"]["names"])
    assert (two["items"]["collected"], two["items"]["ran"], two["items"]["left"]) == (8, 8, [])
    for run in (one, two):
        assert not run["complete"]
        assert run["missing"] == [
            "world size 1: 4 of 145 items were run",
            "world size 2: 4 of 174 items were run",
            "world size 4 was not run: not in --world-sizes",
            "the reason: -k 'run-copy'",
        ]
    for folder in ("alone", "shared"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["index.html", "junit.xml", "report.json"]
    assert re.search(r"^report written to .*/alone/index\.html$", alone.stdout, re.MULTILINE)


def test_a_failure_is_in_the_report_as_the_terminal_shows_it_and_in_the_junit_file(tmp_path: Path) -> None:
    args = ("-k", "run-column-P2-float32", "--report", "out", "--junitxml", "own.xml", "-n", "1")
    done = conformance(tmp_path, "--impl", f"{HERE / 'planted.py'}:Unreduced", *args)
    run, item = run_in(tmp_path / "out"), "run-column-P2-float32"
    failure = next(found for found in run["failures"] if found["clause"] == "column.backward.input-grad-reduced")
    told = properties(next(ElementTree.parse(tmp_path / "own.xml").iter("testcase")))
    whole = dict(properties(next(ElementTree.parse(tmp_path / "own.xml").iter("testsuite"))))

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert run["implementation"]["impl"] == "planted.py:Unreduced"
    assert (failure["item"], failure["world"]) == (item, 2)
    shown = re.sub(r"^E +", "", done.stdout, flags=re.MULTILINE)
    for line in failure["text"].strip().splitlines():
        assert line.strip() in shown
    assert failure["diagnosis"]["looks"][0].startswith("gradient of x: consistent with ")
    assert failure["evidence"]["tensors"]
    (count,) = (n for n in run["counts"] if n["clause"] == failure["clause"])
    assert count["judged"] >= count["broken"] == count["blamed"] > 0

    assert {name: text for name, text in told if name in ("implementation", "world_size", "layer", "procedure")} == {
        "implementation": "numpy",
        "world_size": "2",
        "layer": "column",
        "procedure": "run",
    }
    assert "column.forward.value" in dict(told)["clauses_judged"].split()
    assert told.index(("case", failure["case"])) == told.index(("failing_clause", failure["clause"])) + 1
    assert (whole["implementation"], whole["world_sizes"]) == ("numpy", "1,2,4")
    assert whole["version_numpy"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.json"]


def test_known_deviations_are_in_the_report_and_those_of_other_worlds_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(KNOWN)
    done = conformance(
        tmp_path, "--impl", FAULTY, "--known", "known.toml", "-k", "known", "--world-sizes", "2", "--report", "out"
    )
    (failure,) = run_in(tmp_path / "out")["failures"]

    assert (failure["clause"], failure["item"]) == ("row.forward.bias-once", "known row.forward.bias-once-0")
    assert failure["known"] == {
        "reason": "every rank adds the bias",
        "link": "https://example.org/thread",
        "machine": "",
    }
    assert failure["diagnosis"]["looks"] == ["output: consistent with a bias that is counted 2 times"]
    assert failure["evidence"]["tensors"]
    line = "row.forward.value (row P=4 batch=1 in=4 out=2 float32 bias seed=0): world size 4: not in --world-sizes"
    assert f"not run: known deviation from {line}" in done.stdout
    assert "  known deviations: 2, known.toml" in done.stdout


# Cut short

KILLS = """
import os, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    if "run-copy-P2-float64" in item.name:
        {end}
"""


def cut(tmp_path: Path, end: str, *args: str) -> tuple[CompletedProcess[str], Any]:
    (tmp_path / "ends.py").write_text(KILLS.format(end=end))
    done = conformance(tmp_path, "-p", "ends", *COPY, "--report", "out", *args)
    return done, run_in(tmp_path / "out")


def test_an_interrupted_run_says_how_far_it_came(tmp_path: Path) -> None:
    done, run = cut(tmp_path, "raise KeyboardInterrupt")

    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert not run["complete"]
    assert 0 < run["items"]["ran"] < run["items"]["collected"] == 8
    assert "run-copy-P2-float64" in run["items"]["left"]
    assert f"{run['items']['ran']} of 8 items that were to be run told what they found" in run["missing"]
    assert "the reason: interrupted" in run["missing"]
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_worker_that_is_killed_loses_its_own_item_alone(tmp_path: Path) -> None:
    done, run = cut(tmp_path, "os._exit(3)", "-n", "1")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert run["items"]["left"] == ["run-copy-P2-float64"]
    assert "7 of 8 items that were to be run told what they found" in run["missing"]
    assert "the reason: run-copy-P2-float64 told nothing: the process that ran it ended" in run["missing"]
    assert run["examples"] == {"1": 100, "2": 75}


def test_a_run_that_stops_at_its_first_failure_says_so(tmp_path: Path) -> None:
    done = conformance(tmp_path, "--impl", FAULTY, "-k", "run-row", "--world-sizes", "2", "-x", "--report", "out")
    run = run_in(tmp_path / "out")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert len(run["items"]["left"]) == run["items"]["collected"] - run["items"]["ran"] > 0
    assert "the reason: stopping after 1 failures" in run["missing"]


def test_a_run_that_is_killed_leaves_no_report_of_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.json", "index.html", "notes.txt"):
        (out / name).write_text("of an earlier run")
    (tmp_path / "ends.py").write_text(KILLS.format(end="os._exit(3)"))
    done = conformance(tmp_path, "-p", "ends", *COPY, "--report", "out")

    assert done.returncode == 3
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


# Compared with committed results


def test_a_run_fails_where_its_verdicts_are_not_the_committed_ones(tmp_path: Path) -> None:
    results = ROOT / "conformance" / "results"
    done = conformance(tmp_path, "-k", "run-copy-P1-float32", "--world-sizes", "1", "--check-results", str(results))

    assert "1 passed" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "copy.forward at world size 2: pass in torch_tp.json, nothing in this run" in done.stdout
    assert "this run is not complete: world size 2 was not run: not in --world-sizes" in done.stdout
    assert "copy.forward at world size 1: " not in done.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--report", "file"], "--report file: this is a file; give a folder, which is made if it is not there"),
        (["--check-results", "nowhere"], "--check-results nowhere: there is no such folder"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(args: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = conformance(tmp_path, *COPY, *args)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said == [f"ERROR: {sentence.format(tmp=tmp_path)}"]
