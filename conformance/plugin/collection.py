"""Which tests there are: items by world size, small cases, known deviations."""

from __future__ import annotations

import pytest

from conformance.enumeration import small_cases
from conformance.items import Item, items
from conformance.known import Deviation, Known
from conformance.observers import Options
from conformance.plugin.profiles import is_deep
from conformance.plugin.stash import SUITE
from conformance.suite import Suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    for cost in ("item", "compiled_item"):
        if cost in metafunc.fixturenames:
            chosen = [item for item in items_of(suite) if item.cost == cost]
            metafunc.parametrize(cost, chosen, ids=str)
    if "small_item" in metafunc.fixturenames:
        chosen = items_of(suite) if is_deep() else []
        metafunc.parametrize("small_item", [item for item in chosen if next(small_cases(item), None)], ids=str)
    if "deviation" in metafunc.fixturenames:
        entries = {
            n: entry for n, entry in enumerate(deviations_of(suite.options)) if not not_looked_for(suite.options, entry)
        }
        names = [f"{entry.clause}-{number}" for number, entry in entries.items()]
        metafunc.parametrize("deviation", list(entries.values()), ids=names)


def items_of(suite: Suite) -> list[Item]:
    """The items of the world sizes that were asked for and of the layers that the implementation has, or must have."""
    return items(suite.options.world_sizes, suite.declaration.fused)


def deviations_of(options: Options) -> tuple[Deviation, ...]:
    """The known deviations, in the order of their file."""
    return Known.read(options.known).deviations if options.known else ()


def not_looked_for(options: Options, entry: Deviation) -> str:
    """Why a known deviation cannot be looked for in this run, or an empty string."""
    if entry.case.world not in options.world_sizes:
        return f"world size {entry.case.world}: not in --world-sizes"
    if options.clauses and not entry.clause.startswith(("ranks.", *options.clauses)):
        return "its clause is not judged: --clause"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there is nothing to choose from, such as known deviations without a file of them, there is no test."""
    items[:] = [item for item in items if not item.name.endswith("[NOTSET]")]
