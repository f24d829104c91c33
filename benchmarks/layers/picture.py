"""Ratios as a picture: one SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from benchmarks.layers.figures import Spread

Panel = Mapping[str, Spread]  # contender -> its ratio to the floor

_NAMES, _PLOT, _NUMBERS, _ROW, _HEAD = 72, 190, 48, 18, 34
_WIDE: Final = _NAMES + _PLOT + _NUMBERS + 16
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.t{fill:#666;font-size:10px}"
    "line{stroke:#4a6fa5}.axis{stroke:#ddd}.bar{stroke-width:5;stroke-opacity:.45}circle{fill:#4a6fa5}"
    ".me line{stroke:#c0392b}.me circle{fill:#c0392b}"
)


def draw(title: str, panels: Sequence[Sequence[tuple[str, Panel]]]) -> str:
    """A grid of panels; in each a line of a contender from the lower to the upper quartile, a dot at the median.

    The axis is logarithmic and the same in all panels; torch_tp is red.
    """
    most = max((s.upper for row in panels for _, panel in row for s in panel.values()), default=2.0)
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50, 100) if tick <= most * 1.05]
    lines, top = [], 30
    for row in panels:
        tall = max(len(panel) for _, panel in row) * _ROW + _HEAD + 24
        for column, (name, panel) in enumerate(row):
            lines += _panel(name, panel, column * _WIDE + 8, top, most, ticks)
        top += tall
    width = max(map(len, panels)) * _WIDE + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{top}" fill="white"/>',
            f'<text class="h" x="8" y="18">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def _panel(name: str, panel: Panel, left: float, top: float, most: float, ticks: Sequence[float]) -> list[str]:
    start, bottom = left + _NAMES, top + _HEAD - 8 + len(panel) * _ROW

    def place(ratio: float) -> float:
        low, high = math.log(0.9), math.log(max(most, 1.1))
        return start + _PLOT * (math.log(max(ratio, 0.9)) - low) / (high - low)

    lines = [f'<text class="h" x="{left}" y="{top + 16}">{escape(name)}</text>']
    for tick in ticks:
        x = f"{place(tick):.1f}"
        lines.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{top + _HEAD - 8}" y2="{bottom}"/>')
        lines.append(f'<text class="t" x="{x}" y="{bottom + 11}" text-anchor="middle">{tick:g}</text>')
    for number, (contender, s) in enumerate(panel.items()):
        y = top + _HEAD + number * _ROW
        ends = f'x1="{place(s.lower):.1f}" x2="{place(s.upper):.1f}" y1="{y}" y2="{y}"'
        lines += [
            f'<g class="{"me" if contender == "torch_tp" else ""}">',
            f'<text x="{left}" y="{y + 4}">{escape(contender)}</text>',
            f'<line class="bar" {ends}/><circle cx="{place(s.middle):.1f}" cy="{y}" r="3.5"/>',
            f'<text x="{start + _PLOT + 8}" y="{y + 4}">{s.middle:.2f}</text></g>',
        ]
    return lines
