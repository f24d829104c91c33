"""Reports put together: of several implementations, of parts of one run; and what cannot be put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import FAILURE, WHO, run_at

from conformance.__main__ import main
from conformance.items import items
from conformance.reporting.record import Coverage, KnownReason, Run, Sighting, new_report, suite_version
from conformance.reporting.record.merge import merged
from conformance.reporting.record.plain import data, write_json
from conformance.reporting.record.read import Unusable, read_report

ROW = tuple(str(item) for item in items((2,)) if item.layer == "row")
REST = tuple(str(item) for item in items((2,)) if item.layer != "row")


def written(folder: Path, *runs: Run) -> str:
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", new_report(runs))
    return str(folder)


def other(run: Run, **changes: Any) -> Run:
    return replace(run, implementation=replace(run.implementation, **changes))


def test_one_report_is_itself(tmp_path: Path) -> None:
    run = run_at(1, 2, 4, failures=(FAILURE,))
    assert merged([written(tmp_path, run)]) == new_report([run])


def test_what_depends_on_the_machine_is_added_up(tmp_path: Path) -> None:
    first = Sighting(
        "one-rank.bits", 2, "row", "known one-rank.bits-0", "row", KnownReason("on purpose", "", "x"), True
    )
    second = replace(first, item="known one-rank.bits-1", seen=False)
    parts = run_at(2, names=ROW, sightings=(first,)), run_at(2, names=REST, sightings=(second,))
    (run,) = merged([written(tmp_path / str(n), part) for n, part in enumerate(parts)]).runs
    assert run.sightings == (first, second)


def test_a_report_may_be_named_by_its_folder_or_by_its_file(tmp_path: Path) -> None:
    folder = written(tmp_path, run_at(1))
    assert read_report(folder) == read_report(f"{folder}/report.json")


def test_other_implementations_stand_side_by_side_in_the_order_given(tmp_path: Path) -> None:
    one, two = run_at(1, 2, 4), other(run_at(1, 2), name="theirs")
    assert merged([written(tmp_path / "b", two), written(tmp_path / "a", one)]) == new_report([two, one])


@pytest.mark.parametrize(
    "change",
    [
        lambda run: other(run, versions={"torch": "2.12.0"}),
        lambda run: other(run, impl="mine.py:Other"),
        lambda run: other(run, strict=True),
        lambda run: replace(run, options=replace(run.options, backend="nccl", device="cuda")),
    ],
)
def test_another_version_or_device_is_another_run(change: Callable[[Run], Run], tmp_path: Path) -> None:
    one, two = run_at(1, 2, 4), change(run_at(1, 2, 4))
    assert merged([written(tmp_path / "a", one), written(tmp_path / "b", two)]).runs == (one, two)


def test_world_sizes_that_were_run_apart_make_a_whole(tmp_path: Path) -> None:
    small, large = run_at(1, 2, failures=(FAILURE,)), run_at(4, seed="2", intermittent=("rank 1 died",))
    (run,) = merged([written(tmp_path / "b", large), written(tmp_path / "a", small)]).runs

    assert not small.complete
    assert run.complete
    assert run.missing == ()
    assert run.options.world_sizes == (1, 2, 4)
    assert run.options.seed == "2, 1"
    assert (run.items.collected, run.items.ran) == (510, 510)
    assert run.examples == {"1": 10, "2": 10, "4": 10}
    assert {count.world for count in run.counts} == {1, 2, 4}
    assert {entry.world for entry in run.declined} == {1, 2, 4}
    assert run.failures == (FAILURE,)
    assert run.intermittent == ("rank 1 died",)


def test_items_of_one_world_size_that_were_run_apart_are_added_up(tmp_path: Path) -> None:
    better = (Coverage("row.forward.value", 2, 4, 100, 8, 0.125), Coverage("ranks.alive", 2, 1, 50, None, None))
    parts = (run_at(1, 4), run_at(2, names=ROW), run_at(2, names=REST, cells=better))
    (run,) = merged([written(tmp_path / str(n), part) for n, part in enumerate(parts)]).runs
    (count,) = (entry for entry in run.counts if entry.world == 2)

    assert run.complete
    assert (count.judged, count.declined) == (20, 2)
    assert run.examples["2"] == 20
    assert next(entry.examples for entry in run.declined if entry.world == 2) == 4
    assert set(run.cells) > {Coverage("row.forward.value", 2, 7, 100, 8, 0.25), better[1]}


def test_parts_that_make_no_whole_say_what_is_missing(tmp_path: Path) -> None:
    parts = (run_at(1), run_at(2, names=ROW))
    (run,) = merged([written(tmp_path / str(n), part) for n, part in enumerate(parts)]).runs

    assert not run.complete
    assert run.missing == (
        f"world size 2: {len(ROW)} of {len(ROW) + len(REST)} items were run",
        "world size 4 was not run: not in --world-sizes",
        "the reason: -k 'row'",
    )


def test_what_an_interrupted_part_left_another_one_may_have_run(tmp_path: Path) -> None:
    cut = run_at(1, 4)
    cut = replace(cut, items=replace(cut.items, collected=len(cut.items.names) + 1, left=(ROW[0],), reasons=("cut",)))
    paths = [written(tmp_path / "a", cut), written(tmp_path / "b", run_at(2))]
    (run,) = merged(paths).runs
    assert run.complete

    left = replace(cut, items=replace(cut.items, left=("known ranks.alive-0",)))
    (run,) = merged([written(tmp_path / "a", left), paths[1]]).runs
    assert run.missing == ("510 of 511 items that were to be run told what they found", "the reason: cut")


# What cannot be put together


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no whole JSON file, as if it was cut short: "),
        (json.dumps(data(new_report([run_at(1)])))[:-40], "is no whole JSON file, as if it was cut short: "),
        ("[1, 2]", "this is no report: it has no format; `pytest conformance --report FOLDER` writes one"),
        ('{"tests": 3}', "this is no report: it has no format; "),
        ('{"format": 2}', "has format 2; format 1 is needed, that of this suite"),
        ('{"format": 1}', "this is no report of format 1: it has no suite, clauses, runs; it holds format"),
    ],
    ids=["empty", "cut", "list", "other-json", "other-format", "no-report"],
)
def test_a_file_that_is_no_report_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(Unusable) as caught:
        merged([str(file)])
    assert str(caught.value).startswith(f"{file}: {sentence}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"/nowhere\.json: No such file or directory$"):
        merged([f"{tmp_path}/nowhere.json"])
    with pytest.raises(Unusable, match=r"/report\.json: No such file or directory$"):
        merged([str(tmp_path)])


def test_another_contract_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    report = new_report([run_at(1)])
    write_json(tmp_path / "report.json", replace(report, suite=replace(report.suite, version="0.0.9", contract="beef")))
    with pytest.raises(Unusable) as caught:
        merged([str(tmp_path)])
    needed = suite_version()
    assert str(caught.value) == (
        f"{tmp_path}/report.json: was judged by contract beef (suite 0.0.9); contract {needed.contract} is needed"
        f" (suite {needed.version}, this one), since verdicts of another one mean something else"
    )


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path / "a", run_at(1, 2)), written(tmp_path / "b", run_at(2, names=ROW))]
    with pytest.raises(Unusable) as caught:
        merged(paths)
    assert str(caught.value) == (
        f"{paths[1]}: has {WHO.name}'s {sorted(ROW)[0]} and {len(ROW) - 1} other items, which {paths[0]} has too;"
        " parts of one run must not overlap, or examples would count twice"
    )


def test_parts_that_judged_other_clauses_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path / "a", run_at(1)), written(tmp_path / "b", run_at(2, clauses=("row.",)))]
    with pytest.raises(Unusable) as caught:
        merged(paths)
    assert str(caught.value) == (
        f"{paths[1]}: judged --clause row., and {paths[0]} all clauses; parts of one run must have judged the same"
    )


# The command


def test_the_command_writes_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [written(tmp_path / "a", run_at(1, 2)), written(tmp_path / "b", run_at(4))]
    out = tmp_path / "merged"

    assert main(["report", *paths, "--out", str(out)]) == 0
    assert read_report(str(out)) == merged(paths)
    assert (out / "index.html").is_file()
    assert capsys.readouterr().out.splitlines()[0] == "mine: complete"


def test_a_report_may_be_merged_into_its_own_folder(tmp_path: Path) -> None:
    paths = [written(tmp_path / "a", run_at(1, 2)), written(tmp_path / "b", run_at(4))]
    expected = merged(paths)
    (tmp_path / "a" / "junit.xml").write_text("tests")

    assert main(["report", *paths, "--out", paths[0]]) == 0
    assert read_report(paths[0]) == expected
    assert (tmp_path / "a" / "junit.xml").read_text() == "tests"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{report}"], "what to do? Give --out FOLDER, --results FOLDER or --check FOLDER, or --readme FILE alone"),
        ([], "what to do? "),
        (["--out", "x"], "--out x: of which report? Give a report.json, or its folder"),
        (["nowhere.json", "--out", "{tmp}/x"], "nowhere.json: No such file or directory"),
        (["{report}", "--out", "{tmp}/no/where"], "--out {tmp}/no/where: there is no folder {tmp}/no"),
        (["{report}", "--out", "{report}/report.json"], "--out {report}/report.json: this is a file; give a folder"),
        (["{report}", "--check", "{tmp}/no"], "--check {tmp}/no: there is no such folder"),
        (["{report}", "--results", "{tmp}/no"], "--results {tmp}/no: there is no such folder"),
        (["--readme", "{tmp}/no.md"], "--readme {tmp}/no.md: there is no such file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_two(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tmp": tmp_path, "report": written(tmp_path / "a", run_at(1))}

    assert main(["report", *(word.format(**places) for word in arguments)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(sentence.format(**places))
