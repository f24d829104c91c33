"""A failure as a picture: who holds which slice, what flowed between the ranks, and expected beside got.

It reads from top to bottom, as the step ran. Every rank has a lane and a colour of its own. What is wrong is framed,
marked and named, so that nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from conformance.reporting.draw import Part, above, beside, line, lines, path, rect, text
from conformance.reporting.flow import Exchange, exchanges, is_wrong
from conformance.reporting.glyphs import colour, compared, cut_along, held, whole

GUTTER, WHOLE = 170.0, 96.0
_LANES = {1: 190.0, 2: 190.0}
_LANE, _DOT = 130.0, 12.0
_COMPARED = 3
_SYMBOLS = {"input": "X", "weight": "W", "bias": "b", "weight2": "W2", "bias2": "b2", "output": "Y"}
_JOBS = {"all-reduce": "sum of", "all-gather": "join of", "reduce-scatter": "sum, cut, of", "broadcast": "copy of"}
_STAGES = {"": "entered", "waits": "waits in it", "finished": "finished", "failed": "failed"}
Evidence = Mapping[str, Any]

STYLE = (files("conformance.reporting") / "picture.css").read_text(encoding="utf-8")


def svg(evidence: Evidence, style: str = STYLE) -> str:
    """The picture as an `svg` element; with `style=""`, whoever embeds several of them brings STYLE once."""
    story = above([_heads(evidence), *_story(evidence)], 10)
    body = above([story, *_details(evidence)], 14)
    width, height = max(body.width, _x(evidence, evidence["P"])) + 8, body.height + 8
    lanes = "".join(
        line(_x(evidence, r) - 12, 0, _x(evidence, r) - 12, story.height, "lane") for r in range(evidence["P"])
    )
    sheet = f"<style>{style}</style>" if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tp" role="img" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="-4 -4 {width:.0f} {height:.0f}"><title>{escape(_title(evidence))}</title>'
        f"<desc>{escape(' '.join(words(evidence)))}</desc>{sheet}{lanes}{body.svg}</svg>"
    )


def tells(evidence: Evidence) -> bool:
    """Whether anything in it is wrong: not every clause is about tensors or collectives."""
    marked = any(rank["differs"] or rank["note"] for tensor in evidence["tensors"] for rank in tensor["ranks"])
    return marked or "fates" in evidence or is_wrong(evidence)


def _title(evidence: Evidence) -> str:
    ranks = "1 rank" if evidence["P"] == 1 else f"{evidence['P']} ranks"
    return f"{evidence['layer']} on {ranks}: who holds what, what flowed, and what came out"


def _lane(evidence: Evidence) -> float:
    return _LANES.get(evidence["P"], _LANE)


def _x(evidence: Evidence, rank: int) -> float:
    return GUTTER + WHOLE + rank * _lane(evidence)


def _heads(evidence: Evidence) -> Part:
    places = [(GUTTER, lines([("whole", "b")]))]
    for r, number in enumerate(evidence["ranks"]):
        swatch = rect(0, 1, 12, 12, colour(r)) + rect(0, 1, 12, 12, "edge")
        elsewhere = f" (global {number})" if number != r else ""
        places.append((_x(evidence, r), Part(swatch + text(f"rank {r}{elsewhere}", "b", 18), 90, 15)))
    return beside(places)


# From top to bottom


def _story(evidence: Evidence) -> Iterator[Part]:
    rows = {tensor["name"]: _row(evidence, tensor) for tensor in evidence["tensors"]}
    gradients = [name for name in rows if name.startswith("gradient of ")]
    late = {"output", "upstream gradient", *gradients}
    yield from (row for name, row in rows.items() if name not in late)
    if "fates" in evidence:
        yield from _lost(evidence)
        return
    for phase, before, after in (("forward", (), ("output",)), ("backward", ("upstream gradient",), gradients)):
        if any(name in rows for name in (*before, *after)):
            yield _section(evidence, phase)
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


def _section(evidence: Evidence, name: str) -> Part:
    step = f", {evidence['step']} run" if evidence["step"] not in ("", "first") else ""
    end = _x(evidence, evidence["P"])
    start = max(GUTTER, len(name + step) * 7.2 + 10)
    return Part(text(name + step, "b q", 0, 12) + line(start, 8, end, 8, "lane"), end, 16)


def _row(evidence: Evidence, tensor: Mapping[str, Any]) -> Part:
    """A tensor: its name and shape, the whole, and what every rank had."""
    label = lines(
        [(f"{symbol(tensor['name'])} {tensor['name']}", "b"), (str(tensor["shape"]), "m q"), (_placed(tensor), "q")]
    )
    places = [(0.0, label), (GUTTER, whole(tensor, evidence["P"]))]
    drawn = held(tensor, evidence["P"], _lane(evidence) - 32)
    places += [(_x(evidence, r), _on_rank(tensor, r, part)) for r, part in enumerate(drawn)]
    return beside(places)


def symbol(name: str) -> str:
    """The letter of the contract for a tensor."""
    if name == "upstream gradient":
        return "G"
    of = name.removeprefix("gradient of ")
    return ("d" if of != name else "") + _SYMBOLS.get(of, of)


def _placed(tensor: Mapping[str, Any]) -> str:
    if tensor["placement"] in ("R", "P"):
        return "whole on every rank" if tensor["placement"] == "R" else "a term on each rank"
    dim = cut_along(tensor)
    return "cut along dimension " + str(dim) if len(tensor["shape"]) > 1 else "cut"


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
    dots = [_x(evidence, r) + _DOT for r in range(P)]
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
    return Part(gutter.svg + marks, _x(evidence, P), 34)


def standing(entry: Exchange, P: int) -> tuple[str, str]:
    """A collective beside what the contract asks for, in words, and their class."""
    absent = ", ".join(str(r) for r in range(P) if r not in entry.ranks)
    if entry.others:
        return f"\u2260 with rank {entry.others} of another group", "bad"
    if not entry.asked:
        return "! not asked for" + (f", not on {absent}" if absent else ""), "extra"
    if not entry.ranks:
        return "\u2260 asked for, never made", "bad"
    return (f"\u2260 asked for, not on {absent}", "bad") if absent else ("\u2713 asked for", "q")


def _lost(evidence: Evidence) -> Iterator[Part]:
    """The last collectives by number, what each rank did in them, and what became of it."""
    yield _section(evidence, "collectives")
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
            places.append((_x(evidence, r), _entered(entry) if entry else _absent()))
        yield beside(places)
    fates = [(_x(evidence, r), _fate(fate)) for r, fate in enumerate(evidence["fates"])]
    yield beside([(0, lines([("in the end", "b")])), *fates])


def _entered(entry: Mapping[str, Any]) -> Part:
    stage = _STAGES.get(entry["stage"], entry["stage"])
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


# In numbers, and in words


def _details(evidence: Evidence) -> Iterator[Part]:
    wrong = [t for t in evidence["tensors"] if any(r["differs"] or (r["note"] and _unlike(r)) for r in t["ranks"])]
    for tensor in wrong[:_COMPARED]:
        name = f"{symbol(tensor['name'])} {tensor['name']}"
        yield above([_section(evidence, f"{name}: expected beside got"), compared(tensor)], 6)
    if len(wrong) > _COMPARED:
        yield lines([("wrong too: " + ", ".join(tensor["name"] for tensor in wrong[_COMPARED:]), "q")])


def _unlike(told: Mapping[str, Any]) -> bool:
    """Whether a note is about numbers; the row above says all of a tensor that was written to, or has another dtype."""
    return told["got"] != told["expected"] and told["note"] != "written to"


def words(evidence: Evidence) -> list[str]:
    """The picture in sentences."""
    told = [f"{tensor['name']} {tensor['shape']}: {_placed(tensor)}." for tensor in evidence["tensors"]]
    for r, fate in enumerate(evidence.get("fates", ())):
        last = [entry for entry in evidence["flow"] if entry["rank"] == r][-1:]
        came = "".join(f", last in #{e['number']} {e['kind']} ({_STAGES.get(e['stage'], '')})" for e in last)
        told.append(f"rank {r} {fate}{came}.")
    for phase in ("forward", "backward"):
        for entry in exchanges(evidence, phase) if evidence["flow"] is not None else ():
            told.append(f"{phase}: {entry.kind} of {entry.bytes} bytes, {standing(entry, evidence['P'])[0][2:]}.")
    for tensor in evidence["tensors"]:
        for r, rank in enumerate(tensor["ranks"]):
            if rank["differs"] or rank["note"]:
                what = rank["note"] or f"{rank['differs']} elements differ"
                told.append(f"{tensor['name']} on rank {r}: {what}.")
    return told
