"""Committed results: what they hold, how a run is compared with them, and the README's table of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from records import FAILURE, run_at

from conformance.__main__ import main
from conformance.known import Known, default_file
from conformance.reporting.command import RESULTS
from conformance.reporting.record import Count, Coverage, KnownReason, Run, Sighting, new_report
from conformance.reporting.record.plain import write_json
from conformance.reporting.record.read import Unusable
from conformance.reporting.results.compare import check_results
from conformance.reporting.results.kept import (
    Results,
    Told,
    committed_in,
    read_results,
    results_of,
    text_of,
    write_results,
)
from conformance.reporting.results.table import BEGIN, END, group_of, table, with_table
from spec import REGISTER

ROOT = Path(__file__).parents[2]
RUN = run_at(1, 2, 4, failures=(replace(FAILURE, known=KnownReason("on purpose", "")),))


def counted(run: Run, *counts: Count) -> Run:
    """The run with these examples, and the cells behind them."""
    cells = {(n.clause, n.world): Coverage(n.clause, n.world, 1, 1, None, None) for n in counts}
    return replace(run, counts=counts, cells=tuple(cells.values()))


def results_for(run: Run) -> Results:
    (made,) = results_of(new_report([run])).values()
    return made


# What they hold


def test_results_survive_the_way_through_their_file(tmp_path: Path) -> None:
    (path,) = write_results(new_report([RUN]), tmp_path)
    assert path.name == "mine.json"
    assert read_results(path) == results_for(RUN)


def test_results_hold_verdicts_counts_and_failures_without_numbers(tmp_path: Path) -> None:
    results = results_for(RUN)
    cell = results.matrix["row.forward.value"]["2"]

    assert (cell.verdict, cell.judged, cell.broken) == ("pass", 10, 0)
    assert [(told.case, told.known, told.looks) for told in results.failures] == [
        (FAILURE.case, KnownReason("on purpose", ""), FAILURE.diagnosis.looks)
    ]
    assert "evidence" not in text_of(results)
    assert FAILURE.text not in text_of(results)


def test_every_clause_stands_in_a_line_of_its_own() -> None:
    counts = (Count("ranks.alive", 1, "row", 3, 0, 0, 0), Count("row.forward.value", 1, "row", 3, 0, 0, 0))
    lines = text_of(results_for(counted(RUN, *counts))).splitlines()
    assert [line.split('"')[1] for line in lines if line.startswith('  "')] == ["ranks.alive", "row.forward.value"]


def test_another_backend_has_a_file_of_its_own(tmp_path: Path) -> None:
    ours = replace(RUN, implementation=replace(RUN.implementation, name="torch_tp", impl="torch_tp"))
    there = replace(ours, options=replace(ours.options, backend="nccl", device="cuda"))
    paths = write_results(new_report([ours, there]), tmp_path)
    assert [path.name for path in paths] == ["torch_tp.json", "torch_tp-nccl-cuda.json"]


def test_a_run_that_is_not_complete_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"^mine: not a complete run, world size 4 was not run: not in --world-sizes$"):
        write_results(new_report([run_at(1, 2)]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_name_are_no_results(tmp_path: Path) -> None:
    older = replace(RUN, implementation=replace(RUN.implementation, versions={"torch": "2.12.0"}))
    with pytest.raises(Unusable, match=r"^mine\.json: two of the runs would be written there$"):
        write_results(new_report([RUN, older]), tmp_path)


# Compared with a run


def test_the_same_verdicts_pass_whatever_their_counts(tmp_path: Path) -> None:
    write_results(new_report([RUN]), tmp_path)
    more = replace(RUN, counts=tuple(replace(count, judged=999) for count in RUN.counts))
    assert check_results(new_report([more]), tmp_path) == []


def test_every_cell_that_differs_is_listed(tmp_path: Path) -> None:
    before = (
        Count("ranks.alive", 1, "row", 3, 0, 0, 0),
        Count("row.forward.value", 1, "row", 3, 0, 0, 0),
        Count("row.forward.value", 2, "row", 3, 1, 0, 0),
    )
    now = (
        Count("row.forward.value", 1, "row", 3, 1, 1, 0),
        Count("row.forward.value", 2, "row", 3, 1, 0, 0),
        Count("row.forward.value", 4, "row", 0, 0, 0, 3),
    )
    (path,) = write_results(new_report([counted(RUN, *before)]), tmp_path)
    changed = counted(replace(RUN, implementation=replace(RUN.implementation, versions={"torch": "3"})), *now)

    assert check_results(new_report([changed]), tmp_path) == [
        f"mine: 3 verdicts are not those in {path} (verdicts are compared, counts are not)",
        "  ranks.alive at world size 1: pass in mine.json, nothing in this run",
        "  row.forward.value at world size 1: pass in mine.json, fail in this run",
        "  row.forward.value at world size 4: nothing in mine.json, unsupported in this run",
        "  torch is 3, and was 2.13.0",
    ]


# What depends on the machine

MARKED = KnownReason("on purpose", "", "which kernel is called")
PLACE = "row.forward.value", 2, "row", "known row.forward.value-0", FAILURE.case
SEEN = replace(
    counted(RUN, Count("row.forward.value", 2, "row", 3, 1, 0, 0), Count("ranks.alive", 2, "row", 3, 0, 0, 0)),
    failures=(replace(FAILURE, item=PLACE[3], known=MARKED),),
    sightings=(Sighting(*PLACE, MARKED, True),),
)
UNSEEN = replace(
    counted(RUN, Count("row.forward.value", 2, "row", 3, 0, 0, 0), Count("ranks.alive", 2, "row", 3, 0, 0, 0)),
    failures=(),
    sightings=(Sighting(*PLACE, MARKED, False),),
)


def test_results_are_the_same_whether_what_depends_on_the_machine_was_seen_or_not() -> None:
    seen, unseen = results_for(SEEN), results_for(UNSEEN)
    assert seen.failures == unseen.failures == (Told(*PLACE, MARKED, ()),)
    assert seen.verdicts == unseen.verdicts == {("row.forward.value", 2): "known", ("ranks.alive", 2): "pass"}
    assert table([seen]) == table([unseen])


@pytest.mark.parametrize(("kept", "now"), [(SEEN, UNSEEN), (UNSEEN, SEEN)])
def test_what_depends_on_the_machine_is_no_difference(kept: Run, now: Run, tmp_path: Path) -> None:
    write_results(new_report([kept]), tmp_path)
    assert check_results(new_report([now]), tmp_path) == []


def test_without_the_mark_the_same_is_a_difference(tmp_path: Path) -> None:
    (path,) = write_results(new_report([SEEN]), tmp_path)
    assert check_results(new_report([replace(UNSEEN, sightings=())]), tmp_path) == [
        f"mine: 1 verdicts are not those in {path} (verdicts are compared, counts are not)",
        "  row.forward.value at world size 2: known in mine.json, pass in this run",
    ]


def test_a_failure_is_a_difference_though_its_clause_has_the_mark(tmp_path: Path) -> None:
    write_results(new_report([SEEN]), tmp_path)
    failed = counted(SEEN, Count("row.forward.value", 2, "row", 3, 2, 1, 0), Count("ranks.alive", 2, "row", 3, 0, 0, 0))
    assert check_results(new_report([failed]), tmp_path)[1:] == [
        "  row.forward.value at world size 2: known in mine.json, fail in this run"
    ]


def test_a_run_that_is_not_complete_says_so_where_it_differs(tmp_path: Path) -> None:
    write_results(new_report([RUN]), tmp_path)
    lines = check_results(new_report([run_at(1, 2)]), tmp_path)
    assert lines[-2:] == [
        "  row.forward.value at world size 4: pass in mine.json, nothing in this run",
        "  this run is not complete: world size 4 was not run: not in --world-sizes",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "No such file or directory"),
        ("{", "is no whole JSON file, as if it was cut short"),
        ('{"format": 7}', "has format 7; 1 is needed"),
        ('{"format": 1}', "these are no results: it has no suite, "),
    ],
)
def test_what_cannot_be_compared_is_no_pass(text: str | None, sentence: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.json").write_text(text)
    (line,) = check_results(new_report([RUN]), tmp_path)
    assert line.startswith(f"mine: {tmp_path}/mine.json: {sentence}")


def test_the_command_keeps_results_and_compares_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "report.json", new_report([RUN]))
    kept = tmp_path / "results"
    kept.mkdir()

    assert main(["report", str(tmp_path), "--results", str(kept)]) == 0
    assert main(["report", str(tmp_path), "--check", str(kept)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"every verdict is as in {kept}"
    file = kept / "mine.json"
    file.write_text(file.read_text().replace('"verdict": "pass"', '"verdict": "known"', 1))
    assert main(["report", str(tmp_path), "--check", str(kept)]) == 1
    told = "  row.forward.value at world size 1: known in mine.json, pass in this run"
    assert capsys.readouterr().out.splitlines()[-1] == told


# The table


def test_every_clause_is_in_one_row() -> None:
    rows = list(dict.fromkeys(map(group_of, REGISTER)))
    assert len(rows) == 25
    assert "copy, reduce, gather, scatter" in rows
    assert group_of("row.forward.value") == "row.forward"
    assert group_of("row.bias.replicated") == group_of("row.weight.shard") == "row.weight, row.bias"
    assert group_of("ranks.alive") == "ranks"
    assert group_of("merged.parts.separate") == group_of("merged.weight.shard") == "merged"


def test_a_row_counts_clauses_by_their_worst_world_size() -> None:
    counts = [
        Count("purity.inputs", 1, "row", 3, 0, 0, 0),
        Count("purity.inputs", 2, "row", 3, 1, 1, 0),
        Count("purity.upstream", 1, "row", 3, 1, 0, 0),
        Count("purity.upstream", 2, "row", 3, 0, 0, 0),
        Count("purity.masters", 1, "row", 0, 0, 0, 3),
        Count("purity.masters", 2, "row", 3, 0, 0, 0),
        Count("purity.no-alias", 1, "row", 0, 0, 0, 3),
        Count("state.local", 2, "row", 3, 2, 0, 0),
        Count("init.shards", 2, "row", 0, 0, 0, 3),
    ]
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", table([results_for(counted(RUN, *counts))]), re.MULTILINE))

    assert rows["purity"] == "1 of 4, 1 fail, 1 known, 1 unsupported"
    assert rows["state"] == "0 of 4, 1 should, 3 not run"
    assert rows["init"] == "-"
    assert rows["clauses"] == "mine"


def test_the_table_names_versions_and_a_backend_that_is_not_the_usual_one() -> None:
    there = replace(RUN, options=replace(RUN.options, backend="nccl", device="cuda"))
    lines = table([results_for(RUN), results_for(there)]).splitlines()
    assert lines[0] == "| clauses | mine | mine, nccl |"
    assert lines[-2:] == [
        "- mine: torch 2.13.0, gloo on cpu, 30 examples",
        "- mine, nccl: torch 2.13.0, nccl on cuda, 30 examples",
    ]


def test_the_table_takes_the_place_between_its_markers() -> None:
    results = [results_for(RUN)]
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", results)
    assert text == f"before\n{BEGIN}\n\n{table(results)}\n\n{END}\nafter\n"
    assert with_table(text, results) == text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_without_its_markers_there_is_no_place_for_the_table(text: str) -> None:
    with pytest.raises(Unusable, match="the table stands between these two lines, each there once"):
        with_table(text, [])


def test_ours_stands_first_in_the_table(tmp_path: Path) -> None:
    for name in ("another", "torch_tp", "aaa"):
        who = replace(RUN.implementation, name=name, impl=name)
        write_results(new_report([replace(RUN, implementation=who)]), tmp_path)
    assert [entry.implementation.name for entry in committed_in(tmp_path)] == ["torch_tp", "aaa", "another"]


# What is committed


def test_the_readme_has_the_table_of_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fresh = "run python -m conformance report --readme README.md"
    assert with_table(text, committed_in(RESULTS)) == text, f"README.md is stale: {fresh}"


def test_the_command_writes_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    write_results(new_report([RUN]), tmp_path)

    assert main(["report", "--readme", str(readme), "--results", str(tmp_path)]) == 0
    assert readme.read_text() == with_table(f"{BEGIN}\n{END}\n", [results_for(RUN)])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_committed_as_known_is_what_the_file_of_known_deviations_says(path: Path) -> None:
    """Of every entry, those that depend on the machine too, on whichever machine the results were made."""
    entries = Known.read(file).deviations if (file := default_file(path.stem)) else ()
    assert {told.item: (told.clause, told.case, told.known) for told in read_results(path).failures if told.known} == {
        f"known {entry.clause}-{number}": (
            entry.clause,
            str(entry.case),
            KnownReason(entry.reason, entry.link, entry.machine),
        )
        for number, entry in enumerate(entries)
    }


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_whole_and_of_no_machine(path: Path) -> None:
    results, text = read_results(path), path.read_text(encoding="utf-8")
    assert results.options.world_sizes == (1, 2, 4)
    assert results.options.clauses == ()
    assert set(results.matrix) <= set(REGISTER)
    assert text == text_of(results)
    assert not re.search(r"(?:^|[\s\"'(])/(?:\w+/)+\w|\b20\d\d-\d\d-\d\d", text), "a path or a date"
    assert json.loads(text)


def test_our_own_results_are_of_this_contract() -> None:
    """A clause that is new, gone or renamed has no verdict until the suite was run again."""
    results = read_results(RESULTS / "torch_tp.json")
    assert set(results.matrix) == set(REGISTER)
    assert set(results.verdicts.values()) == {"pass"}
