"""A run from its beginning to its end: the suite with its ranks, and what becomes of each test."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import core, is_hypothesis_test, settings

from conformance.observers import NotDeclared
from conformance.plugin.options import check_devices, options_of
from conformance.plugin.profiles import seed_of
from conformance.plugin.stash import COLLECTOR, REPORTER, SUITE
from conformance.ranks import StartFailed
from conformance.reporting.failure.raised import explain, violations
from conformance.reporting.failure.text import adapter_sentence
from conformance.reporting.session.collect import Collector, found_in, name_of
from conformance.reporting.session.junit import test_properties
from conformance.reporting.session.progress import Progress
from conformance.reporting.session.reporter import Reporter, folder_for
from conformance.suite import Suite
from conformance.tally import Tally
from spec import ContractViolation


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before Hypothesis reads its own options, so that a run that nobody seeded still prints a seed to repeat it."""
    if config.getoption("--hypothesis-seed") is None and not hasattr(config, "workerinput"):
        profile = config.getoption("--hypothesis-profile") or settings.get_current_profile_name()
        config.option.hypothesis_seed = "0" if profile == "ci" else str(secrets.randbelow(2**32))
    options = options_of(config)
    check_devices(options)
    folder = None if hasattr(config, "workerinput") else folder_for(config)
    suite = config.stash[SUITE] = Suite(options)
    if not hasattr(config, "workerinput"):
        try:
            declaration = suite.declaration
        except (StartFailed, NotDeclared) as error:
            suite.close()
            raise pytest.UsageError(adapter_sentence(error)) from None
        found = config.stash[COLLECTOR] = Collector()
        reporter = config.stash[REPORTER] = Reporter(suite, found, folder)
        config.pluginmanager.register(found)
        config.pluginmanager.register(reporter)
        config.pluginmanager.register(Progress(config, declaration.name), "conformance-progress")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The workers' compilers keep their files in the controller's folder, which outlives a worker that is killed."""
    node.workerinput["scratch"] = node.config.stash[SUITE].options.scratch


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """The implementation under examination, with this worker's ranks."""
    from spec.reference import cache_compilations_in

    cache = getattr(pytestconfig, "cache", None)
    cache_compilations_in(str(cache.mkdir("jax")) if cache else "")
    return pytestconfig.stash[SUITE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A failure that is as small as it gets is diagnosed; one of ranks that did not come back fails its test too."""
    suite = item.config.stash[SUITE]
    suite.tally, suite.failures, suite.sightings = Tally(), [], []
    suite.begin_item()
    core.global_force_seed = seed_of(str(item.config.getoption("--hypothesis-seed")), item.name)
    if is_hypothesis_test(item.obj):
        # Of a test with a seed Hypothesis keeps no failing examples unless it has a name for them.
        item.obj._hypothesis_internal_database_key = f"{suite.options.impl} {item.name}".encode()
    told: list[ContractViolation] = []
    try:
        yield
    except (ContractViolation, BaseExceptionGroup) as error:
        explain(suite, error)
        told += violations(error)
        raise
    finally:
        item.user_properties += test_properties(suite, item, told)
    texts = suite.tally.intermittent
    if texts:
        pytest.fail("a failure of ranks did not come back on fresh ranks:\n" + "\n".join(texts), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test of the suite found travels with its report, from whatever process."""
    report = yield
    if call.when == "call" and name_of(item.nodeid):
        report.found = found_in(item.config.stash[SUITE], item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[SUITE].close()
