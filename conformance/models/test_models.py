"""Whole models: each item goes through one procedure, and every law that judges it must hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.models.items import ModelItem, model_items
from conformance.models.judge import examine, impossible
from conformance.plugin.stash import SUITE
from conformance.ranks import RankPool
from conformance.suite import Suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Only of an implementation that says that it can parallelise models are there items."""
    suite = metafunc.config.stash[SUITE]
    options = suite.options
    chosen = model_items(options.world_sizes, options.clauses) if suite.declaration.models else ()
    metafunc.parametrize("model_item", list(chosen), ids=lambda item: str(item).replace(" ", "-"))


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    """Ranks that run models and nothing else, so that those of the suite are left to it."""
    with RankPool() as made:
        yield made


def test_model(model_item: ModelItem, suite: Suite, pool: RankPool) -> None:
    reason = impossible(model_item, suite.options)
    if reason:
        pytest.skip(reason)
    wrong = examine(pool, model_item, suite.options)
    if wrong:
        pytest.fail(wrong, pytrace=False)
