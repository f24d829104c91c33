"""The matrix of verdicts, and what chooses its rows and columns where there is a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape

from conformance.reporting.page.model import MEANINGS, SYMBOLS, Cell, Column, Model, css
from conformance.reporting.record import VERDICTS, ClauseText

_FEW = 9  # columns that leave room for numbers


def filters(model: Model) -> str:
    """The legend, whose entries choose verdicts where there is a script, and the other choices."""
    counts = Counter(cell.verdict for cell in model.cells.values())
    verdicts = "".join(
        f'<label class="chip" title="{escape(MEANINGS[verdict])}"><input type="checkbox" name="verdict"'
        f' value="{verdict}"><span class="mark {css(verdict)}" aria-hidden="true">{SYMBOLS[verdict]}</span>'
        f"{verdict} <small>{counts[verdict]}</small></label>"
        for verdict in VERDICTS
    )
    runs = "".join(
        f'<label class="chip"><input type="checkbox" name="impl" value="{slug}">{escape(model.name(n))}</label>'
        for n, slug in enumerate(model.slugs)
    )
    chosen = f"<fieldset><legend>Implementation</legend>{runs}</fieldset>" if len(model.slugs) > 1 else ""
    groups = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in model.groups)
    return (
        f'<form id="filters"><div class="choices"><label>Clause <input type="search" name="q" placeholder="bias-once"'
        ' autocomplete="off" spellcheck="false"></label><label>Layer or topic <select name="group"><option value="">all'
        f"</option>{groups}</select></label>"
        '<button type="reset">Show everything</button></div>'
        f"<fieldset><legend>Verdict</legend>{verdicts}</fieldset>{chosen}</form>"
    )


def matrix(model: Model) -> str:
    """Clauses by implementation and world size."""
    few = " roomy" if len(model.columns) <= _FEW else ""
    bodies = "".join(_group(model, name, clauses) for name, clauses in model.groups.items())
    return (
        '<div class="scroll" role="region" aria-label="Matrix of verdicts">'
        f'<table class="matrix{few}"><caption class="unseen">Verdict of every clause, by implementation and world size.'
        f" Arrow keys move between cells.</caption>{_head(model)}{bodies}</table></div>"
    )


def _head(model: Model) -> str:
    span = len(model.worlds)
    names = "".join(
        f'<th scope="colgroup" colspan="{span}" data-run="{n}" class="first"><span>{escape(model.name(n))}</span></th>'
        for n in range(len(model.slugs))
    )
    worlds = "".join(
        f'<th scope="col" data-run="{column.number}"{_first(column)} title="world size {column.world}">'
        f'<span class="unseen">world size </span>{column.world}</th>'
        for column in model.columns
    )
    corner = '<th rowspan="2" scope="col" class="corner">Clause<small>columns: world size</small></th>'
    return f"<thead><tr>{corner}{names}</tr><tr>{worlds}</tr></thead>"


def _first(column: Column) -> str:
    return ' class="first"' if column.first else ""


def _group(model: Model, name: str, clauses: Iterable[ClauseText]) -> str:
    width = len(model.columns)
    rows = "".join(_row(model, clause) for clause in clauses)
    head = f'<tr class="group"><th scope="rowgroup">{escape(name)}</th><td colspan="{width}"></td></tr>'
    return f'<tbody data-group="{escape(name)}">{head}{rows}</tbody>'


def _row(model: Model, clause: ClauseText) -> str:
    first, dot, rest = clause.name.partition(".")
    name = f"<i>{escape(first)}{dot}</i>{escape(rest)}"
    should = ' <small class="level should">should</small>' if clause.level == "SHOULD" else ""
    cells = "".join(
        f'<td data-run="{column.number}"{_first(column)}>{_link(model, cell) if cell else ""}</td>'
        for column, cell in zip(model.columns, model.row(clause), strict=True)
    )
    head = f'<th scope="row"><a href="#{escape(clause.name)}">{name}</a>{should}</th>'
    return f'<tr data-clause="{escape(clause.name)}">{head}{cells}</tr>'


def _link(model: Model, cell: Cell) -> str:
    n, column = cell.counts, cell.column
    numbers = {"fail": f"{n.blamed}/{n.judged}", "known": f"{n.broken}/{n.judged}", "should": f"{n.broken}/{n.judged}"}
    number = numbers.get(cell.verdict, str(n.judged) if cell.verdict == "pass" else "")
    label = f"{cell.clause.name}, {model.name(column.number)}, world size {column.world}: {cell.verdict}"
    own = "" if cell.failures else f' id="{escape(cell.address)}"'
    told = f"<small>{number}</small>" if number and len(model.columns) <= _FEW else ""
    return (
        f'<a{own} href="#{escape(cell.address)}" class="{css(cell.verdict)}" aria-label="{escape(label)}">'
        f"{SYMBOLS[cell.verdict]}{told}</a>"
    )
