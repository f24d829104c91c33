"""The parts of the layers' benchmark: its numbers, its picture, what it says of absent libraries, and that a contender
whose numbers are wrong is not timed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.layers import Ranks, measure, paint, refusals, report
from benchmarks.layers.figures import Spread, fastest, ratios, rotated, slowest, spread
from benchmarks.layers.peers import TESTED, absence
from conformance.ranks import RankPool, RankSetup


def test_a_spread_has_the_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(1.0, 2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0)


def test_a_ratio_is_taken_within_its_round() -> None:
    # The second round is ten times slower for both; a quotient of medians over rounds would be 4, not 2.
    times = {"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 1.0]}

    assert ratios(times, "a", "b").middle == 2.0


def test_a_step_is_over_on_the_slowest_rank() -> None:
    assert slowest([{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}]) == {"a": 3.0, "b": 4.0}


@pytest.mark.parametrize("names", ["abc", "abcd", "abcdef"])
def test_each_contender_comes_first_equally_often(names: str) -> None:
    orders = [rotated(names, number) for number in range(2 * len(names))]

    assert all(sorted(order) == list(names) for order in orders)
    assert sorted(order[0] for order in orders) == sorted(names * 2)
    assert {order[order.index("a") - 1] for order in orders if order[0] != "a"} == {names[1], names[-1]}


def test_the_fastest_has_the_least_median() -> None:
    assert fastest({"a": [1.0, 9.0, 9.0], "b": [5.0, 5.0, 5.0]}, ["a", "b"]) == "b"


def test_an_absent_library_is_told_with_its_command() -> None:
    def none(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    assert absence("Megatron", none) == (
        "Megatron does not take part: megatron-core is not installed; python -m pip install megatron-core==0.16.1"
    )
    assert absence("DTensor", none) == ""


def test_another_version_is_told_too() -> None:
    assert absence("fairscale", lambda package: "0.4.12") == (
        "fairscale does not take part: fairscale is 0.4.12, tested is 0.4.13; "
        "python -m pip install --no-build-isolation fairscale==0.4.13"
    )
    assert all(absence(name, lambda package, found=each.tested: found) == "" for name, each in TESTED.items())


def test_a_refusal_of_one_rank_is_enough() -> None:
    assert refusals([{"a": "", "b": ""}, {"a": "", "b": "differs"}]) == {"b": "differs"}


class Planted(Ranks):
    """Ranks with contenders that are wrong on purpose."""

    def __init__(self, pool: RankPool) -> None:
        here = str(Path(__file__).parent)
        self._pool, self._setup = pool, RankSetup(2, "planted_contenders:layers", sys_path=(here,))


def test_a_wrong_contender_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["bias twice", "unreduced", "raises"]
    with RankPool() as pool:
        cell = measure(Planted(pool), 2, "small", ["torch_tp", *wrong, "by hand", "floor"], 0.01, "cpu")

    assert {mode: list(times) for mode, times in cell.times.items()} == {
        mode: ["torch_tp", "by hand", "floor"] for mode in ("both", "forward")
    }
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("bias twice does not take part: at P = 2, small: it gives a wrong output")
    assert said[1].startswith("unreduced does not take part: at P = 2, small: it gives a wrong gradient of x")
    assert said[2] == "raises does not take part: at P = 2, small: it raises ArithmeticError: on purpose"

    report(cell)
    table = capsys.readouterr().out
    assert "  torch_tp" in table
    assert "bias twice" not in table

    texts = [element.text for element in ET.fromstring(paint([cell])).iter("{http://www.w3.org/2000/svg}text")]
    assert {"P = 2, small", "torch_tp", "by hand"} <= set(texts)


def test_memory_counts_what_autograd_keeps() -> None:
    # Saved beyond input and parameters: what gelu takes, [8, 256 / P] float32, and what the row layer takes, as large.
    with RankPool() as pool:
        ranks = Ranks(pool, 2, "cpu")
        shape = {"features": 64, "hidden": 256, "batch": 8}
        assert refusals(ranks.ask("build", **shape, names=["torch_tp", "floor"])) == {}
        answers = ranks.ask("memory", names=["torch_tp", "floor"])

    results = 4 * (8 * 64 * 2 + 2 * 128 * 64 + 128 + 64)  # y and all gradients, which are alive at the end
    for answer in answers:
        saved, peak = answer["torch_tp"]
        assert list(answer) == ["torch_tp"]
        assert saved == 2 * 4 * 8 * 128
        assert results < peak < 2 * results
