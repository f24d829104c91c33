"""Where the ranks' compilers keep their files."""

from __future__ import annotations

import signal
import tempfile
from threading import current_thread, main_thread

import pytest


def scratch_folder(config: pytest.Config) -> str:
    """A folder for what compilers keep, gone at the end of this process's run."""
    if hasattr(config, "workerinput"):
        return str(config.workerinput["scratch"])
    folder = tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    if not config.getoption("--attached"):
        _remove_at_sigterm(config, folder)
    return folder.name


def _remove_at_sigterm(config: pytest.Config, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Of SIGTERM pytest knows nothing. Not under torchrun, where it must end a rank that is stuck in torch at once."""

    def end(number: int, _: object) -> None:
        folder.cleanup()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and current_thread() is main_thread():
        signal.signal(signal.SIGTERM, end)
        config.add_cleanup(lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
