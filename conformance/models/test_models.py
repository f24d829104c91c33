"""Whole models: each item goes through one procedure, and every law that judges it must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance.models.items import ModelItem, model_items
from conformance.models.judge import ModelJudge, impossible
from conformance.models.told import BROKEN, JUDGED, SIZE
from conformance.plugin.stash import SUITE
from conformance.suite import Suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Only of an implementation that says that it can parallelise models are there items."""
    suite = metafunc.config.stash[SUITE]
    options = suite.options
    chosen = model_items(options.world_sizes, options.clauses) if suite.declaration.models else ()
    metafunc.parametrize("model_item", list(chosen), ids=str)


@pytest.fixture(scope="module")
def judge(suite: Suite) -> Iterator[ModelJudge]:
    with ModelJudge(suite.options) as made:
        yield made


def test_model(
    model_item: ModelItem, suite: Suite, judge: ModelJudge, record_property: Callable[[str, object], None]
) -> None:
    reason = impossible(model_item, suite.options)
    if reason:
        pytest.skip(reason)
    verdict = judge.examine(model_item)
    record_property(SIZE, model_item.P)
    record_property(JUDGED, " ".join(verdict.judged))
    record_property(BROKEN, " ".join(verdict.broken))
    if verdict.text:
        pytest.fail(verdict.text, pytrace=False)
