"""The rows of a picture from top to bottom, each with a lane for every rank: tensors, collectives, how ranks ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conformance.reporting.evidence.flow import Exchange, exchanges
from conformance.reporting.picture.draw import Part, above, beside, line, lines, path, rect, text
from conformance.reporting.picture.glyphs import colour, cut_along, held, whole
from conformance.reporting.picture.words import STAGES, Evidence, placed, standing, symbol

GUTTER, WHOLE = 170.0, 96.0
_LANES = {1: 190.0, 2: 190.0}
_LANE, _DOT = 130.0, 12.0
_JOBS = {"all-reduce": "sum of", "all-gather": "join of", "reduce-scatter": "sum, cut, of", "broadcast": "copy of"}


def _lane(evidence: Evidence) -> float:
    return _LANES.get(evidence["P"], _LANE)


def x_of(evidence: Evidence, rank: int) -> float:
    """Where the lane of a rank begins; of the number of ranks, where the last one ends."""
    return GUTTER + WHOLE + rank * _lane(evidence)


def heads(evidence: Evidence) -> Part:
    """What stands above the lanes."""
    places = [(GUTTER, lines([("whole", "b")]))]
    for r, number in enumerate(evidence["ranks"]):
        swatch = rect(0, 1, 12, 12, colour(r)) + rect(0, 1, 12, 12, "edge")
        elsewhere = f" (global {number})" if number != r else ""
        places.append((x_of(evidence, r), Part(swatch + text(f"rank {r}{elsewhere}", "b", 18), 90, 15)))
    return beside(places)


def story(evidence: Evidence) -> Iterator[Part]:
    """What is given, what flowed in each phase, and what came of it; of lost ranks, how far they came."""
    rows = {tensor["name"]: _row(evidence, tensor) for tensor in evidence["tensors"]}
    gradients = [name for name in rows if name.startswith("gradient of ")]
    late = {"output", "upstream gradient", *gradients}
    yield from (row for name, row in rows.items() if name not in late)
    if "fates" in evidence:
        yield from _lost(evidence)
        return
    for phase, before, after in (("forward", (), ("output",)), ("backward", ("upstream gradient",), gradients)):
        if any(name in rows for name in (*before, *after)):
            yield section(evidence, phase)
            yield from (rows[name] for name in before if name in rows)
            yield from _flowed(evidence, phase)
            yield from (rows[name] for name in after if name in rows)


def _flowed(evidence: Evidence, phase: str) -> Iterator[Part]:
    """The collectives of a phase, or that there are none."""
    found = exchanges(evidence, phase) if evidence["flow"] is not None else []
    yield from (_exchange(evidence, entry) for entry in found)
    if not found and evidence["P"] > 1:
        none = "no collective, and none asked for" if evidence["flow"] is not None else "collectives were not observed"
        yield lines([(none, "q")])


def section(evidence: Evidence, name: str) -> Part:
    """A heading, with a line across the lanes."""
    step = f", {evidence['step']} run" if evidence["step"] not in ("", "first") else ""
    end = x_of(evidence, evidence["P"])
    start = max(GUTTER, len(name + step) * 7.2 + 10)
    return Part(text(name + step, "b q", 0, 12) + line(start, 8, end, 8, "lane"), end, 16)


def _row(evidence: Evidence, tensor: Mapping[str, Any]) -> Part:
    """A tensor: its name and shape, the whole, and what every rank had."""
    label = lines(
        [(f"{symbol(tensor['name'])} {tensor['name']}", "b"), (str(tensor["shape"]), "m q"), (placed(tensor), "q")]
    )
    places = [(0.0, label), (GUTTER, whole(tensor, evidence["P"]))]
    drawn = held(tensor, evidence["P"], _lane(evidence) - 32)
    places += [(x_of(evidence, r), _on_rank(tensor, r, part)) for r, part in enumerate(drawn)]
    return beside(places)


def _on_rank(tensor: Mapping[str, Any], rank: int, drawn: Part) -> Part:
    told = tensor["ranks"][rank]
    wrong = bool(told["differs"] or told["note"])
    looked = told["got"] is not None or wrong
    badge = Part(text("\u2260" if wrong else "\u2713", "b bad" if wrong else "q") if looked else "", 12, 15)
    below = [(str(told["shape"]), "m q")] if cut_along(tensor) is not None and told["shape"] else []
    if told["differs"]:
        below.append(("wrong", "bad"))
    below += [(part, "bad") for part in told["note"].replace(", not", ",|not").split("|") if part != "missing"]
    return above([beside([(0, drawn), (drawn.width + 6, badge)], middle=True), lines(below)], 2)


def _exchange(evidence: Evidence, entry: Exchange) -> Part:
    """A collective across the lanes: on which ranks, and whether it was asked for."""
    P, there = evidence["P"], set(entry.ranks)
    style = "over" if not entry.asked else "go"
    dots = [x_of(evidence, r) + _DOT for r in range(P)]
    marks = ""
    for r, x in enumerate(dots):
        filled = ("dot" if entry.asked else "overdot") if r in there else "gone"
        marks += f'<circle cx="{x:.0f}" cy="24" r="4.5" class="{filled}"/>'
        if r + 1 < P:
            both = r in there and r + 1 in there
            x, to = x + 7, dots[r + 1] - 7
            marks += line(x, 24, to, 24, style if both else "gone")
            marks += path(f"M{x + 5:.0f} 20l-5 4 5 4M{to - 5:.0f} 20l5 4-5 4", style) if both else ""
    job = _JOBS.get(entry.kind, "")
    label = " ".join(filter(None, (job, f"{entry.bytes} B", entry.dtype, "per rank")))
    marks += text(label, "m c", (dots[0] + max(dots[-1], dots[0] + 160)) / 2, 13)
    said, classes = standing(entry, P)
    gutter = lines([(entry.kind, "b"), (said, classes)])
    return Part(gutter.svg + marks, x_of(evidence, P), 34)


def _lost(evidence: Evidence) -> Iterator[Part]:
    """The last collectives by number, what each rank did in them, and what became of it."""
    yield section(evidence, "collectives")
    entries = {(entry["number"], entry["rank"]): entry for entry in evidence["flow"]}
    numbers = sorted({number for number, _ in entries})[-4:]
    if not numbers:
        yield lines([("no rank entered a collective", "q")])
    for number in numbers:
        kinds = {entry["kind"] for (n, _), entry in entries.items() if n == number}
        here = evidence["parts"] == number
        label = lines([(f"#{number} {kinds.pop() if len(kinds) == 1 else ''}", "b"), ("the ranks part" * here, "bad")])
        places = [(0.0, label)]
        for r in range(evidence["P"]):
            entry = entries.get((number, r))
            places.append((x_of(evidence, r), _entered(entry) if entry else _absent()))
        yield beside(places)
    fates = [(x_of(evidence, r), _fate(fate)) for r, fate in enumerate(evidence["fates"])]
    yield beside([(0, lines([("in the end", "b")])), *fates])


def _entered(entry: Mapping[str, Any]) -> Part:
    stage = STAGES.get(entry["stage"], entry["stage"])
    told = lines([(entry["kind"], ""), (f"{entry['bytes']} B {entry['dtype']}", "m q"), (stage, "b")])
    bar = line(0, 2, 0, told.height, "gone" if entry["stage"] in ("waits", "failed") else "go")
    return beside([(0, Part(bar, 0, told.height)), (8, told)])


def _absent() -> Part:
    return Part(rect(0, 1, 86, 18, "void") + text("never came", "bad c", 43, 14), 86, 20)


def _fate(fate: str) -> Part:
    if fate == "returned":
        return lines([("\u2713 returned", "q")])
    said, why = ("stopped,", "another failed") if fate == "victim" else (fate, "")
    return lines([(f"\u2260 {said}", "b bad"), (why, "bad")])
