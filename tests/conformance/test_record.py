"""The record of a run: what it keeps, what it says is missing, and that it survives the way through a file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faulty import BiasBeforeReduction
from records import FAILURE, LINE, run_at

from conformance.adapters.protocol import Declaration
from conformance.coverage.cells import clauses_by_flags, reachable
from conformance.items import items
from conformance.observers import InProcess, Options
from conformance.reporting.failure.raised import explain, keep_known, raise_first
from conformance.reporting.record import (
    Failure,
    ItemsRun,
    KnownReason,
    Report,
    RunOptions,
    missing,
    new_report,
    suite_version,
    verdict,
)
from conformance.reporting.record.plain import DoesNotFit, data, record_of, write_json, write_text
from conformance.reporting.record.tallied import coverage, run_of
from conformance.reporting.session.collect import Collector, found_in, name_of
from conformance.suite import Suite
from conformance.tally import Tally
from spec import REGISTER, Case, ContractViolation

CASE = Case.parse("row P=2 batch=1 in=2 out=2 float32 bias values=small seed=0")
ALL = tuple(map(str, items()))
OPTIONS = RunOptions((1, 2, 4), "gloo", "cpu", (), "quick", "1")
WHOLE = ItemsRun(len(ALL), len(ALL), ALL, (), ())


# To a file and back


def test_a_report_survives_the_way_through_json() -> None:
    report = new_report([run_at(1, 2, 4, failures=(FAILURE,)), run_at(1)])
    assert record_of(Report, json.loads(json.dumps(data(report)))) == report


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: d.pop("runs"), "it has no runs; it holds format, suite, clauses"),
        (lambda d: d["suite"].pop("contract"), "it.suite has no contract; it holds version"),
        (lambda d: d["runs"][0]["counts"][0].update(judged="3"), "it.runs[0].counts[0].judged is '3', which is no int"),
        (lambda d: d["runs"][0].update(complete=1), "it.runs[0].complete is 1, which is no bool"),
        (
            lambda d: d["runs"][0]["options"].update(world_sizes=2),
            "it.runs[0].options.world_sizes is 2, which is no tu",
        ),
        (lambda d: d.update(runs=[5]), "it.runs[0] is 5; it should hold implementation, options, "),
    ],
)
def test_data_that_does_not_fit_is_told_with_its_place(spoil: Any, sentence: str) -> None:
    content = data(new_report([run_at(1)]))
    spoil(content)
    with pytest.raises(DoesNotFit) as caught:
        record_of(Report, content)
    assert str(caught.value).startswith(sentence)


def test_what_a_later_version_adds_is_no_fault() -> None:
    content = data(new_report([run_at(1)]))
    content["runs"][0]["mood"] = "good"
    assert record_of(Report, content) == new_report([run_at(1)])


def test_numbers_that_json_has_no_word_for_are_texts(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [float("nan"), float("-inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": ["nan", "-inf", 1.5]}


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_contract_s_hash_follows_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = suite_version().contract
    name = "row.forward.value"
    monkeypatch.setitem(REGISTER, name, replace(REGISTER[name], level="SHOULD"))
    suite_version.cache_clear()
    changed = suite_version().contract
    monkeypatch.undo()
    suite_version.cache_clear()
    assert suite_version().contract == before != changed


# Verdicts


@pytest.mark.parametrize(
    ("lenient", "counts", "expected"),
    [
        (False, (5, 2, 1, 0), "fail"),
        (False, (5, 2, 0, 0), "known"),
        (True, (5, 2, 0, 0), "should"),
        (True, (5, 2, 2, 0), "fail"),
        (False, (5, 0, 0, 3), "pass"),
        (False, (0, 0, 0, 3), "unsupported"),
        (False, (0, 0, 0, 0), "not run"),
    ],
)
def test_a_cell_has_one_verdict(lenient: bool, counts: tuple[int, int, int, int], expected: str) -> None:
    assert verdict(lenient, *counts) == expected


def test_the_verdicts_of_a_run_add_its_layers_up_and_know_should() -> None:
    run, name = run_at(1, 2), "collectives.forward-budget"
    (count,) = (entry for entry in run.counts if entry.world == 2)
    broken = replace(count, clause=name, layer="row", broken=1)
    run = replace(run, counts=(*run.counts, replace(count, layer="pair", broken=1, blamed=1), broken))
    assert run.verdicts == {
        ("row.forward.value", 1): "pass",
        ("row.forward.value", 2): "fail",
        (name, 2): "should",
    }
    strict = replace(run, implementation=replace(run.implementation, strict=True))
    assert strict.verdicts[name, 2] == "known"


def test_a_clause_that_applies_and_was_never_judged_was_not_run() -> None:
    assert replace(run_at(1), counts=()).verdicts == {("row.forward.value", 1): "not run"}


# What is missing


def test_nothing_is_missing_of_all_items() -> None:
    assert missing(OPTIONS, WHOLE) == ()


@pytest.mark.parametrize(
    ("options", "done", "sentences"),
    [
        (
            replace(OPTIONS, world_sizes=(1, 2)),
            replace(WHOLE, names=tuple(map(str, items((1, 2))))),
            ["world size 4 was not run: not in --world-sizes"],
        ),
        (
            replace(OPTIONS, clauses=("row.", "column.")),
            WHOLE,
            ["clauses that do not begin with row. or column. were not judged: --clause"],
        ),
        (
            OPTIONS,
            replace(WHOLE, names=tuple(name for name in ALL if name != "run-row-P1-float32"), reasons=("-k 'x'",)),
            ["world size 1: 144 of 145 items were run", "the reason: -k 'x'"],
        ),
        (
            OPTIONS,
            replace(WHOLE, names=tuple(name for name in ALL if name != "run-row-P1-float32")),
            ["world size 1: 144 of 145 items were run", "the reason: not known; --deselect, perhaps"],
        ),
        (
            OPTIONS,
            ItemsRun(5, 4, ALL, ("known row.forward.value-0",), ("interrupted",)),
            ["4 of 5 items that were to be run told what they found", "the reason: interrupted"],
        ),
    ],
)
def test_what_is_missing_is_said(options: RunOptions, done: ItemsRun, sentences: list[str]) -> None:
    assert list(missing(options, done)) == sentences


# Counts and what stands behind them


def test_counts_stand_in_the_order_of_the_register_by_world_and_layer() -> None:
    tally = Tally()
    pair = Case.parse("pair P=2 batch=1 in=1 hidden=2 out=1 float32 seed=0")
    tally.count(CASE, ["row.forward.value", "ranks.alive"], frozenset({"row.forward.value"}), [], ["forward.dtype"])
    tally.count(pair, ["ranks.alive"], frozenset(), [])
    tally.decline(pair, "has no pair", ["pair.forward.value"])
    run = run_of(Declaration("mine", {"torch": "1"}), Options(), "quick", "1", WHOLE, tally)

    assert [(n.clause, n.layer, n.judged, n.broken, n.blamed, n.declined) for n in run.counts] == [
        ("ranks.alive", "pair", 1, 0, 0, 0),
        ("ranks.alive", "row", 1, 0, 0, 0),
        ("pair.forward.value", "pair", 0, 0, 0, 1),
        ("row.forward.value", "row", 1, 1, 0, 0),
        ("forward.dtype", "row", 0, 0, 0, 1),
    ]
    assert run.examples == {"1": 0, "2": 2, "4": 0}
    assert run.complete


def test_of_a_file_the_record_keeps_no_folder() -> None:
    def impl(text: str) -> str:
        options = Options(impl=text)
        return run_of(Declaration("mine", {}), options, "quick", "1", WHOLE, Tally()).implementation.impl

    assert impl("/home/me/secret/mine.py:Mine") == "mine.py:Mine"
    assert impl("package.module:Mine") == "package.module:Mine"
    assert impl("torch_tp") == "torch_tp"


def test_coverage_counts_the_cells_in_which_a_clause_could_have_failed() -> None:
    """Counted off one by one, the slow way; world size 2 has groups of one, too."""
    tally = Tally()
    case = Case.parse("row P=1 batch=3 in=4 out=2 float32 bias seed=7")
    for seed in (7, 8):
        tally.count(replace(case, seed=seed), ["row.forward.value"], frozenset(), [])
    tally.count(replace(case, values="gaussian"), ["ranks.alive"], frozenset(), [])
    there: Counter[tuple[str, int]] = Counter()
    for item in items((1, 2)):
        clauses = clauses_by_flags(item)
        for cell in reachable(item):
            there.update((name, cell.world) for name in clauses[cell.flags])
    found = {(entry.clause, entry.world): entry for entry in coverage(tally, (1, 2))}

    assert {key: entry.reachable for key, entry in found.items()} == there
    assert found["row.forward.value", 1].visited == 1
    assert found["row.forward.value", 1].miss == tally.weakest[next(iter(tally.cells))].miss
    assert found["row.forward.value", 2].visited == found["column.forward.value", 1].visited == 0
    assert found["column.forward.value", 1].values is None


# Failures


def faulty(**chosen: Any) -> Suite:
    suite = Suite(Options(impl="numpy", **chosen))
    suite.observer = InProcess(BiasBeforeReduction())
    return suite


def test_a_failure_is_kept_as_the_terminal_shows_it() -> None:
    suite = faulty(records=True)
    result = suite.examine(CASE)
    with pytest.raises(ContractViolation) as raised:
        raise_first(suite.options, result, result.findings)
    explain(suite, ExceptionGroup("one", [raised.value]))
    (kept,) = suite.failures

    assert kept.text == str(raised.value)
    assert (kept.clause, kept.world, kept.layer, kept.case) == ("row.forward.bias-once", 2, "row", str(CASE))
    assert kept.replay == f'python -m conformance replay --impl numpy "{CASE}"'
    assert kept.replay in kept.text
    assert [(v.rank, v.expected, v.got) for v in kept.violations][:1] == [(0, "[-2.,  2.]", "[-4.,  4.]")]
    assert kept.diagnosis.looks == ("output: consistent with a bias that is counted P times",)
    assert kept.diagnosis.next.startswith("Add the bias once")
    assert kept.diagnosis.probe.startswith("row P=4 ")
    assert kept.known is None
    assert kept.evidence is not None
    assert kept.evidence["ranks"] == [0, 1]


def test_nothing_is_kept_where_no_report_is_wanted() -> None:
    suite = faulty()
    result = suite.examine(CASE)
    with pytest.raises(ContractViolation) as raised:
        raise_first(suite.options, result, result.findings)
    explain(suite, raised.value)
    keep_known(suite, result, result.findings[0], KnownReason("on purpose", ""))
    assert suite.failures == []


def test_a_known_deviation_is_kept_with_its_reason_and_diagnosis() -> None:
    suite = faulty(records=True)
    result = suite.examine(CASE)
    keep_known(suite, result, result.findings[0], KnownReason("on purpose", "https://example.org"))
    (kept,) = suite.failures
    assert kept.known == KnownReason("on purpose", "https://example.org")
    assert kept.diagnosis.looks
    assert kept.evidence


# From tests to the record


def report_of(nodeid: str, suite: Suite | None = None, when: str = "call", failed: bool = False) -> Any:
    found = {"found": found_in(suite, nodeid)} if suite else {}
    return SimpleNamespace(nodeid=nodeid, when=when, failed=failed, **found)


def nodeid_of(item: str = "run-row-P2-float32", function: str = "test_conforms") -> str:
    return f"conformance/test_conformance.py::{function}[{item}]"


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        (nodeid_of(), "run-row-P2-float32"),
        (f"../site-packages/{nodeid_of(function='test_compiles')}", "run-row-P2-float32"),
        (nodeid_of(function="test_conforms_small"), "small run-row-P2-float32"),
        (nodeid_of("ranks.alive-0", "test_known_deviation_is_still_there"), "known ranks.alive-0"),
        ("tests/conformance/test_tally.py::test_conforms[run-row-P2-float32]", ""),
        ("tests/test_conformance.py::test_other[run-row-P2-float32]", ""),
        ("conformance/test_conformance.py::test_conforms", ""),
    ],
)
def test_a_test_of_the_suite_is_known_by_its_id(nodeid: str, name: str) -> None:
    assert name_of(nodeid) == name


def test_a_collector_adds_up_what_reports_carry_as_plain_data() -> None:
    suite = faulty()
    suite.examine(CASE)
    suite.failures = [replace(FAILURE, item="")]
    first, second = nodeid_of(), nodeid_of("run-row-P2-float64")
    collector = Collector()
    collector.pytest_xdist_node_collection_finished(None, [first, second, "tests/test_other.py::test_this"])
    for nodeid in (first, second):
        report = report_of(nodeid, suite)
        report.found = json.loads(json.dumps(report.found))
        collector.pytest_runtest_logreport(report)

    assert collector.tally.examples == {2: 2}
    assert [failure.item for failure in collector.failures] == ["run-row-P2-float32", "run-row-P2-float64"]
    assert replace(collector.failures[0], item=FAILURE.item) == FAILURE
    names = ("run-row-P2-float32", "run-row-P2-float64")
    assert collector.items_run([]) == ItemsRun(2, 2, names, (), ())


def test_a_test_that_told_nothing_is_left_with_the_reason() -> None:
    collector = Collector()
    first, second, third = (nodeid_of(name) for name in ("a", "b", "c"))
    collector.pytest_collection_finish(
        SimpleNamespace(items=[SimpleNamespace(nodeid=n) for n in (first, second, third)])
    )  # type: ignore[arg-type]
    collector.pytest_runtest_logreport(report_of(first, when="???", failed=True))
    collector.pytest_runtest_logreport(report_of(second, when="setup", failed=True))
    collector.pytest_runtest_logreport(report_of("tests/test_other.py::test_this", failed=True))
    told = collector.items_run(["interrupted"])

    assert (told.collected, told.ran, told.left) == (3, 0, ("a", "b", "c"))
    assert told.reasons == (
        "a told nothing: the process that ran it ended",
        "b told nothing: its set-up failed",
        "interrupted",
    )


def test_a_failure_survives_the_way_from_a_worker() -> None:
    assert record_of(Failure, json.loads(json.dumps(data(FAILURE)))) == FAILURE
    assert LINE in FAILURE.replay


# What the suite counts as unsupported


def test_clauses_of_a_declined_case_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(Options(impl="numpy"))
    monkeypatch.setattr(suite.observer.adapter, "declines", lambda case: "has no row")  # type: ignore[attr-defined]
    suite.examine(CASE)
    assert suite.tally.unsupported["row.forward.value", 2, "row"] == 1
    assert suite.tally.declined == {("has no row", "row", 2): 1}


def test_clauses_about_what_cannot_be_observed_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(Options(impl="numpy"))
    observe = suite.observer.observe

    def blind(case: Case, deadline: float) -> Any:
        return tuple(
            tuple(replace(s, steps={n: replace(step, collectives=None) for n, step in s.steps.items()}) for s in group)
            for group in observe(case, deadline)
        )

    monkeypatch.setattr(suite.observer, "observe", blind)
    suite.examine(CASE)
    assert suite.tally.unsupported["collectives.forward-budget", 2, "row"] == 1
    assert suite.tally.judged["row.forward.value", 2, "row"] == 1
    assert suite.tally.unsupported["row.forward.value", 2, "row"] == 0


def test_what_was_not_run_after_many_hangs_is_not_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(Options(impl="numpy"))
    monkeypatch.setattr(suite, "_hangs", 20)
    suite.examine(CASE)
    assert suite.tally.declined == {("not run: 20 cases of this item had hung already", "row", 2): 1}
    assert not suite.tally.unsupported
