"""The page in a real browser: by mouse, by keyboard, by link, on a phone, in the dark, printed, without a script."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CELL = "row.forward.bias-once@2@bias-before-sum"
LOST = "ranks.alive@2@loses-a-rank"
UP, DOWN, LEFT, RIGHT = "\ue013", "\ue015", "\ue012", "\ue014"
ENTER, ESCAPE, TAB, END, HOME = "\ue007", "\ue00c", "\ue004", "\ue010", "\ue011"
Browser = Any  # of conftest.py


def link(cell: str) -> str:
    return f'.matrix a[href="#{cell}"]'


def wait(met: Callable[[], bool]) -> None:
    """Going back in a browser's history takes it a moment."""
    limit = time.monotonic() + 10
    while not met() and time.monotonic() < limit:
        time.sleep(0.02)
    assert met()


def rows(browser: Browser) -> list[str]:
    """The clauses that can be seen."""
    return list(
        browser.run(
            "return [...document.querySelectorAll('tr[data-clause]')]"
            ".filter(row => row.checkVisibility()).map(row => row.dataset.clause)"
        )
    )


# Cells


def test_a_click_opens_a_failure_with_its_picture(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.find(link(CELL)).click()

    for words in (
        *("row.forward.bias-once", "The bias enters the row output once", "bias-before-sum, world size 2", "fail"),
        *("a bias that is counted P times", "python -m conformance replay --impl numpy", "Judged in 3 examples"),
    ):
        assert words in browser.panel
    assert browser.find("#panel .picture svg").is_displayed()
    assert browser.hash == f"#{CELL}"

    browser.find("#panel .panel-bar button:last-child").click()
    wait(lambda: browser.panel is None)
    assert (browser.hash, browser.focused) == ("", f"#{CELL}")


def test_a_click_beside_the_panel_closes_it(browser: Browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page)
    browser.find(link(CELL)).click()
    ActionChains(browser.driver).move_by_offset(20, 400).click().perform()

    wait(lambda: browser.panel is None)


def test_a_pass_says_what_it_is_worth(browser: Browser, page: Path) -> None:
    browser.open(page, "#copy.forward@2@sound")

    assert "never broken" in browser.panel
    assert "cells in which it could be" in browser.panel
    assert "What a pass is worth: the weakest of these examples misses a fault that is polynomial" in browser.panel
    assert "This clause elsewhere" in browser.panel


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("pair.forward.value@2@sound", "a simulation has no pair (examples: pair 1)"),
        ("row.forward.value@4@wide", "world size 4 was not run: not in --world-sizes"),
        ("row.backward.bias-grad@2@bias-on-rank-0", "Known deviation: on purpose https://example.org/1"),
        ("forward.replicas@2@bias-on-rank-0", "never broken"),
        ("backward.replicas@2@bias-on-rank-0", "Broken by the smallest case of row.backward.bias-grad."),
        (LOST, "rank 1 died: killed by signal 9 (SIGKILL)"),
    ],
)
def test_every_verdict_says_why(browser: Browser, page: Path, cell: str, words: str) -> None:
    browser.open(page, f"#{cell}")

    assert words in browser.panel


def test_the_keyboard_moves_opens_and_comes_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.skip').focus()")
    browser.press(ENTER)
    browser.run("document.querySelector('#filters input[name=impl]:last-of-type').focus()")
    browser.run("[...document.querySelectorAll('#filters input')].at(-1).focus()")
    browser.press(TAB)
    assert browser.focused == "#ranks.no-exception"

    browser.press(RIGHT, DOWN, RIGHT)
    assert browser.focused == "#ranks.alive@2@sound"
    browser.press(LEFT, UP, END)
    assert browser.focused == "#ranks.no-exception@4@loses-a-rank"
    browser.press(LEFT, DOWN, ENTER)
    assert "No rank dies" in browser.panel
    assert browser.hash == f"#{LOST}"

    browser.press(ESCAPE)
    wait(lambda: browser.panel is None)
    assert (browser.hash, browser.focused) == ("", f"#{LOST}")
    browser.press(HOME)
    assert browser.focused == "#ranks.alive"
    browser.press(" ")
    assert "No rank's process ends while it computes" in browser.panel


def test_the_arrows_step_over_what_does_not_apply(browser: Browser, page: Path) -> None:
    """Clauses about several ranks have no cell at world size 1."""
    browser.open(page)
    browser.run("document.querySelector('.matrix a[href=\"#collectives.dtype\"]').focus()")
    browser.press(RIGHT)

    assert browser.focused == "#collectives.dtype@2@sound"


def test_the_focus_is_seen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.matrix a').focus()")
    browser.press(RIGHT)

    style = browser.run("const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]")
    assert style == ["solid", "2px"]


