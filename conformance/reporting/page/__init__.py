"""A report as one page: a matrix of verdicts, and behind every cell what it is worth or why it fails.

The page is one file that asks for nothing: its style, script and data stand in it, and its own policy forbids the rest.
What can be read is in the HTML; the script adds choosing, deep links and a panel.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from conformance.coverage.worth import FAULT
from conformance.reporting.page.cards import cards
from conformance.reporting.page.failures import failures
from conformance.reporting.page.frame import footer, lede, requirements, title
from conformance.reporting.page.matrix import filters, matrix
from conformance.reporting.page.model import SYMBOLS, Model
from conformance.reporting.picture import STYLE
from conformance.reporting.record import Report
from conformance.reporting.record.plain import write_text

FILE = "index.html"


def write_page(folder: Path, report: Report) -> Path:
    """Write index.html into a folder that is there; returns its path. The same report gives the same bytes."""
    page = Path(folder) / FILE
    write_text(page, render(report))
    return page


def render(report: Report) -> str:
    """The page as a text."""
    model = Model(report)
    style, script = _asset("style.css") + STYLE, _asset("script.js")
    return Template(_asset("template.html")).substitute(
        title=escape(title(model)),
        lede=lede(model),
        cards=cards(model),
        filters=filters(model),
        matrix=matrix(model),
        failures=failures(model),
        requirements=requirements(model),
        footer=footer(model),
        data=embedded(_data(model)),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: no `<` in it, so neither an end of the element nor a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(model: Model) -> dict[str, Any]:
    """What the panel says of cells, beside what the HTML has."""
    cells: dict[str, list[Any]] = {}
    also = _also(model)
    for cell in model.cells.values():
        n, seen = cell.counts, cell.coverage
        covered = [seen.visited, seen.reachable, seen.values, seen.miss] if seen else [None] * 4
        others = [also[cell.address]] if cell.address in also else []
        cells[cell.address] = [cell.verdict, n.judged, n.broken, n.blamed, n.declined, *covered, *others]
    runs = [
        {
            "slug": slug,
            "name": model.name(number),
            "missing": list(run.missing),
            "declined": [[d.reason, d.layer, d.world, d.examples] for d in run.declined],
        }
        for number, (run, slug) in enumerate(zip(model.report.runs, model.slugs, strict=True))
    ]
    clauses = {clause.name: [clause.level, clause.title, clause.text, clause.layer] for clause in model.report.clauses}
    return {"runs": runs, "worlds": model.worlds, "clauses": clauses, "cells": cells, "marks": SYMBOLS, "fault": FAULT}


def _also(model: Model) -> dict[str, list[str]]:
    """Address of a cell -> the cells whose failures broke its clause too."""
    found: dict[str, list[str]] = {}
    for cell in model.cells.values():
        for name in dict.fromkeys(name for failure in cell.failures for name in failure.also):
            other = model.cells.get((name, cell.column.number, cell.column.world))
            if other:
                found.setdefault(other.address, []).append(cell.address)
    return found


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
