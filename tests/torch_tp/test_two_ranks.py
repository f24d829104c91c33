"""The checks of the modules named below, each an item of its own; ranks are started once for each module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import rank_checks
import sharing_checks
import two_ranks
import wrap_checks

CHECKS = {
    module.__name__: sorted(name for name in vars(module) if name.startswith("check_"))
    for module in (rank_checks, sharing_checks, wrap_checks)
}


Told = Callable[[str], dict[str, list[str]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What ranks say of the checks of a module, which they run once."""
    return cache(lambda module: two_ranks.run(CHECKS[module], tmp_path_factory.mktemp("ranks"), module))


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in CHECKS.items() for name in names],
    ids=[name for names in CHECKS.values() for name in names],
)
def test_on_two_ranks(module: str, name: str, told: Told) -> None:
    failed = {f"rank {rank}": text for rank, text in enumerate(told(module)[name]) if text}

    assert not failed, "\n".join(f"{rank}\n{text}" for rank, text in failed.items())


def test_a_failing_check_is_told(tmp_path: Path) -> None:
    """The proof can fail: a check that raises on one rank comes back as that rank's text."""
    told = two_ranks.run(["fails_on_rank_one"], tmp_path)

    assert told["fails_on_rank_one"][0] == ""
    assert "AssertionError: on purpose" in told["fails_on_rank_one"][1]
