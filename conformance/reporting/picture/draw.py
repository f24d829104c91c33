"""Pieces of SVG that know their size, and ways to put them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

CHARACTER = 6.7  # the width of one, in the fixed-width face of class m
LINE = 15.0


@dataclass(frozen=True)
class Part:
    """Some SVG with its origin at the top left."""

    svg: str = ""
    width: float = 0.0
    height: float = 0.0


def at(part: Part, x: float, y: float) -> str:
    """A part moved to a place."""
    if not part.svg:
        return ""
    return part.svg if not x and not y else f'<g transform="translate({_n(x)} {_n(y)})">{part.svg}</g>'


def above(parts: Iterable[Part], gap: float = 0.0) -> Part:
    """Parts one below the other."""
    svg, y, width = "", 0.0, 0.0
    for part in parts:
        svg, y, width = svg + at(part, 0, y), y + part.height + gap, max(width, part.width)
    return Part(svg, width, max(y - gap, 0.0))


def beside(places: Sequence[tuple[float, Part]], middle: bool = False) -> Part:
    """Parts side by side, each at its x; `middle`: on one line through their middles."""
    height = max((part.height for _, part in places), default=0.0)
    svg = "".join(at(part, x, (height - part.height) / 2 if middle else 0) for x, part in places)
    return Part(svg, max((x + part.width for x, part in places), default=0.0), height)


def text(words: str, classes: str = "", x: float = 0.0, y: float = 11.0) -> str:
    """One line of text with its baseline at y; of class c, with its middle at x."""
    named = f' class="{classes}"' if classes else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{named}>{escape(words, quote=False)}</text>'


def lines(rows: Iterable[tuple[str, str]]) -> Part:
    """Lines of (text, classes), as wide as fixed-width characters would be."""
    kept = [(words, classes) for words, classes in rows if words]
    svg = "".join(text(words, classes, 0, 11 + n * LINE) for n, (words, classes) in enumerate(kept))
    return Part(svg, max((len(words) for words, _ in kept), default=0) * CHARACTER, len(kept) * LINE)


def rect(x: float, y: float, width: float, height: float, classes: str) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{classes}"/>'


def path(steps: str, classes: str) -> str:
    return f'<path d="{steps}" class="{classes}"/>'


def line(x: float, y: float, to_x: float, to_y: float, classes: str) -> str:
    return path(f"M{_n(x)} {_n(y)}L{_n(to_x)} {_n(to_y)}", classes)


def ruled(width: float, height: float, rows: int, columns: int, classes: str = "thin") -> str:
    """The lines between the cells of a grid; none where they would stand too close."""
    steps = [f"M{_n(width * j / columns)} 0V{_n(height)}" for j in range(1, columns) if width / columns >= 5]
    steps += [f"M0 {_n(height * i / rows)}H{_n(width)}" for i in range(1, rows) if height / rows >= 5]
    return path("".join(steps), classes) if steps else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
