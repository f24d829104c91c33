"""The suite as a pytest plugin, `-p conformance.plugin`: what pytest finds here is what it calls."""

from conformance.plugin.collection import pytest_collection_modifyitems, pytest_generate_tests
from conformance.plugin.options import pytest_addoption
from conformance.plugin.run import (
    pytest_configure,
    pytest_configure_node,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    suite,
)
from conformance.plugin.told import pytest_report_header, pytest_terminal_summary

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "suite",
]
