"""Bugs in a cut model: each is far outside its bound, and named by the law that it breaks first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.models.items import ModelItem
from conformance.models.judge import ModelVerdict, examine, impossible
from conformance.observers import Options
from conformance.ranks import RankPool

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool() as made:
        yield made


def verdict(pool: RankPool, planted: str, item: str, clauses: tuple[str, ...] = ()) -> ModelVerdict:
    impl = f"{HERE / 'planted_models.py'}:{planted}"
    return examine(pool, ModelItem.parse(item), Options(impl, clauses=clauses, sys_path=(str(HERE),)))


PLANTED = [
    ("BiasTwice", "residual-P2-model", ("model.output", "model.gradients")),
    ("NotReduced", "residual-P2-model", ("model.gradients", "model.replicated")),
    ("OneGradientNotReduced", "gated-P2-model", ("model.gradients", "model.replicated")),
    ("WrongSlice", "gated-P2-model", ("model.parameters", "model.output", "model.gradients")),
    ("Whole", "gated-P2-model", ("model.cut",)),
    ("OwnSeeds", "gated-P2-dropout", ("train.dropout", "train.replicated")),
    ("OneGradientNotReduced", "gated-P2-sgd", ("train.sgd", "train.replicated")),
    ("ClipsItsOwn", "gated-P2-clip", ("train.clip", "train.replicated")),
    ("ClipsCopies", "gated-P2-clip", ("train.clip",)),
    ("BiasTwice", "gated-P2-jax", ("train.jax",)),
    ("BiasTwice", "residual-P2-autocast", ("train.autocast",)),
    ("BiasTwice", "gated-P2-deepcopy", ("works.deepcopy",)),
    ("NotReduced", "gated-P4-fsdp2", ("works.fsdp2",)),
    ("BiasTwice", "gated-P4-ddp", ("works.ddp",)),
]


@pytest.mark.parametrize(("planted", "item", "laws"), PLANTED, ids=[f"{bug}-{item}" for bug, item, _ in PLANTED])
def test_a_planted_bug_breaks_these_laws(pool: RankPool, planted: str, item: str, laws: tuple[str, ...]) -> None:
    found = verdict(pool, planted, item)

    assert found.broken == laws, found.text
    assert found.text.splitlines()[1].endswith(f"planted_models.py:{planted} {item}")


def test_a_bug_lies_ten_orders_of_magnitude_outside_its_bound(pool: RankPool) -> None:
    text = verdict(pool, "BiasTwice", "residual-P2-model", ("model.output",)).text
    bound, got = map(float, re.search(r"too far.*: expected at most (\S+), got (\S+)", text).groups())

    assert got > 1e10 * bound


def test_a_right_way_to_clip_is_not_accused(pool: RankPool) -> None:
    assert verdict(pool, "Clips", "gated-P2-clip") == ModelVerdict(("train.clip", "train.replicated"))


def test_clauses_that_were_not_asked_for_are_not_judged(pool: RankPool) -> None:
    assert verdict(pool, "BiasTwice", "residual-P2-model", ("model.cut",)) == ModelVerdict(("model.cut",))


def test_a_refusal_is_a_finding_with_its_stack(pool: RankPool) -> None:
    found = verdict(pool, "Refuses", "gated-P2-sgd")

    assert found.broken == ("train.sgd", "train.replicated")
    assert re.search(r"^rank \d raised$", found.text, re.MULTILINE)
    assert "ValueError: this model has no linears" in found.text


def test_a_rank_that_dies_is_a_finding_and_the_next_item_runs(pool: RankPool) -> None:
    found = verdict(pool, "Dies", "gated-P2-model")

    assert "rank 1 died exit code 3" in found.text
    assert verdict(pool, "Clips", "gated-P2-inference-mode").text == ""


def test_without_transformers_its_models_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.models.judge.importlib.util.find_spec", lambda name: None)

    told = impossible(ModelItem.parse("llama-P2-model"), Options())
    assert told == "llama is a model of transformers, which is not installed: pip install 'torch-tp[models]'"
    assert impossible(ModelItem.parse("gated-P2-model"), Options()) == ""
