"""Brings the suite's plugin into any run that collects this folder.

pytest knows a plugin's options early enough only if the folder is named on the command line; where it is named as a
package, the plugin is named too: `pytest -p conformance.plugin --pyargs conformance --impl mine.py:Mine`.
"""

from __future__ import annotations

import pytest

from conformance import plugin

_NAME = "conformance.plugin"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.has_plugin(_NAME):
        pluginmanager.register(plugin, _NAME)
