"""Where lost ranks stood, for people: the innermost call first, without the calls that every layer has below it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_FRAMES = 10
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line \d+,? in ')
_HEADS = ("Thread ", "Current thread ", "Fatal Python error")
_ROOM = Path(__file__).parents[2]
_OURS = (f"{_ROOM / 'adapters'}/", f"{_ROOM / 'ranks'}/")
_TORCH = "-packages/torch/"


@dataclass(frozen=True)
class Frame:
    """One call.

    Attributes:
        text: its file, line and function as Python writes them; source: the line's code, where it is known.
    """

    file: str
    text: str
    source: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is one of the suite's own."""
        return self.file.startswith(_OURS)


def shown(stack: str) -> list[str]:
    """A stack of faulthandler's, with one part per thread, or a traceback, as lines; another text as it is."""
    if not _frames(stack):
        return [line for line in stack.splitlines() if line.strip()][:MOST_FRAMES]
    if "most recent call first" not in stack:
        calls = list(reversed(_frames(stack.rpartition("Traceback (most recent call last)")[2])))
        return _lines(_telling(calls))
    parts: list[tuple[str, list[str]]] = []
    for line in stack.splitlines():
        if line.startswith(_HEADS):
            parts.append((line, []))
        elif parts:
            parts[-1][1].append(line)
    calls = [_telling(_frames("\n".join(lines))) for _, lines in parts]
    if sum(map(bool, calls)) == 1:
        return [line for frames in calls for line in _lines(frames)]
    return [line for (head, _), frames in zip(parts, calls, strict=True) if frames for line in [head, *_lines(frames)]]


def _frames(text: str) -> list[Frame]:
    """The calls in a text, in its order."""
    frames: list[Frame] = []
    for line in text.splitlines():
        found = _FRAME.match(line)
        if found:
            frames.append(Frame(found["file"], line.strip()))
        elif frames and line.startswith("    ") and not frames[-1].source and line.strip(" ^~"):
            frames[-1] = Frame(frames[-1].file, frames[-1].text, line.strip())
    return frames


def _telling(frames: Sequence[Frame]) -> list[Frame]:
    """Without the suite's own calls, and without torch's but for those that were made last."""
    layers = [frame for frame in frames if not frame.ours]
    own = next((place for place, frame in enumerate(layers) if _TORCH not in frame.file), len(layers))
    return [*layers[:own], *(frame for frame in layers[own:] if _TORCH not in frame.file)] or list(frames)


def _lines(frames: Sequence[Frame]) -> list[str]:
    lines: list[str] = []
    for frame in frames[:MOST_FRAMES]:
        lines += [frame.text, f"  {frame.source}"] if frame.source else [frame.text]
    return lines + [f"and {len(frames) - MOST_FRAMES} more"] * (len(frames) > MOST_FRAMES)
