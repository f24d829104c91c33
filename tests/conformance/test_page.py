"""The page of a report, as a file: it stands alone, says everything, escapes everything, and is the same every time."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from page_reports import report_on

from conformance.reporting.page import embedded, render, write_page
from conformance.reporting.page.model import MEANINGS, SYMBOLS, Model
from conformance.reporting.record import VERDICTS, KnownReason, Report
from spec import REGISTER

HOSTILE = "</script><!--<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"
# Where HTML wants no end tag, and those of SVG that end themselves.
_EMPTY = {"meta", "link", "input", "img", "br", "rect", "path", "circle"}


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.contents: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.contents.setdefault(self.open[-1] if self.open else "", []).append(data)

    @property
    def text(self) -> str:
        shown = (text for tag, texts in self.contents.items() if tag not in ("script", "style") for text in texts)
        return " ".join(shown)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for name, a in self.elements if name == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def report() -> Report:
    return report_on("bias-before-sum", "bias-on-rank-0", "wide")


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render(report))


def test_the_page_is_one_file_and_the_same_every_time(report: Report, tmp_path: Path) -> None:
    path = write_page(tmp_path, report)

    assert path == tmp_path / "index.html"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]
    assert path.read_text(encoding="utf-8") == render(report)


def test_every_element_is_closed_and_no_two_have_one_name(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]

    assert page.open == []
    assert len(names) == len(set(names))


def test_nothing_is_fetched(page: Page) -> None:
    """Links stay in the page, but for those of known deviations; no element loads anything."""
    assert {name for name, _ in page.elements} & {"img", "iframe", "object", "embed", "video", "image", "base"} == set()
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    links = {a["href"] for a in page.all("a")}
    assert {link for link in links if not link.startswith("#")} == {"https://example.org/1"}
    assert not [a for _, a in page.elements if {"src", "srcset", "style", "onclick"} & set(a)]
    assert not re.search(
        r"@import|url\(|fetch\(|XMLHttpRequest", " ".join(page.contents["script"] + page.contents["style"])
    )


def test_the_policy_of_the_page_allows_its_own_script_and_style_alone(report: Report, page: Page) -> None:
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    text = render(report)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert style
    assert script
    hashes = [b64encode(sha256(found[1].encode()).digest()).decode() for found in (style, script)]

    assert (
        policy == f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )


def test_every_cell_says_its_verdict_in_words_and_by_a_symbol(report: Report, page: Page) -> None:
    cells = {a["href"][1:]: a for a in page.all("a") if "aria-label" in a}
    expected = {}
    for run in report.runs:
        for (clause, world), verdict in run.verdicts.items():
            expected[f"{clause}@{world}@{run.implementation.name}"] = verdict

    assert set(expected) <= set(cells)
    for address, verdict in expected.items():
        clause, world, name = address.split("@")
        assert cells[address]["aria-label"] == f"{clause}, {name}, world size {world}: {verdict}"
        assert cells[address]["class"] == verdict.replace(" ", "-")
    assert {cells[address]["aria-label"].rpartition(": ")[2] for address in set(cells) - set(expected)} == {"not run"}
    assert len(set(SYMBOLS.values())) == len(SYMBOLS) == len(MEANINGS) == len(VERDICTS)


def test_every_clause_has_a_row_its_group_and_its_requirement(page: Page) -> None:
    rows = [a["data-clause"] for a in page.all("tr") if "data-clause" in a]
    ids = [a["id"] for a in page.all("dt") if "id" in a]
    text = " ".join(page.text.split())

    assert sorted(rows) == sorted(ids) == sorted(REGISTER)
    assert {a["data-group"] for a in page.all("tbody")} == {name.partition(".")[0] for name in REGISTER}
    assert all(f"{clause.title}. {clause.text}".split()[-1] in text for clause in REGISTER.values())
    assert all(clause.text in text for clause in REGISTER.values())


def test_a_cell_with_a_failure_leads_to_it(report: Report, page: Page) -> None:
    findings = {a["id"]: a for a in page.all("section") if a.get("class") == "finding"}
    failing = {f"{f.clause}@{f.world}@{run.implementation.name}" for run in report.runs for f in run.failures}

    assert set(findings) == failing
    for run in report.runs:
        for failure in run.failures:
            assert failure.case in page.text
            assert failure.replay in page.text
            assert failure.text.strip() in page.text
            assert all(look in page.text for look in failure.diagnosis.looks)
    assert len(page.all("svg", role="img")) == len(failing)


def test_what_was_examined_is_said_and_that_a_part_is_a_part(report: Report, page: Page) -> None:
    text = " ".join(page.text.split())

    assert "Partial." in text
    assert "1 of 3 runs is not all of the suite: wide." in text
    assert "world size 4 was not run: not in --world-sizes" in text
    for words in ("numpy 2", "gloo on cpu, world sizes 1, 2 and 4", "profile quick, seed 1427644570"):
        assert words in text
    assert "Partial." not in Page(render(report_on("bias-before-sum"))).text


def test_one_run_that_is_partial_says_why_at_the_top() -> None:
    text = render(report_on("wide"))
    head = text[: text.index("<main>")]

    assert "This run is not all of the suite." in head
    assert "<li>world size 4 was not run: not in --world-sizes</li>" in head


def test_a_card_leads_to_the_clauses_that_fail(report: Report, page: Page) -> None:
    model = Model(report)
    first = {cell.clause.name: cell.address for cell in reversed(model.in_run(0)) if cell.verdict == "fail"}
    text = render(report)

    assert first
    for name, address in first.items():
        assert f'<a href="#{address}">{name}</a>' in text


def test_a_page_without_failures_says_so(report: Report) -> None:
    sound = replace(
        report.runs[0], failures=(), counts=tuple(replace(n, broken=0, blamed=0) for n in report.runs[0].counts)
    )
    text = Page(render(replace(report, runs=(sound,)))).text

    assert "No clause that was judged fails." in text
    assert "There are none." in text


def test_what_is_known_is_neither_a_failure_nor_a_pass(report: Report) -> None:
    run = replace(report.runs[0], counts=tuple(replace(n, blamed=0) for n in report.runs[0].counts))
    other = replace(run, implementation=replace(run.implementation, name="another"))
    alone, both = (Page(render(replace(report, runs=runs))).text for runs in ((run,), (run, other)))

    assert re.search(r"No clause that was judged fails, but for \d+ that (is|are) known\.", alone)
    assert "0 of 2 runs break a clause that must be kept and is not listed as known; 2 break some that are." in both
    assert re.search(r"\d+ clauses? broken, all as known", alone)
    assert "no clause fails" not in alone


def test_a_report_of_nothing_is_a_page(report: Report) -> None:
    text = Page(render(replace(report, runs=()))).text

    assert "Nothing against the contract" in text
    assert "There is no run in this report." in text


def test_a_failure_that_did_not_come_back_is_no_pass(report: Report) -> None:
    run = replace(report.runs[0], failures=(), counts=(), intermittent=("row P=2 ...\nrank 1 died",))
    text = Page(render(replace(report, runs=(run,)))).text

    assert "no clause fails; 1 failure did not come back" in text
    assert "rank 1 died" in text


def test_whatever_a_report_says_is_text(report: Report) -> None:
    run = report.runs[1]
    failure = run.failures[0]
    said = dict.fromkeys(("item", "case", "replay", "text", "layer"), HOSTILE) | {
        "lost": (HOSTILE,),
        "known": KnownReason(HOSTILE, "javascript:alert(1)"),
    }
    failure = replace(
        failure,
        **said,
        violations=tuple(
            replace(v, what=HOSTILE, expected=HOSTILE, got=HOSTILE, step=HOSTILE) for v in failure.violations
        ),
        diagnosis=replace(failure.diagnosis, looks=(HOSTILE,), next=HOSTILE, passes=(HOSTILE,), probe=HOSTILE),
        also=(HOSTILE,),
    )
    hostile = replace(
        run,
        implementation=replace(run.implementation, name=HOSTILE, versions={HOSTILE: HOSTILE}, flags={HOSTILE: HOSTILE}),
        options=replace(run.options, backend=HOSTILE, device=HOSTILE, profile=HOSTILE, seed=HOSTILE),
        complete=False,
        missing=(HOSTILE,),
        intermittent=(HOSTILE,),
        declined=tuple(replace(entry, reason=HOSTILE) for entry in run.declined),
        failures=(failure, *run.failures[1:]),
    )
    clause = replace(report.clauses[0], title=HOSTILE, text=HOSTILE, level=HOSTILE)
    spoiled = replace(report, runs=(report.runs[0], hostile), clauses=(clause, *report.clauses[1:]))
    page = Page(render(spoiled))

    assert page.open == []
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert not [a for a in page.all("a") if a["href"].startswith("javascript")]
    assert HOSTILE in page.text
    assert json.loads(page.contents["script"][0])["runs"][1]["name"] == HOSTILE


def test_data_in_a_script_element_cannot_end_it() -> None:
    text = embedded({"a": HOSTILE})

    assert "<" not in text
    assert json.loads(text) == {"a": HOSTILE}


def test_runs_of_one_name_are_told_apart(report: Report) -> None:
    run = report.runs[0]
    other = replace(run, options=replace(run.options, backend="nccl", device="cuda"))
    model = Model(replace(report, runs=(run, other, other)))

    assert model.slugs == ("bias-before-sum-gloo-cpu", "bias-before-sum-nccl-cuda", "bias-before-sum-nccl-cuda-again")
    assert model.name(1) == "bias-before-sum (nccl, cuda)"
    assert Model(replace(report, runs=(run,))).name(0) == "bias-before-sum"


@pytest.mark.parametrize("evidence", [{}, {"P": 2, "tensors": []}, {"tensors": 3}, {"tensors": [{}], "P": "x"}])
def test_evidence_of_another_form_does_not_stop_the_page(report: Report, evidence: Any) -> None:
    run = report.runs[0]
    other = replace(run, failures=tuple(replace(failure, evidence=evidence) for failure in run.failures))

    assert "evidence of another form" in render(replace(report, runs=(other,)))


def test_an_implementation_that_was_not_run_at_a_world_size_is_so_there(report: Report) -> None:
    model = Model(report)
    wide = [cell for cell in model.in_run(2) if cell.column.world == 4]

    assert {cell.verdict for cell in wide} == {"not run"}
    assert ("collectives.forward-budget", 2, 1) not in model.cells
    assert model.cells["collectives.forward-budget", 2, 4].verdict == "not run"
