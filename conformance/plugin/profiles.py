"""How much Hypothesis draws, and from which seed."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

# A first example starts ranks and compiles the truth; that is no fault of what is drawn.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# Without the explain phase: it traces every line, and points at the suite's own.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)
# Hypothesis's own determinism, which it prefers in CI, takes like items for one; `seed_of` gives each its own.
_PLAIN = settings(deadline=None, suppress_health_check=_SLOW, print_blob=False, phases=_PHASES, derandomize=False)
# Named, because Hypothesis has none in CI, where a nightly run should begin with what failed the night before.
_FAILURES = DirectoryBasedExampleDatabase(
    Path(os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")) / "examples"
)
settings.register_profile("quick", _PLAIN, max_examples=25, database=_FAILURES)
settings.register_profile("ci", settings.get_profile("quick"), database=None)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "quick")


def is_deep() -> bool:
    """Whether small cases are all run."""
    return settings.get_current_profile_name() == "deep"


def seed_of(seed: str, item: str) -> int:
    """The seed of one item in a run: of one seed for all, items that are alike would draw alike."""
    return int.from_bytes(blake2b(f"{seed} {item}".encode(), digest_size=8).digest())
