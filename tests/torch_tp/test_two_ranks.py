"""The checks of `rank_checks`, each an item of its own; the ranks are started once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import rank_checks
import two_ranks

CHECKS = sorted(name for name in vars(rank_checks) if name.startswith("check_"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return two_ranks.run(CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(name: str, told: dict[str, list[str]]) -> None:
    failed = {f"rank {rank}": text for rank, text in enumerate(told[name]) if text}

    assert not failed, "\n".join(f"{rank}\n{text}" for rank, text in failed.items())


def test_a_failing_check_is_told(tmp_path: Path) -> None:
    """The proof can fail: a check that raises on one rank comes back as that rank's text."""
    told = two_ranks.run(["fails_on_rank_one"], tmp_path)

    assert told["fails_on_rank_one"][0] == ""
    assert "AssertionError: on purpose" in told["fails_on_rank_one"][1]
