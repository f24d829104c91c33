"""What a run has visited, in a few lines and as a file: what is empty is seen."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from conformance.coverage.cells import cell_of, reachable
from conformance.coverage.summary import COLUMNS, summary, write_cells
from conformance.items import Item
from conformance.tally import Tally
from spec import REGISTER, Case

ROOT = Path(__file__).parents[2]
ITEMS = [Item("run", "row", 2, "float32"), Item("no-grad", "copy", 1, "float64")]
ROW = Case.parse("row P=2 batch=2x3 in=4 out=2 float32 bias x=transposed frozen=w seed=7")
COPY = Case.parse("copy P=1 batch=none in=4 float64 procedure=no-grad seed=7")
FOREIGN = Case.parse("gather P=4 batch=3 in=4 bfloat16 seed=7")


def visited(*cases: Case) -> Tally:
    tally = Tally()
    for case in cases:
        tally.count(case, ["ranks.alive"], frozenset(), [])
    return tally


def line_of(lines: Sequence[str], label: str) -> str:
    return next(line for line in lines if line.strip().startswith(label))


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("world", "2: 2, 1: 1"),
        ("dtype", "float32: 2, float64: 1"),
        ("layer", "row: 2, copy: 1"),
        ("procedure", "run: 2, no-grad: 1"),
        ("batch rank", "0: 1, 1: 0, 2: 2, 3: 0, 4: 0"),
        ("layout of x", "contiguous: 1, transposed: 2, strided: 0, offset: 0, expanded: 0"),
        ("layout of g", "contiguous: 2, transposed: 0, strided: 0, offset: 0, none: 1, expanded: 0"),
    ],
)
def test_every_value_of_an_axis_is_listed_with_its_examples_and_zero_is_said(axis: str, expected: str) -> None:
    lines = summary(visited(ROW, ROW, COPY), ITEMS)
    assert line_of(lines, axis).split(axis)[1].strip() == expected


def test_every_word_of_the_flags_is_counted_by_itself() -> None:
    lines = summary(visited(ROW, ROW, COPY), ITEMS)
    flags = " ".join(line.strip() for line in lines[lines.index(line_of(lines, "flags")) :][:3])
    for entry in ("none: 1,", "bias: 2,", "frozen=w: 2,", "skip_bias_add: 0,", "input_is_parallel=False: 0,"):
        assert entry in flags


def test_the_cells_visited_are_counted_against_those_there_are() -> None:
    there = sum(len(list(reachable(item))) for item in ITEMS)
    lines = summary(visited(ROW, ROW, COPY), ITEMS)
    assert f"2 of {there} cells were visited; --cells FILE writes them all, the empty ones too" in lines


def test_a_cell_that_no_item_reaches_is_no_part_of_what_was_to_be_visited() -> None:
    lines = summary(visited(ROW, FOREIGN), ITEMS)
    assert " cells were visited, and 1 others; " in line_of(lines, "1 of")


def test_pairs_that_never_came_together_are_counted_and_the_first_named() -> None:
    """Only such pairs as can: copy has no bias. Those of values that did come up stand first."""
    bias = Case.parse("row P=2 batch=3 in=4 out=2 float32 bias seed=7")
    deep = Case.parse("row P=2 batch=3x1 in=4 out=2 float32 skip_bias_add seed=7")
    (line,) = [line for line in summary(visited(bias, deep), ITEMS) if "never visited together" in line]
    there = {pair for item in ITEMS for cell in reachable(item) for pair in combinations(cell.fixed + cell.varied, 2)}
    met = {pair for case in (bias, deep) for pair in combinations(cell_of(case).fixed + cell_of(case).varied, 2)}

    assert line.startswith(
        f"{len(there - met)} of {len(there)} pairs of values were never visited together: batch rank"
    )
    assert line.endswith(": batch rank 1 + skip_bias_add, bias + skip_bias_add,")


def test_a_run_that_met_every_pair_has_none_to_name() -> None:
    shapes = ("batch=3 in=4", "batch=2x3 in=4", "batch=2x3x1 in=4", "batch=2x1x1x1 in=4", "batch=none in=4")
    layouts = ("contiguous", "transposed", "strided", "offset", "expanded")
    cases = [Case.parse(f"copy P=1 {a} float64 x={x} procedure=no-grad seed=0") for a in shapes for x in layouts]
    (line,) = [line for line in summary(visited(*cases), ITEMS[1:]) if "never visited together" in line]

    assert line.startswith("0 of ")
    assert line.endswith(" pairs of values were never visited together")


def test_the_bound_is_reported_with_its_condition_and_where_it_is_weakest() -> None:
    half = Case.parse("copy P=2 batch=none in=1 bfloat16 seed=7")
    autocast = Case.parse("row P=1 batch=none in=1 out=1 float32 autocast=bfloat16 seed=7")
    hopeless = Case.parse("row P=1 batch=none in=6 out=28 float32 autocast=float16 seed=7")
    lines = summary(visited(half, autocast, hopeless), ITEMS)
    text = " ".join(line.strip() for line in lines)

    assert "misses a fault that is polynomial, of degree two at most, and shows in the example's shape, flags" in text
    assert "a power of it only over independent draws at equal shape and flags" in text
    assert "Nothing is said of other faults, of pairs and of real values." in text
    assert line_of(lines, "weakest") == "  weakest      bfloat16 0.067 (|S| 30), float16 no bound (|S| 16)"


def test_a_run_without_examples_has_nothing_to_add() -> None:
    assert summary(Tally(), ITEMS) == []


def test_no_line_is_longer_than_a_terminal() -> None:
    assert max(map(len, summary(visited(ROW, FOREIGN), ITEMS))) <= 120


# The file


def written(tmp_path: Path, tally: Tally) -> list[dict[str, str]]:
    write_cells(str(tmp_path / "cells.csv"), tally, ITEMS)
    with (tmp_path / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_file_has_a_row_for_every_cell_and_a_column_for_every_clause(tmp_path: Path) -> None:
    rows = written(tmp_path, visited(ROW))
    assert list(rows[0]) == [*COLUMNS, *REGISTER]
    assert len(rows) == sum(len(list(reachable(item))) for item in ITEMS)


def test_a_cell_that_was_visited_has_its_examples_and_the_others_have_none(tmp_path: Path) -> None:
    rows = written(tmp_path, visited(ROW, ROW))
    (row,) = [row for row in rows if row["examples"] != "0"]
    assert row["examples"] == "2"
    assert [row[name] for name in COLUMNS[:9]] == [
        "2",
        "2",
        "row",
        "float32",
        "bias frozen=w",
        "2",
        "transposed",
        "contiguous",
        "run",
    ]
    assert 0 < float(row["miss_bound"]) < 0.01
    assert {other["miss_bound"] for other in rows if other is not row} == {""}


def test_a_clause_that_was_never_judged_is_zero_and_one_that_does_not_apply_is_empty(tmp_path: Path) -> None:
    (row,) = [row for row in written(tmp_path, visited(ROW)) if row["examples"] == "1"]
    assert row["ranks.alive"] == "1"
    assert row["row.forward.value"] == "0"
    assert row["row.backward.weight-grad"] == "", "the weight is frozen"
    assert row["column.forward.value"] == ""


def test_a_cell_that_no_item_reaches_has_a_row_all_the_same(tmp_path: Path) -> None:
    last = written(tmp_path, visited(ROW, FOREIGN))[-1]
    assert (last["layer"], last["examples"], last["ranks.alive"]) == ("gather", "1", "1")


def test_the_option_writes_what_all_workers_have_visited(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "--impl", "numpy", "--cells", "cells.csv"]
    chosen = ["-n", "2", "-k", "run-row-P2-float32 or run-copy-P1-float64", "--world-sizes", "1,2"]
    done = subprocess.run(
        [*command, *chosen], cwd=tmp_path, env=os.environ | {"CI": "1"}, capture_output=True, text=True, check=False
    )
    with (tmp_path / "cells.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["examples"] != "0"]

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert sum(int(row["examples"]) for row in rows) == 50
    assert {(row["layer"], row["dtype"]) for row in rows} == {("row", "float32"), ("copy", "float64")}
    assert f"\n{len(rows)} of " in done.stdout


def test_a_file_in_no_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "--impl", "numpy", "--cells", "no/cells.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--cells no/cells.csv: there is no folder no" in done.stderr
