"""The suite's command line, in a process of its own, from an empty directory."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OWN = HERE / "adapters_for_tests.py"
MUTANTS = HERE.parent / "mutants"
ROW = "run-row-P2-float32"
DEVIATION = """
[[deviation]]
clause = "row.backward.bias-grad"
when = { layer = "row", bias = true }
case = "row P=2 batch=1 in=2 out=1 float32 bias seed=0"
reason = "the bias is divided before the sum"
"""


def conformance(where: Path, *args: str, **environment: str) -> CompletedProcess[str]:
    """`python -m pytest conformance` with these arguments, the same examples each time, where no GPU is seen."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "conformance"), *args],
        cwd=where,
        env=os.environ | {"CI": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--impl", "unheard_of"], "--impl unheard_of: unknown; it is one of torch_tp, dtensor, "),
        (["--impl", "nowhere.py:Mine"], "nowhere.py: there is no such file"),
        (["--impl", "mine.py"], "--impl mine.py: which class of the file? --impl mine.py:Class"),
        (["--impl", f"{OWN}:Misspelt"], "Misspelt.layers has collumn; it may have column, row, merged, qkv, pair"),
        (["--impl", f"{OWN}:NoSuch"], "has no class NoSuch"),
        (["--impl", f"{OWN}:WithoutMethods"], "WithoutMethods has no method declare, declines, open; derive it from"),
        (["--impl", f"{OWN}:NotMade"], "NotMade() raised OSError: the checkpoint is not there"),
        (["--impl", "broken.py:Mine"], "importing broken.py raised ModuleNotFoundError: No module named 'not_there'"),
        (["--impl", "not_there.adapters:Mine"], "raised ModuleNotFoundError: No module named 'not_there'"),
        (["--world-sizes", "2,3"], "--world-sizes 2,3: give some of 1, 2, 4, separated by commas"),
        (["--world-sizes", ""], "--world-sizes : give some of 1, 2, 4, separated by commas"),
        (["--clause", "row.sideways"], "--clause row.sideways: no clause begins so"),
        (["--known", "nowhere.toml"], "--known nowhere.toml: "),
        (["--backend", "nccl"], "--backend nccl needs --device cuda"),
        (["--backend", "nccl", "--device", "cuda"], "torch sees no GPU here"),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(HERE), "") if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_refused_in_one_sentence(args: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import not_there\n")
    done = conformance(tmp_path, *args, "-k", ROW)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert len(said) == 1, "\n".join(said)
    assert said[0].startswith("ERROR: ")
    assert sentence in said[0]


def test_the_header_says_what_was_examined_with_what(tmp_path: Path) -> None:
    done = conformance(tmp_path, "-k", ROW)

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"^conformance of torch_tp \(torch \S+, python \S+, numpy \S+\)$", done.stdout, re.M)
    assert "ranks: world sizes 1, 2, 4, backend gloo, device cpu" in done.stdout
    assert re.search(r"numerics: .*float32_matmul_precision=highest.*tf32=False", done.stdout)
    assert "examples: profile ci, seed 0; " in done.stdout


def test_a_planted_bug_fails_the_run_and_its_clause_in_the_table(tmp_path: Path) -> None:
    done = conformance(tmp_path, "--impl", f"{MUTANTS / 'bias.py'}:BiasDividedBeforeReduction", "-k", ROW)

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^row\.backward\.bias-grad +- +FAIL [1-9]\d*/[1-9]\d* +-$", done.stdout, re.M), done.stdout
    assert not re.search(r"^row\.forward\.value .*FAIL", done.stdout, re.M)
    assert "row.backward.bias-grad (MUST): Row: the bias gradient is whole and equal on every rank" in done.stdout


def test_an_adapter_of_thirty_lines_passes(tmp_path: Path) -> None:
    """The documentation's minimal adapter, by a relative path; what it lacks is unsupported, with the reason."""
    (tmp_path / "mine.py").write_text(OWN.read_text())
    chosen = (
        "run-column-P1-float32 or run-column-P2-float32 or run-row-P1-float32 or run-row-P2- or run-copy-P2-float32"
    )
    done = conformance(tmp_path, "--impl", "mine.py:Mine", "-k", chosen)

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "conformance of Mine (torch " in done.stdout
    assert re.search(r"^row\.forward\.bias-once +\d+ +\d+ +-$", done.stdout, re.M)
    assert re.search(r"^column\.backward\.input-grad-reduced +\d+ +\d+ +-$", done.stdout, re.M)
    assert re.search(r"^unsupported: row at world size 2, \d+ examples: has no reduce_output$", done.stdout, re.M)
    assert re.search(r"^unsupported: copy at world size 2, \d+ examples: has no copy$", done.stdout, re.M)


def test_an_adapter_may_be_a_module_beside_the_caller(tmp_path: Path) -> None:
    (tmp_path / "mine_alone.py").write_text(OWN.read_text())
    done = conformance(tmp_path, "--impl", "mine_alone:Mine", "-k", ROW, "--world-sizes", "2")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "not run: world size 1: not in --world-sizes" in done.stdout
    assert "not run: world size 4: not in --world-sizes" in done.stdout


