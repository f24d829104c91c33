"""Tensors as small drawings: whole with every rank's slice in its colour, and what one rank had, in numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from conformance.reporting.picture.draw import CHARACTER, Part, above, beside, lines, path, rect, ruled, text

WIDTH, HEIGHT, CELL = 72.0, 52.0, 15.0
_ROW = 18.0
_SHEET = 620.0
_MOST_ROWS = 4
# As spec.placements writes them: S(0), and S(0: 8, 4 in 2 copies) of several parts.
_SHARDED = re.compile(r"S\((-?\d+)(?:: (.+))?\)")
Tensor = Mapping[str, Any]
Text = Callable[[Any], str]


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor with its leading dimensions flattened."""
    return prod(shape[:-1]), shape[-1] if shape else 1


def cut_along(tensor: Tensor) -> int | None:
    """The dimension, counted from 0, along which the ranks' slices are cut; None where they are not."""
    found = _SHARDED.fullmatch(tensor["placement"])
    return int(found[1]) % max(len(tensor["shape"]), 1) if found else None


def parts_of(tensor: Tensor) -> list[tuple[int, int]]:
    """(size, copies) of the parts that are cut one by one along that dimension; none where it is cut as one."""
    found = _SHARDED.fullmatch(tensor["placement"])
    words = (part.split() for part in found[2].split(", ")) if found and found[2] else ()
    return [(int(size), int(rest[1]) if rest else 1) for size, *rest in words]


def colour(rank: int) -> str:
    return f"r{rank % 4}"


def whole(tensor: Tensor, P: int) -> Part:
    """The unsharded tensor; every rank's slice in the rank's colour."""
    rows, columns = matrix(tensor["shape"])
    if not rows * columns:
        return _box("empty", "thin")
    width, height = min(WIDTH, columns * CELL), min(HEIGHT, rows * CELL)
    bands = list(_bands(tensor, P)) or [(0.0, 0.0, 1.0, 1.0, "all")]
    svg = "".join(rect(x * width, y * height, w * width, h * height, name) for x, y, w, h, name in bands)
    svg += ruled(width, height, rows, columns) + rect(0, 0, width, height, "edge")
    return Part(svg, width, height)


def _bands(tensor: Tensor, P: int) -> Iterator[tuple[float, float, float, float, str]]:
    """(x, y, width, height, colour) of the ranks' slices in a square of side 1."""
    shape, dim = tensor["shape"], cut_along(tensor)
    if dim is None:
        return
    if dim == len(shape) - 1:
        yield from ((start, across, width, room, colour(r)) for r, start, width, across, room in _slices(tensor, P))
        return
    if parts_of(tensor):
        yield from ((across, start, room, width, colour(r)) for r, start, width, across, room in _slices(tensor, P))
        return
    times = prod(shape[:dim])  # a cut of an inner dimension comes back in every row of the outer ones
    times = times if times * P <= 16 else 1
    yield from ((0, (i * P + r) / (times * P), 1, 1 / (times * P), colour(r)) for i in range(times) for r in range(P))


def _slices(tensor: Tensor, P: int) -> Iterator[tuple[int, float, float, float, float]]:
    """(rank, start, width, and across the cut start and room): the holders of one slice lie beside one another."""
    parts = parts_of(tensor) or [(P, 1)]
    total, start = sum(size for size, _ in parts), 0.0
    for size, copies in parts:
        width = size * copies / P / total
        for r in range(P):
            yield r, start + r // copies * width, width, r % copies / copies, 1 / copies
        start += size / total


def held(tensor: Tensor, P: int, room: float) -> list[Part]:
    """By rank what it had, or should have where nobody looked: in numbers if all fit into `room`, else as blocks."""
    say = written(tensor)
    drawn = [_numbers(tensor, r, say) for r in range(P)]
    cramped = any(part is not None and part.width > room for part in drawn)
    tall = any(len(_values(told) or ()) > _MOST_ROWS or told["cut"] for told in tensor["ranks"])
    return [
        _block(tensor, r, P) if part and (cramped or tall) else part or _none(tensor, r) for r, part in enumerate(drawn)
    ]


def _values(told: Mapping[str, Any]) -> Sequence[Sequence[Any]] | None:
    return None if told["note"] == "missing" else told["expected"] if told["got"] is None else told["got"]


def _none(tensor: Tensor, rank: int) -> Part:
    told = tensor["ranks"][rank]
    if told["note"] == "missing":
        return _box("missing", "void")
    return _box("none" if _values(told) is None else "empty", "thin")


def _numbers(tensor: Tensor, rank: int, say: Text) -> Part | None:
    """A rank's numbers in cells; None where it has none."""
    values = _values(tensor["ranks"][rank])
    if not values or not values[0]:
        return None
    drawn = grid(values, colour(rank), tensor["ranks"][rank]["wrong"], say)
    term = _hatched(drawn.width, drawn.height) if tensor["placement"] == "P" else ""
    return Part(drawn.svg + term, drawn.width, drawn.height)


