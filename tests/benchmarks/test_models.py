"""The models' benchmark in a tiny size: what it counts, and that a model that is cut wrong is not timed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.layers import Ranks
from benchmarks.models import absence, measure, report, report_wrap, tally
from benchmarks.models.sizes import Size
from conformance.ranks import RankPool, RankSetup

TINY = Size(layers=1, hidden=16, intermediate=32, heads=4, kv_heads=2, vocabulary=24, batch=1, length=4)


class Planted(Ranks):
    """Ranks with models that are cut wrong on purpose."""

    def __init__(self, pool: RankPool) -> None:
        here = str(Path(__file__).parent)
        self._pool, self._setup = pool, RankSetup(2, "planted_models:models", sys_path=(here,))


def test_without_transformers_the_reason_is_told() -> None:
    def none(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    assert absence(none) == ("there are no models: transformers is not installed; python -m pip install transformers")
    assert absence(lambda package: "5.0") == ""


def test_a_tally_counts_and_adds() -> None:
    found = [("all-reduce", 4), ("all-gather", 8), ("all-reduce", 12)]

    assert tally(found) == {"all-gather": (1, 8), "all-reduce": (2, 16)}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().out.splitlines()


def test_a_model_that_is_cut_wrong_is_not_timed(printed: Callable[[], list[str]]) -> None:
    if reason := absence():
        pytest.skip(reason)
    names = ["torch_tp", "unreduced", "raises", "half", "DTensor", "dense"]
    with RankPool() as pool:
        measured = measure(Planted(pool), 2, TINY, names, 0.01)

    said = printed()
    assert said[0].startswith("unreduced does not take part: at P = 2 it gives a wrong gradient of model.embed_tokens")
    assert said[1] == "raises does not take part: at P = 2 it raises ArithmeticError: on purpose"
    assert list(measured.times) == ["torch_tp", "half", "DTensor", "dense"]

    # Two all-reduces forward, of [1, 4, 16] float32; backward one for each input of column layers, or for each layer.
    assert measured.collectives == {
        "torch_tp": {"all-reduce": (4, 4 * 256)},
        "half": {"all-reduce": (4, 4 * 256)},
        "DTensor": {"all-reduce": (7, 7 * 256)},
    }
    whole, cut = 2 * 24 * 16 + 3 * 16, 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 32
    assert measured.weights["expected"] == 4 * (whole + cut / 2)
    assert measured.weights["torch_tp"] == measured.weights["DTensor"] == measured.weights["expected"]
    assert measured.weights["half"] == measured.weights["expected"] + 4 * 3 * 16 * 32 / 2

    report(measured, TINY)
    table = printed()
    assert any(line.startswith("  half") and line.endswith("0.95-1.05") for line in table)


def test_a_wrap_is_measured_without_data(printed: Callable[[], list[str]]) -> None:
    if reason := absence():
        pytest.skip(reason)
    assert models.wrap_seconds(TINY, P=2)[1] == 7

    report_wrap(TINY, 2)
    assert "2 models" in "\n".join(printed())