def test_the_panel_goes_from_one_finding_to_the_next(browser: Browser, page: Path) -> None:
    browser.open(page, f"#{LOST}")
    before, after = "#panel .panel-bar button:nth-of-type(1)", "#panel .panel-bar button:nth-of-type(2)"
    assert browser.find(before).get_attribute("disabled")

    browser.find(after).click()
    assert browser.hash == "#ranks.alive@4@loses-a-rank"
    browser.find(before).click()
    assert browser.hash == f"#{LOST}"

    browser.find(after).click()
    browser.press(ESCAPE)
    wait(lambda: browser.panel is None)
    assert browser.focused == "#ranks.alive@4@loses-a-rank"


def test_back_closes_the_panel(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.find(link(CELL)).click()
    browser.driver.back()

    wait(lambda: browser.panel is None)
    browser.driver.forward()
    wait(lambda: browser.panel is not None)


def test_the_replay_line_can_be_copied(browser: Browser, page: Path) -> None:
    browser.open(page, f"#{CELL}")
    browser.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.find("#panel .copy").click()

    wait(lambda: browser.status == "Copied")
    pasted = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert pasted == browser.run("return document.querySelector('#panel .replay code').textContent")


# Links and choices


@pytest.mark.parametrize("fragment", ["#nothing", "#row.forward.bias-once@3@nobody", "#%E0%A4%A", "#&&=", "#@@"])
def test_a_link_to_nothing_opens_the_page(browser: Browser, page: Path, fragment: str) -> None:
    browser.open(page, fragment)

    assert browser.panel is None
    assert len(rows(browser)) == 86
    assert browser.logs("browser") == []


def test_choices_are_kept_in_the_link_and_said(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.find("input[name=q]").send_keys("BIAS-once")
    assert rows(browser) == ["column.forward.bias-once", "row.forward.bias-once"]
    assert browser.status.startswith("2 of 86 clauses shown, 6 of 6 implementations, ")

    browser.find("input[name=impl][value=bias-before-sum]").click()
    browser.find("input[name=verdict][value=fail]").click()
    assert rows(browser) == ["row.forward.bias-once"]
    assert browser.status == "1 of 86 clauses shown, 1 of 6 implementations, 2 of 13 findings listed below"
    assert browser.hash == "#&q=BIAS-once&impl=bias-before-sum&verdict=fail"

    browser.find(link(CELL)).click()
    assert browser.hash == f"#{CELL}&q=BIAS-once&impl=bias-before-sum&verdict=fail"
    browser.open(page, browser.hash)
    assert rows(browser) == ["row.forward.bias-once"]
    assert "bias that is counted P times" in browser.panel
    browser.press(ESCAPE)
    wait(lambda: browser.panel is None)
    assert browser.find("input[name=q]").get_attribute("value") == "BIAS-once"

    browser.find("button[type=reset]").click()
    wait(lambda: len(rows(browser)) == 86)
    assert browser.hash == ""


def test_a_layer_and_an_implementation_can_be_chosen(browser: Browser, page: Path) -> None:
    browser.open(page, "#&group=gather&impl=sound,wide")

    assert rows(browser) == ["gather.forward", "gather.backward", "gather.adjoint"]
    heads = "return [...document.querySelectorAll('.matrix th[scope=colgroup]')].filter(h => h.checkVisibility())"
    assert browser.run(f"{heads}.map(h => h.innerText)") == ["sound", "wide"]
    browser.run("document.querySelector('.matrix a[href=\"#gather.forward@4@sound\"]').focus()")
    browser.press(RIGHT)
    assert browser.focused == "#gather.forward@1@wide"


# What it costs, and who can use it


@pytest.mark.parametrize("fragment", ["", f"#{CELL}"])
def test_nothing_is_asked_of_the_network_and_nothing_fails(browser: Browser, page: Path, fragment: str) -> None:
    browser.open(page, fragment)
    browser.find("#panel, body").get_attribute("id")

    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.logs("browser") == []


def test_the_policy_stops_what_is_not_ours(browser: Browser, page: Path, tmp_path: Path) -> None:
    """A script that got into the page all the same would not run; and it would be seen in the log."""
    spoiled = tmp_path / "index.html"
    spoiled.write_text(page.read_text().replace("</main>", "<script>window.alien = 1</script></main>"))
    browser.open(spoiled)

    assert browser.run("return window.alien") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.logs("browser"))


@pytest.mark.parametrize("fragment", ["", f"#{CELL}", f"#{LOST}", "#row.forward.value@2@sound"])
def test_a_phone_scrolls_tables_and_pictures_not_the_page(browser: Browser, page: Path, fragment: str) -> None:
    browser.open(page, fragment, width=360, height=740)
    widths = browser.run(
        "const p = document.getElementById('panel'); const s = document.querySelector('.scroll');"
        "return [document.documentElement.scrollWidth, p.scrollWidth, s.scrollWidth > s.clientWidth]"
    )

    assert widths[0] <= 360
    assert widths[1] <= 360
    assert widths[2]
    assert bool(fragment) == (browser.panel is not None)


_CONTRAST = """
const clear = 'rgba(0, 0, 0, 0)';
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== clear) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const found = {};
const note = (name, value) => { found[name] = Math.min(found[name] || 99, value); };
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest('script, style, svg, .skip')) continue;
  note(`${node.tagName} ${node.className}`, ratio(getComputedStyle(node).color, behind(node)));
}
for (const svg of document.querySelectorAll('svg.tp')) {
  const paper = behind(svg), ink = getComputedStyle(svg).color;
  for (const rect of svg.querySelectorAll('rect:is(.r0, .r1, .r2, .r3, .all)')) {
    note(`svg ${rect.getAttribute('class')}`, ratio(ink, getComputedStyle(rect).fill));
  }
  for (const text of svg.querySelectorAll('text')) {
    note(`svg ${text.getAttribute('class')}`, ratio(getComputedStyle(text).fill, paper));
  }
}
return found;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("fragment", ["", f"#{CELL}", "#row.backward.bias-grad@4@bias-on-rank-0", f"#{LOST}"])
def test_all_text_can_be_read(browser: Browser, page: Path, fragment: str, dark: bool) -> None:
    """By WCAG 2.2, 4.5 to 1 at least, verdicts and pictures too, in light and in dark."""
    browser.open(page, fragment, dark=dark)
    found = browser.run(_CONTRAST)

    assert {"A fail", "A pass", "A known", "A not-run", "A unsupported"} <= set(found)
    assert any(name.startswith("svg") for name in found)
    assert {name: round(value, 2) for name, value in found.items() if value < 4.5} == {}
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(21, 23, 26)") == dark


@pytest.mark.parametrize("fragment", ["", f"#{CELL}"])
def test_everything_that_can_be_used_has_a_name(browser: Browser, page: Path, fragment: str) -> None:
    browser.open(page, fragment)
    wanted = {"dialog", "heading", "button", "image"} if fragment else {"link", "checkbox", "searchbox", "combobox"}
    wait(lambda: wanted <= {role for role, _, _ in browser.accessible()})
    told = browser.accessible()

    def named(role: str) -> list[str]:
        return [name for other, name, _ in told if other == role]

    for role in (*wanted, "link", "table", "region"):
        assert all(named(role)), role
    if fragment:
        assert named("dialog") == ["row.forward.bias-once"]
        assert named("image") == ["row on 2 ranks: who holds what, what flowed, and what came out"]
        assert any("output on rank 0: 6 elements differ" in description for _, _, description in told)
    else:
        assert "row.forward.bias-once, bias-before-sum, world size 2: fail" in named("link")
        assert "world size 2" in named("columnheader")
        assert "row.forward.bias-once" in named("rowheader")


def test_behind_the_panel_nothing_can_be_reached(browser: Browser, page: Path) -> None:
    browser.open(page, f"#{CELL}")
    inside = "const a = document.activeElement; return a === document.body || Boolean(a.closest('#panel'))"
    for _ in range(30):
        browser.press(TAB)
        assert browser.run(inside)


def test_printed_it_shows_every_failure_and_nothing_to_press(browser: Browser, page: Path) -> None:
    browser.open(page, f"#{CELL}")
    browser.media("print")
    seen = browser.run(
        "const shown = (s) => [...document.querySelectorAll(s)].map((node) => node.checkVisibility());"
        "return [shown('#failures .body'), shown('.choices, dialog, .copy'),"
        " getComputedStyle(document.querySelector('.matrix thead th')).position]"
    )

    assert len(seen[0]) == 13
    assert all(seen[0])
    assert not any(seen[1])
    assert seen[2] == "static"


def test_without_a_script_it_can_be_read(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    browser.driver.get("about:blank")
    browser.driver.get(page.as_uri())
    wait(lambda: bool(browser.driver.find_elements("css selector", "footer p")))
    text = browser.find("body").text
    browser.command("Emulation.setScriptExecutionDisabled", value=False)

    assert "output: consistent with a bias that is counted P times" in text
    assert "row P=2 batch=2 in=4 out=3 float32 bias values=small seed=1" in text
    assert "bias-on-rank-0" in text
    assert "Copy" not in text


def test_a_report_that_means_harm_is_only_read(browser: Browser, tmp_path: Path) -> None:
    from dataclasses import replace

    from page_reports import report_on
    from test_page import HOSTILE

    from conformance.reporting.page import write_page

    report = report_on("bias-before-sum")
    run = report.runs[0]
    failure = replace(run.failures[0], case=HOSTILE, text=HOSTILE, replay=HOSTILE)
    hostile = replace(
        run,
        implementation=replace(run.implementation, name=HOSTILE),
        failures=(failure, *run.failures[1:]),
        missing=(HOSTILE,),
        declined=tuple(replace(entry, reason=HOSTILE) for entry in run.declined),
    )
    browser.open(write_page(tmp_path, replace(report, runs=(hostile,))))
    for verdict in ("fail", "unsupported", "not-run"):
        browser.run("document.querySelector(arguments[0]).click()", f".matrix a.{verdict}")
        assert HOSTILE in browser.run("return document.getElementById('panel').textContent")

    assert browser.logs("browser") == []
