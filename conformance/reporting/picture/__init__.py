"""A failure as a picture: who holds which slice, what flowed between the ranks, and expected beside got.

It reads from top to bottom, as the step ran. Every rank has a lane and a colour of its own. What is wrong is framed,
marked and named, so that nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from conformance.reporting.evidence.flow import is_wrong
from conformance.reporting.picture.draw import Part, above, line, lines
from conformance.reporting.picture.glyphs import compared
from conformance.reporting.picture.story import heads, section, story, x_of
from conformance.reporting.picture.words import Evidence, symbol, words

STYLE = (files(__package__) / "style.css").read_text(encoding="utf-8")
_COMPARED = 3


def svg(evidence: Evidence, style: str = STYLE) -> str:
    """The picture as an `svg` element; with `style=""`, whoever embeds several of them brings STYLE once."""
    told = above([heads(evidence), *story(evidence)], 10)
    body = above([told, *_details(evidence)], 14)
    width, height = max(body.width, x_of(evidence, evidence["P"])) + 8, body.height + 8
    lanes = "".join(
        line(x_of(evidence, r) - 12, 0, x_of(evidence, r) - 12, told.height, "lane") for r in range(evidence["P"])
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


def _details(evidence: Evidence) -> Iterator[Part]:
    wrong = [t for t in evidence["tensors"] if any(r["differs"] or (r["note"] and _unlike(r)) for r in t["ranks"])]
    for tensor in wrong[:_COMPARED]:
        name = f"{symbol(tensor['name'])} {tensor['name']}"
        yield above([section(evidence, f"{name}: expected beside got"), compared(tensor)], 6)
    if len(wrong) > _COMPARED:
        yield lines([("wrong too: " + ", ".join(tensor["name"] for tensor in wrong[_COMPARED:]), "q")])


def _unlike(told: Mapping[str, Any]) -> bool:
    """Whether a note is about numbers; the row above says all of a tensor that was written to, or has another dtype."""
    return told["got"] != told["expected"] and told["note"] != "written to"
