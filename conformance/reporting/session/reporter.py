"""The report of a pytest session: the place for it is made at the beginning, it is written and compared at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from conformance.reporting.output import UnusableFolder, forget_report, make_folder, write_report
from conformance.reporting.record import new_report
from conformance.reporting.record.tallied import run_of
from conformance.reporting.results.compare import check_results
from conformance.reporting.session.collect import Collector, reasons
from conformance.reporting.session.junit import enter, suite_properties
from conformance.suite import Suite


def folder_for(config: pytest.Config) -> Path | None:
    """Where --report wants its files, without those of an earlier run; None where it was not given.

    To be called before pytest reads where its JUnit file goes.

    Raises:
        pytest.UsageError: there can be no such folder, or there is none to compare with.
    """
    given, check = config.getoption("--report"), config.getoption("--check-results")
    if check and not Path(check).is_dir():
        raise pytest.UsageError(f"--check-results {check}: there is no such folder")
    if not given:
        return None
    try:
        folder = make_folder("--report", given)
    except UnusableFolder as error:
        raise pytest.UsageError(str(error)) from None
    forget_report(folder)
    if not config.option.xmlpath:
        config.option.xmlpath = str(folder / "junit.xml")
    return folder


class Reporter:
    """Plugin of the process that reports.

    Attributes:
        lines: what it has to say at the end.
    """

    def __init__(self, suite: Suite, found: Collector, folder: Path | None) -> None:
        self.suite, self.found, self.folder = suite, found, folder
        self.lines: list[str] = []

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        enter(session.config, suite_properties(self.suite.declaration, self.suite.options))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        seen = self.found.tally.examples.total() + self.found.laws.judged.total()
        judged = session.config.option.collectonly or seen
        if session.exitstatus == pytest.ExitCode.OK and session.testscollected and not judged:
            self.lines.append("nothing was judged: the implementation has none of the cases that were asked for")
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        check = session.config.getoption("--check-results")
        if not self.folder and not check:
            return
        profile = settings.get_current_profile_name(), str(session.config.getoption("--hypothesis-seed"))
        done = self.found.items_run(reasons(session, exitstatus))
        declared, options = self.suite.declaration, self.suite.options
        found = self.found.tally, self.found.failures, self.found.sightings
        report = new_report([run_of(declared, options, *profile, done, *found)])
        if self.folder:
            self.lines += [f"report written to {path}" for path in write_report(self.folder, report)]
        if check:
            differences = check_results(report, Path(check))
            self.lines += differences or [f"every verdict is as in {check}"]
            if differences and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
