"""A card for each run: what was examined, with which versions, how it came out, and whether it was all of the suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape

from conformance.reporting.page.model import SYMBOLS, Cell, Model, css, listed, plural
from conformance.reporting.record import VERDICTS, Run, Verdict

_NAMED = 4


def cards(model: Model) -> str:
    return "".join(_card(model, number, run) for number, run in enumerate(model.report.runs))


def _card(model: Model, number: int, run: Run) -> str:
    cells = model.in_run(number)
    counts = Counter(cell.verdict for cell in cells)
    failing, known = broken(cells), broken(cells, "known")
    bad = failing or run.intermittent
    told = plural(len(failing), "clause fails", "clauses fail") if failing else "no clause fails"
    if known:
        told = (
            f"{told}; {len(known)} more as known" if failing else f"{plural(len(known), 'clause')} broken, all as known"
        )
    if run.intermittent:
        told += f"; {plural(len(run.intermittent), 'failure')} did not come back"
    mark = SYMBOLS["fail" if bad else "known" if known else "pass" if counts["pass"] else "not run"]
    told = told if counts["pass"] or bad else "nothing was judged"
    state = "" if run.complete else '<p class="badge">partial</p>'
    state_class = " bad" if bad else " known" if known else ""
    return (
        f'<article class="card{state_class}"><header><h3>{escape(model.name(number))}</h3>{state}</header>'
        f'<p class="outcome"><span aria-hidden="true">{mark}</span> {escape(told)}</p>'
        f"{_links(failing or known)}{_bar(counts)}{_missing(model, run)}{_facts(run)}{_intermittent(run)}</article>"
    )


def _bar(counts: Counter[Verdict]) -> str:
    """How many cells of the matrix have which verdict, as a bar and in words."""
    total, x, bars = sum(counts.values()) or 1, 0.0, ""
    for verdict in VERDICTS:
        width = 100 * counts[verdict] / total
        bars += f'<rect class="{css(verdict)}" x="{x:.2f}" width="{width:.2f}" height="4"/>' if width else ""
        x += width
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    drawn = f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
    return f'{drawn}<p class="tally">{words or "no cells"}</p>'


def _missing(model: Model, run: Run) -> str:
    if run.complete or len(model.report.runs) == 1:
        return ""
    return f'<div class="missing"><p>Not all of the suite was run:</p>{reasons(run)}</div>'


def reasons(run: Run) -> str:
    """Why a run is not all of the suite."""
    return f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in run.missing)}</ul>"


def broken(cells: Iterable[Cell], verdict: Verdict = "fail") -> dict[str, Cell]:
    """Each clause that has the verdict somewhere, with the first cell in which it does."""
    found: dict[str, Cell] = {}
    for cell in cells:
        if cell.verdict == verdict:
            found.setdefault(cell.clause.name, cell)
    return found


def _links(failing: Mapping[str, Cell]) -> str:
    links = [f'<a href="#{escape(cell.address)}">{escape(name)}</a>' for name, cell in failing.items()]
    more = [f"and {len(links) - _NAMED} more"] if len(links) > _NAMED else []
    return f'<p class="broken">{", ".join(links[:_NAMED] + more)}</p>' if links else ""


def _facts(run: Run) -> str:
    who, how, items = run.implementation, run.options, run.items
    examples = sum(run.examples.values())
    each = ", ".join(str(run.examples[world]) for world in sorted(run.examples, key=int))
    rows = [
        ("adapter", who.impl if who.impl != who.name else ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in who.versions.items())),
        ("ranks", f"{how.backend} on {how.device}, world sizes {listed(how.world_sizes)}"),
        ("examples", f"{examples} ({each}), of {items.ran} of {plural(items.collected, 'item')}"),
        ("draws", f"profile {how.profile}, seed {how.seed}"),
        ("otherwise", "; ".join(who.semantics)),
        ("strict", "a SHOULD counts as a MUST" if who.strict else ""),
        ("machine", "; ".join(sighting.line() for sighting in run.sightings)),
    ]
    told = "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows if text) + "</dl>"
    flags = ", ".join(f"{name}={value}" for name, value in who.flags.items())
    return told + (f"<details><summary>Numerics</summary><p>{escape(flags)}</p></details>" if flags else "")


def _intermittent(run: Run) -> str:
    if not run.intermittent:
        return ""
    texts = "".join(f"<pre>{escape(text)}</pre>" for text in run.intermittent)
    return f"<details><summary>Failures that did not come back (they fail the run)</summary>{texts}</details>"
