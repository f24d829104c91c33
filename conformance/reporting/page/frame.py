"""What stands around the matrix: the outcome, the requirements, and how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from conformance.reporting.page.cards import broken, reasons
from conformance.reporting.page.model import Model, listed, plural
from conformance.reporting.record import ClauseText


def title(model: Model) -> str:
    """What the page is about."""
    names = list(dict.fromkeys(run.implementation.name for run in model.report.runs))
    who = listed(names) if len(names) <= 3 else f"{len(names)} implementations"
    return f"{who or 'Nothing'} against the contract of tensor-parallel layers"


def lede(model: Model) -> str:
    """The outcome in two sentences, and that a part is not the whole."""
    runs = range(len(model.report.runs))
    failing = [n for n in runs if broken(model.in_run(n))]
    clauses, worlds = plural(len(model.report.clauses), "clause"), listed(model.worlds)
    text = f"{clauses}, judged on ranks at world size{'s' * (len(model.worlds) > 1)} {worlds}. "
    if not runs:
        text = "There is no run in this report."
    elif len(runs) == 1:
        told = plural(len(broken(model.in_run(0))), "clause fails", "clauses fail")
        known = len(broken(model.in_run(0), "known"))
        text += told if failing else "No clause that was judged fails"
        text += (
            f"{', besides' if failing else ', but for'} {known} that {'is' if known == 1 else 'are'} known."
            if known
            else "."
        )
    else:
        known_too = sum(bool(broken(model.in_run(n), "known")) for n in runs)
        verb = "breaks" if len(failing) == 1 else "break"
        text += f"{len(failing)} of {len(runs)} runs {verb} a clause that must be kept"
        text += (
            f" and is not listed as known; {known_too} {'breaks' if known_too == 1 else 'break'} some that are."
            if known_too
            else "."
        )
    return f'<p class="lede">{escape(text)}</p>{_partial(model)}'


def _partial(model: Model) -> str:
    """That runs are not all of the suite; of a single one also why."""
    partial = [n for n, run in enumerate(model.report.runs) if not run.complete]
    if not partial:
        return ""
    if len(model.report.runs) == 1:
        told = f"This run is not all of the suite.{reasons(model.report.runs[0])}"
    else:
        verb = "is" if len(partial) == 1 else "are"
        names = escape(listed([model.name(n) for n in partial]))
        told = f"{len(partial)} of {len(model.report.runs)} runs {verb} not all of the suite: {names}."
    return f'<div class="partial"><strong>Partial.</strong> {told}</div>'


def requirements(model: Model) -> str:
    """All clauses with their texts."""
    return "".join(_requirements(name, clauses) for name, clauses in model.groups.items())


def _requirements(name: str, clauses: Iterable[ClauseText]) -> str:
    texts = "".join(
        f'<dt id="{escape(clause.name)}"><code>{escape(clause.name)}</code>'
        f' <small class="level {escape(clause.level.lower())}">{escape(clause.level)}</small></dt>'
        f"<dd><strong>{escape(clause.title)}.</strong> {escape(clause.text)}</dd>"
        for clause in clauses
    )
    return f"<details><summary>{escape(name)}</summary><dl>{texts}</dl></details>"


def footer(model: Model) -> str:
    """How to read it, and which suite judged."""
    suite = model.report.suite
    return "".join(f"<p>{line}</p>" for line in _closing(suite.version, suite.contract))


def _closing(version: str, contract: str) -> Iterator[str]:
    yield (
        "A cell counts examples in which its clause could have failed. A pass says that none of them did, and no more: "
        "each cell states how much of what could be visited was, and how likely a draw misses a fault. What an "
        "implementation does not have is unsupported, what was not asked for is not run; neither counts as passed."
    )
    yield (
        f"Suite torch-tp {escape(version)}, contract <code>{escape(contract)}</code>. Truth: one device, unsharded, "
        "float64, by JAX. The same data as JSON: <code>report.json</code>, beside this page."
    )
