"""The picture of a failure: who holds what, what flowed, expected beside got; nothing told by colour alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from faulty import BiasBeforeReduction
from page_reports import NoBiasGradient, NotReduced, Superfluous, Wide
from test_evidence import COLUMN, ROW, seen, with_output

from conformance.adapters.simulated import Simulated
from conformance.reporting.evidence import evidence
from conformance.reporting.picture import STYLE, svg, tells
from conformance.reporting.picture.glyphs import _bands
from conformance.reporting.picture.words import placed, words
from spec import Array, Case, Observation, Truth
from spec.numerics import encode

SVG = "{http://www.w3.org/2000/svg}"
MERGED = "merged P=2 batch=2 in=3 parts=4,2 float32 bias values=small seed=3"
QKV = "qkv P=4 batch=2x2 in=3 heads=4 kv=2 head_size=1 float32 bias values=small seed=3"
LOST = (
    Observation(0, fate="victim", entered=("#1 all-reduce 4 B float32", "#1 waits")),
    Observation(1, fate="died"),
)


def drawn(found: Mapping[str, Any]) -> ET.Element:
    return ET.fromstring(svg(found))


def texts(found: Mapping[str, Any]) -> list[str]:
    return [element.text or "" for element in drawn(found).iter(f"{SVG}text")]


def count(found: Mapping[str, Any], name: str) -> int:
    return sum(name in (element.get("class") or "").split() for element in drawn(found).iter())


def lost() -> dict[str, Any]:
    found = evidence(Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0"), Truth(()), LOST)
    assert found is not None
    return found


PICTURES = {
    "bias twice": lambda: seen(BiasBeforeReduction(), ROW),
    "not reduced": lambda: seen(NotReduced(), COLUMN.replace("P=2", "P=4")),
    "missing gradient": lambda: seen(NoBiasGradient(), ROW),
    "superfluous": lambda: seen(Superfluous(), ROW),
    "dtype": lambda: seen(Wide(), ROW),
    "one rank": lambda: seen(Wide(), COLUMN.replace("P=2", "P=1")),
    "large": lambda: seen(BiasBeforeReduction(), "row P=2 batch=3x4 in=24 out=16 float32 bias seed=1"),
    "empty": lambda: seen(Superfluous(), ROW.replace("batch=2", "batch=2x0")),
    "inner dimension": lambda: seen(Wide(), "gather P=2 batch=2x4 in=3 dim=1 float32 values=small seed=3"),
    "parts": lambda: seen(Wide(), MERGED),
    "copies": lambda: seen(Wide(), QKV),
    "partial": lambda: seen(Wide(), "reduce P=4 batch=2 in=3 float32 values=small seed=3"),
    "no number": lambda: seen(
        Simulated(),
        ROW,
        with_output(lambda array: Array(encode(np.full((2, 3), np.inf), "float32").tobytes(), "float32", (2, 3))),
    ),
    "lost": lost,
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_well_formed_named_and_described(name: str) -> None:
    found = PICTURES[name]()
    root = drawn(found)

    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert f"{found['layer']} on {found['P']} rank" in (root[0].text or "")
    assert root[1].text == " ".join(words(found))
    assert tells(found)


@pytest.mark.parametrize(
    ("placement", "shape", "expected"),
    [
        ("S(0)", [4, 3], [(0, 0, 1, 1 / 2, "r0"), (0, 1 / 2, 1, 1 / 2, "r1")]),
        ("S(0: 4, 4)", [8, 3], [(0, s / 4, 1, 1 / 4, f"r{r}") for s, r in enumerate((0, 1, 0, 1))]),
        ("S(-1: 4, 4)", [8], [(s / 4, 0, 1 / 4, 1, f"r{r}") for s, r in enumerate((0, 1, 0, 1))]),
        (
            "S(0: 2, 2 in 2 copies)",
            [4, 3],
            [
                (0, 0, 1, 1 / 4, "r0"),
                (0, 1 / 4, 1, 1 / 4, "r1"),
                (0, 1 / 2, 1 / 2, 1 / 2, "r0"),
                (1 / 2, 1 / 2, 1 / 2, 1 / 2, "r1"),
            ],
        ),
    ],
)
def test_every_slice_of_each_part_is_where_it_lies(
    placement: str, shape: list[int], expected: list[tuple[float, float, float, float, str]]
) -> None:
    """Ranks that hold the same slice share its place."""
    assert list(_bands({"placement": placement, "shape": shape}, 2)) == expected


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("S(0)", "cut along dimension 0"),
        ("S(-1: 4, 2)", "each part cut along dimension 1"),
        ("S(0: 4, 2 in 2 copies)", "each part cut along dimension 0, some in copies"),
    ],
)
def test_a_placement_is_said_in_words(placement: str, expected: str) -> None:
    assert placed({"placement": placement, "shape": [6, 6]}) == expected


@pytest.mark.parametrize("name", PICTURES)
def test_several_pictures_can_stand_in_one_page(name: str) -> None:
    """No identifiers that could clash, no colours but by class, nothing that is fetched, the same text every time."""
    found = PICTURES[name]()
    text = svg(found, style="")

    assert text == svg(PICTURES[name](), style="")
    assert not re.search(r"\b(id|href|style|fill|stroke|src)=|url\(|<style|<script", text)
    assert STYLE in svg(found)
    used = {entry for names in re.findall(r'class="([^"]*)"', text) for entry in names.split()} - {"tp"}
    assert used == {entry for entry in used if f".{entry} " in STYLE or f".{entry}," in STYLE}


@pytest.mark.parametrize("name", PICTURES)
def test_everything_lies_inside_the_picture(name: str) -> None:
    """As far as rectangles and the beginnings of texts go, added up through the groups that they stand in."""
    root = drawn(PICTURES[name]())
    width, height = float(root.get("width", 0)), float(root.get("height", 0))

    def look(element: ET.Element, x: float, y: float) -> None:
        moved = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
        if moved:
            x, y = x + float(moved[1]), y + float(moved[2])
        if element.tag in (f"{SVG}rect", f"{SVG}text"):
            right = x + float(element.get("x", 0)) + float(element.get("width", 0))
            low = y + float(element.get("y", 0)) + float(element.get("height", 0))
            assert -4 <= right <= width - 4
            assert -4 <= low <= height - 4
        for child in element:
            look(child, x, y)

    look(root, 0.0, 0.0)


def test_each_rank_has_a_lane_and_its_slices_their_colours() -> None:
    found = seen(NotReduced(), COLUMN.replace("P=2", "P=4"))
    told = texts(found)

    assert [f"rank {r}" in told for r in range(5)] == [True, True, True, True, False]
    assert all(count(found, f"r{r}") for r in range(4))
    assert "W weight" in told
    assert "cut along dimension 0" in told
    assert "whole on every rank" in told


def test_wrong_elements_are_framed_marked_and_named() -> None:
    found = seen(BiasBeforeReduction(), ROW)
    elements = 6 * 2  # on two ranks; once more below, where ranks that are wrong alike stand together

    assert count(found, "not") == count(found, "mark") == elements + 6
    assert "\u2260" in texts(found)
    assert "wrong" in texts(found)
    assert {"ranks 0, 1", "6 of 6 differ", "expected", "got", "Y output: expected beside got"} <= set(texts(found))


def test_the_numbers_of_every_rank_can_be_read() -> None:
    found = seen(BiasBeforeReduction(), ROW)
    said = texts(found)

    for entry in found["tensors"]:
        for rank in entry["ranks"]:
            for row in rank["expected"] + (rank["got"] or []):
                assert {str(value) for value in row} <= set(said)


def test_numbers_that_differ_late_are_written_out() -> None:
    """Four digits would show the same on both sides."""
    numbers = np.array([[1.0, 1.0, 1.000001]] * 2)
    found = seen(Simulated(), ROW.replace("float32", "float64"))
    output = next(entry for entry in found["tensors"] if entry["name"] == "output")
    for rank in output["ranks"]:
        rank.update(expected=[[1.0, 1.0, 1.0]] * 2, got=numbers.tolist(), wrong=[[0, 2], [1, 2]], differs=2)

    assert "1.000001" in texts(found)


def test_a_collective_that_was_asked_for_and_not_made_is_dashed_and_named() -> None:
    found = seen(NotReduced(), COLUMN)

    assert count(found, "gone") == 3  # two ranks, and what lies between them
    assert "\u2260 asked for, never made" in texts(found)
    assert "backward: all-reduce of 24 bytes, asked for, never made." in words(found)


def test_a_superfluous_collective_is_marked_and_named() -> None:
    found = seen(Superfluous(), ROW)

    assert count(found, "overdot") == 2
    assert "! not asked for" in texts(found)
    assert "\u2713 asked for" in texts(found)


def test_collectives_that_were_not_observed_are_not_drawn() -> None:
    found = {**seen(BiasBeforeReduction(), ROW), "flow": None, "agreed": []}

    assert "collectives were not observed" in texts(found)
    assert not any("asked for" in text for text in texts(found))


def test_lost_ranks_are_shown_by_number_stage_and_fate() -> None:
    told = texts(lost())

    assert {"#1 all-reduce", "the ranks part", "waits in it", "never came", "\u2260 died", "\u2260 stopped,"} <= set(
        told
    )
    assert "rank 0 victim, last in #1 all-reduce (waits in it)." in words(lost())


def test_global_ranks_are_told_where_they_are_others() -> None:
    found = seen(BiasBeforeReduction(), ROW.replace("values=small", "values=small world=4 groups=interleaved"))

    assert {"rank 0 (global 1)", "rank 1 (global 3)"} <= set(texts(found))


def test_nothing_to_see_where_nothing_is_wrong() -> None:
    assert not tells(seen(Simulated(), ROW))


def test_what_an_implementation_says_of_itself_is_text() -> None:
    found = seen(Superfluous(), ROW)
    for entry in found["flow"]:
        entry["kind"] = entry["dtype"] = "<b onload='x'>&"

    assert "<b" not in svg(found)
    assert "<b onload='x'>&" in texts(found)
