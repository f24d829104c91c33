"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torch_tp import debug


@pytest.fixture(autouse=True)
def _debug_is_read_anew() -> Iterator[None]:
    """TP_DEBUG is read once per process, and a process here runs many tests."""
    debug.modes.cache_clear()
    yield
    debug.modes.cache_clear()
