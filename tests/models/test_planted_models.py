"""Bugs in a cut model: each is far outside its bound, and named by the law that it breaks first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.models.items import ModelItem, model_items
from conformance.models.judge import MOST_HANGS, ModelJudge, ModelVerdict, impossible
from conformance.observers import Options

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def verdict(planted: str, item: str, clauses: tuple[str, ...] = ()) -> ModelVerdict:
    return verdicts(planted, item, clauses=clauses)[0]


def verdicts(planted: str, *items: str, clauses: tuple[str, ...] = ()) -> list[ModelVerdict]:
    """Of items that run on the same ranks as long as these hold."""
    impl = f"{HERE / 'planted_models.py'}:{planted}"
    with ModelJudge(Options(impl, clauses=clauses, sys_path=(str(HERE),))) as judge:
        return [judge.examine(ModelItem.parse(item)) for item in items]


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
def test_a_planted_bug_breaks_these_laws(planted: str, item: str, laws: tuple[str, ...]) -> None:
    found = verdict(planted, item)

    assert found.broken == laws, found.text
    assert found.text.splitlines()[1].endswith(f"planted_models.py:{planted} {item}")


def test_a_bug_lies_ten_orders_of_magnitude_outside_its_bound() -> None:
    text = verdict("BiasTwice", "residual-P2-model", clauses=("model.output",)).text
    bound, got = map(float, re.search(r"too far.*: expected at most (\S+), got (\S+)", text).groups())

    assert got > 1e10 * bound


def test_a_right_way_to_clip_is_not_accused() -> None:
    assert verdict("Clips", "gated-P2-clip") == ModelVerdict(("train.clip", "train.replicated"))


def test_clauses_that_were_not_asked_for_are_not_judged() -> None:
    assert verdict("BiasTwice", "residual-P2-model", clauses=("model.cut",)) == ModelVerdict(("model.cut",))


def test_a_refusal_is_a_finding_with_its_stack() -> None:
    found = verdict("Refuses", "gated-P2-sgd")

    assert found.broken == ("train.sgd", "train.replicated")
    assert re.search(r"^rank \d raised$", found.text, re.MULTILINE)
    assert "ValueError: this model has no linears" in found.text


def test_a_rank_that_dies_is_a_finding_and_the_next_item_runs() -> None:
    for found in verdicts("Dies", "gated-P2-model", "gated-P2-inference-mode"):
        assert "rank 1 died exit code 3" in found.text


def test_ranks_that_hang_are_a_finding_and_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.models.judge.DEADLINE", 5.0)
    monkeypatch.setattr("conformance.models.judge.DEADLINE_AFTER_HANG", 1.0)
    item = "gated-P2-inference-mode"
    *hung, last = verdicts("Hangs", *[item] * (MOST_HANGS + 1))

    assert all("rank 0 hung" in found.text for found in hung)
    assert last.text == f"{item} was not run: {MOST_HANGS} items had hung already"


def collected(impl: str) -> list[str]:
    """The items about models that a run has."""
    command = ["-m", "pytest", "conformance/models", "--collect-only", "-q", "--impl", impl]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return re.findall(r"test_model\[(.+)\]$", done.stdout, re.MULTILINE)


def test_only_who_can_parallelise_models_is_judged_by_them() -> None:
    assert collected("torch_tp") == [str(item) for item in model_items()]
    assert collected(f"{HERE / 'planted_models.py'}:NoModels") == []


def test_without_transformers_its_models_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.models.judge.importlib.util.find_spec", lambda name: None)

    told = impossible(ModelItem.parse("llama-P2-model"), Options())
    assert told == "llama is a model of transformers, which is not installed: pip install 'torch-tp[models]'"
    assert impossible(ModelItem.parse("gated-P2-model"), Options()) == ""
