"""The checks of `rank_checks` and `wrap_checks`, each an item of its own; ranks are started once for each module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import rank_checks
import two_ranks
import wrap_checks

CHECKS = {
    module.__name__: sorted(name for name in vars(module) if name.startswith("check_"))
    for module in (rank_checks, wrap_checks)
}


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return two_ranks.run(CHECKS[request.param], tmp_path_factory.mktemp("ranks"), request.param)


@pytest.mark.parametrize(
    ("told", "name"),
    [(module, name) for module, names in CHECKS.items() for name in names],
    ids=[name for names in CHECKS.values() for name in names],
    indirect=["told"],
)
def test_on_two_ranks(name: str, told: dict[str, list[str]]) -> None:
    failed = {f"rank {rank}": text for rank, text in enumerate(told[name]) if text}

    assert not failed, "\n".join(f"{rank}\n{text}" for rank, text in failed.items())


def test_a_failing_check_is_told(tmp_path: Path) -> None:
    """The proof can fail: a check that raises on one rank comes back as that rank's text."""
    told = two_ranks.run(["fails_on_rank_one"], tmp_path)

    assert told["fails_on_rank_one"][0] == ""
    assert "AssertionError: on purpose" in told["fails_on_rank_one"][1]