def test_clause_leaves_the_others_out(tmp_path: Path) -> None:
    """A bug in a gradient is no matter of the forward's clauses; that ranks answer always is one."""
    planted = f"{MUTANTS / 'bias.py'}:BiasDividedBeforeReduction"
    done = conformance(tmp_path, "--impl", planted, "-k", ROW, "--clause", "row.forward", "--clause", "forward")
    table = re.findall(r"^([a-z-]+\.[a-z.-]+) +-? ", done.stdout, re.M)

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert table
    assert all(name.startswith(("ranks", "row.forward", "forward")) for name in table)
    assert "not run: clauses that do not begin with row.forward or forward: --clause" in done.stdout


def test_a_known_deviation_does_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION)
    planted = f"{MUTANTS / 'bias.py'}:BiasDividedBeforeReduction"
    done = conformance(tmp_path, "--impl", planted, "--known", "known.toml", "-k", f"{ROW} or known")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "2 passed" in done.stdout
    assert re.search(r"^row\.backward\.bias-grad +- +known [1-9]\d*/[1-9]\d* +-$", done.stdout, re.M), done.stdout


def test_a_known_deviation_that_is_gone_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION)
    done = conformance(tmp_path, "--known", "known.toml", "-k", "known")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "does not break row.backward.bias-grad any more: take the entry out" in done.stdout


@pytest.mark.parametrize("planted", [True, False])
def test_a_known_deviation_that_depends_on_the_machine_passes_and_the_report_says_which(
    planted: bool, tmp_path: Path
) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION + 'machine = "which kernel is called"\n')
    which = ["--impl", f"{MUTANTS / 'bias.py'}:BiasDividedBeforeReduction"] if planted else []
    done = conformance(tmp_path, *which, "--known", "known.toml", "-k", "known", "-n", "1", "--report", "out")
    (sighting,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]["sightings"]

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    line = (
        f"depends on the machine, {'seen' if planted else 'not seen'} in this run: row.backward.bias-grad"
        " (row P=2 batch=1 in=2 out=1 float32 bias seed=0): which kernel is called"
    )
    assert line in done.stdout.splitlines()
    assert (sighting["seen"], sighting["item"]) == (planted, "known row.backward.bias-grad-0")
    assert line in (tmp_path / "out" / "index.html").read_text()


def test_a_failure_that_does_not_come_back_fails_the_run(tmp_path: Path) -> None:
    planted = f"{HERE / 'losing_ranks.py'}:DiesOnce"
    done = conformance(tmp_path, "--impl", planted, "-k", ROW, PLANTED_FLAG=str(tmp_path / "flag"))

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "a failure of ranks did not come back on fresh ranks" in done.stdout
    assert re.search(r"^intermittent \(fails the run\): row P=2 ", done.stdout, re.M)


def test_the_suite_runs_without_a_cache(tmp_path: Path) -> None:
    done = conformance(tmp_path, "-k", ROW, "-p", "no:cacheprovider")

    assert done.returncode == pytest.ExitCode.OK, done.stdout


def test_items_that_are_alike_draw_other_cases_from_one_seed_and_the_same_ones_again(tmp_path: Path) -> None:
    def visited() -> dict[str, list[str]]:
        chosen = "run-copy-P1-float32 or run-copy-P1-float64"
        conformance(tmp_path, "--impl", "numpy", "-k", chosen, "--hypothesis-seed", "1", "--cells", "cells.csv")
        rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
        dtypes = ("float32", "float64")
        axes = ("flags", "batch_rank", "x", "g", "examples")
        seen = [row for row in rows if row["examples"] != "0"]
        return {dtype: [" ".join(row[a] for a in axes) for row in seen if row["dtype"] == dtype] for dtype in dtypes}

    first = visited()
    assert first == visited()
    assert first["float32"] != first["float64"]


def test_what_failed_comes_first_the_next_time(tmp_path: Path) -> None:
    planted = f"{MUTANTS / 'bias.py'}:BiasDividedBeforeReduction"
    examples = []
    for _ in range(2):
        done = conformance(
            tmp_path, "--impl", planted, "-k", ROW, "--hypothesis-profile", "quick", "--hypothesis-seed", "1"
        )
        total = re.search(r"^examples .* (\d+) in all$", done.stdout, re.MULTILINE)
        assert total
        assert done.returncode == pytest.ExitCode.TESTS_FAILED
        examples.append(int(total[1]))

    assert examples[1] < examples[0]


def test_a_run_that_judges_nothing_does_not_pass(tmp_path: Path) -> None:
    done = conformance(tmp_path, "--impl", f"{OWN}:DeclinesAll", "-k", ROW)

    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "nothing was judged: the implementation has none of the cases that were asked for" in done.stdout
