"""A failure as HTML: what it looks like, how to replay it, a picture, and its text as the terminal shows it."""

from __future__ import annotations

from html import escape

from conformance.reporting.page.model import SYMBOLS, Cell, Model, css, plural
from conformance.reporting.picture import svg, tells
from conformance.reporting.record import DiagnosisText, Failure, KnownReason, ViolationText

_MOST_VIOLATIONS = 4


def failures(model: Model) -> str:
    """Every cell with a failure: it, or where it was a known deviation that."""
    found = [cell for number in range(len(model.slugs)) for cell in model.in_run(number) if cell.failures]
    if not found:
        return "<p>There are none.</p>"
    return "".join(_finding(cell, model.name(cell.column.number)) for cell in found)


def _finding(cell: Cell, name: str) -> str:
    """The failures behind a cell of the matrix, under the cell's address."""
    first = cell.failures[0]
    looks = first.diagnosis.looks[:1] or tuple(v.what for v in first.violations[:1])
    where = f"{escape(name)}, world size {cell.column.world}"
    return (
        f'<section class="finding" id="{escape(cell.address)}" data-run="{cell.column.number}"'
        f' data-clause="{escape(cell.clause.name)}" data-verdict="{cell.verdict}">'
        f'<h3><a href="#{escape(cell.address)}">'
        f'<span class="mark {css(cell.verdict)}" aria-hidden="true">{SYMBOLS[cell.verdict]}</span>'
        f'<span class="unseen">{cell.verdict}: </span><code>{escape(cell.clause.name)}</code></a>'
        f' <span class="where">{where}</span></h3>'
        f'<p class="looks">{escape(looks[0] if looks else cell.clause.title)}</p>'
        f'<div class="body">{"".join(_failure(failure) for failure in cell.failures)}</div></section>'
    )


def _failure(failure: Failure) -> str:
    of = f" of {escape(failure.item)}" if failure.item else ""
    return (
        f'<article class="failure">{_known(failure.known)}{_diagnosis(failure.diagnosis)}'
        f'<h4>Smallest case{of}</h4><p class="case"><code>{escape(failure.case)}</code></p>'
        f'<div class="replay"><code>{escape(failure.replay)}</code>'
        '<button type="button" class="copy">Copy</button></div>'
        f"{_picture(failure)}{_violations(failure.violations)}{_also(failure)}"
        f"<details><summary>As the terminal shows it</summary><pre>{escape(failure.text.strip())}</pre></details>"
        "</article>"
    )


def _known(known: KnownReason | None) -> str:
    if known is None:
        return ""
    safe = known.link.startswith(("https://", "http://"))
    link = f' <a href="{escape(known.link)}" rel="noreferrer">{escape(known.link)}</a>' if safe else escape(known.link)
    machine = f" Whether it is there depends on the machine: {escape(known.machine)}." if known.machine else ""
    return f'<p class="reason"><strong>Known deviation:</strong> {escape(known.reason)} {link}{machine}</p>'


def _diagnosis(diagnosis: DiagnosisText) -> str:
    looks = "".join(f"<li>{escape(text)}</li>" for text in diagnosis.looks)
    rows = [
        ("next", diagnosis.next),
        ("passes", f"the same case {', and '.join(diagnosis.passes)}" if diagnosis.passes else ""),
        ("probe", f"told from {diagnosis.probe}" if diagnosis.probe else ""),
        *(("rounding", text) for text in diagnosis.rounding),
    ]
    told = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    if not looks and not told:
        return ""
    head = f"<ul>{looks}</ul>" if looks else ""
    return f'<div class="diagnosis"><h4>What it looks like</h4>{head}{f"<dl>{told}</dl>" if told else ""}</div>'


def _picture(failure: Failure) -> str:
    if failure.evidence is None:
        return ""
    try:
        drawn = svg(failure.evidence, style="") if tells(failure.evidence) else ""
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # of a report that another suite wrote
        return "<p>There is evidence of another form, which this page cannot draw.</p>"
    if not drawn:
        return ""
    label = f"Picture of {escape(failure.case)}"
    return (
        f'<h4>What every rank had</h4><div class="picture" tabindex="0" role="group" aria-label="{label}">{drawn}</div>'
    )


def _violations(violations: tuple[ViolationText, ...]) -> str:
    if not violations:
        return ""
    rows = "".join(_violation(violation) for violation in violations[:_MOST_VIOLATIONS])
    rest = len(violations) - _MOST_VIOLATIONS
    more = f"<p>and {plural(rest, 'more', 'more')}</p>" if rest > 0 else ""
    return f"<h4>What is broken</h4>{rows}{more}"


def _violation(violation: ViolationText) -> str:
    who = "ranks" if violation.rank is None else f"rank {violation.rank}"
    step = f" (in the {violation.step} run)" if violation.step not in ("", "first") else ""
    sides = "".join(
        f"<dt>{label}</dt><dd><pre>{escape(text)}</pre></dd>"
        for label, text in (("expected", violation.expected), ("got", violation.got))
        if text
    )
    return f'<p class="violation"><strong>{who}</strong> {escape(violation.what + step)}</p>' + (
        f'<dl class="sides">{sides}</dl>' if sides else ""
    )


def _also(failure: Failure) -> str:
    lost = f"<h4>Lost ranks</h4><pre>{escape(chr(10).join(failure.lost))}</pre>" if failure.lost else ""
    links = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in failure.also)
    return lost + (f'<p class="also">Also broken by this case: {links}</p>' if links else "")