def _block(tensor: Tensor, rank: int, P: int) -> Part:
    """The rank's slice where it lies in the whole."""
    rows, columns = matrix(tensor["shape"])
    width, height = min(WIDTH, columns * CELL), min(HEIGHT, rows * CELL)
    own = [band for band in _bands(tensor, P) if band[4] == colour(rank)] or [(0.0, 0.0, 1.0, 1.0, colour(rank))]
    svg = "".join(rect(x * width, y * height, w * width, h * height, name) for x, y, w, h, name in own)
    wrong = "not" if tensor["ranks"][rank]["differs"] else "edge"
    term = _hatched(width, height) if tensor["placement"] == "P" else ""
    return Part(svg + term + ruled(width, height, rows, columns) + rect(0, 0, width, height, wrong), width, height)


def _hatched(width: float, height: float) -> str:
    """Slanted lines: what is there is a term of a sum."""
    steps = [
        f"M{x:.0f} {height:.0f}l{min(height, width - x):.0f} -{min(height, width - x):.0f}"
        for x in range(0, int(width), 7)
    ]
    return path("".join(steps), "hatch")


def grid(values: Sequence[Sequence[Any]], name: str, wrong: Sequence[Sequence[int]], say: Text) -> Part:
    """Numbers in cells; those that are wrong are framed, bold and marked in a corner."""
    words = [[say(value) for value in row] for row in values]
    cell = max(20.0, max(len(word) for row in words for word in row) * CHARACTER + 10)
    rows, columns = len(words), len(words[0])
    width, height = columns * cell, rows * _ROW
    marked = {(i, j) for i, j in wrong}
    svg = rect(0, 0, width, height, name) + ruled(width, height, rows, columns) + rect(0, 0, width, height, "edge")
    for i, row in enumerate(words):
        for j, word in enumerate(row):
            classes = "m c b" if (i, j) in marked else "m c"
            svg += text(word, classes, (j + 0.5) * cell, i * _ROW + 13)
    for i, j in sorted(marked):
        x, y = j * cell, i * _ROW
        svg += rect(x + 1, y + 1, cell - 2, _ROW - 2, "not") + path(f"M{x + cell - 7:.1f} {y:.1f}h7v7z", "mark")
    return Part(svg, width, height)


def written(tensor: Tensor) -> Text:
    """How to write a tensor's numbers: with as many digits as tell every wrong one from what it should be."""
    pairs = [
        (rank["expected"][i][j], rank["got"][i][j])
        for rank in tensor["ranks"]
        for i, j in rank["wrong"]
        if rank["expected"] is not None and rank["got"] is not None
    ]
    for digits in (4, 6, 9):
        say = _with(digits)
        if all(say(one) != say(other) for one, other in pairs):
            return say
    return _with(17)


def _with(digits: int) -> Text:
    def say(value: Any) -> str:
        whole = isinstance(value, float) and value == int(value) and abs(value) < 2**53
        return f"{value:.{digits}g}" if isinstance(value, float) and not whole else str(int(value) if whole else value)

    return say


def compared(tensor: Tensor) -> Part:
    """Expected beside got, for the ranks that are wrong; ranks that are wrong in the same way together."""
    alike: dict[str, list[int]] = {}
    for r, rank in enumerate(tensor["ranks"]):
        if rank["differs"] or rank["note"]:
            alike.setdefault(repr((rank["expected"], rank["got"], rank["note"])), []).append(r)
    return above((_sides(tensor, ranks) for ranks in alike.values()), 10)


def _sides(tensor: Tensor, ranks: Sequence[int]) -> Part:
    told = tensor["ranks"][ranks[0]]
    who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    named = lines([(who, "b"), *((words, "q") for words in _window(told))])
    if told["got"] == told["expected"]:
        return named
    sides = [
        above([lines([(label, "q")]), _side(told[label], colour(ranks[0]), marked, written(tensor))])
        for label, marked in (("expected", ()), ("got", told["wrong"]))
    ]
    x = max(118.0, named.width + 8)
    if x + sides[0].width + sides[1].width > _SHEET:
        return beside([(0, named), (x, above(sides, 6))])
    middle = Part(text("\u2260", "b bad", 0, sides[0].height / 2 + 12), 12, sides[0].height)
    second = x + sides[0].width + 14
    return beside([(0, named), (x, sides[0]), (second, middle), (second + 24, sides[1])])


def _side(values: Sequence[Sequence[Any]] | None, name: str, marked: Sequence[Sequence[int]], say: Text) -> Part:
    if values is None:
        return _box("none", "thin")
    return grid(values, name, marked, say) if values and values[0] else _box("empty", "thin")


def _window(told: Mapping[str, Any]) -> list[str]:
    """How much of a rank's tensor differs, and which part of it is shown, where that is not all."""
    words = [f"{told['differs']} of {prod(told['shape'])} differ"] if told["differs"] else [told["note"]]
    return words + ([f"shown from {told['at']} on"] if told["cut"] else [])


def _box(words: str, classes: str) -> Part:
    width = len(words) * CHARACTER + 12
    return Part(rect(0, 0, width, _ROW, classes) + text(words, "q c", width / 2, 13), width, _ROW)
