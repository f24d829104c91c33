"""From tests to a run: each test's report carries what it found, wherever it ran, and a collector adds up.

Nothing is left with a worker, so that one that is killed, and a run that is interrupted, lose no more than the tests
that had not ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from conformance.models.told import Laws
from conformance.reporting.record import Failure, ItemsRun, Sighting
from conformance.reporting.record.plain import data, record_of
from conformance.suite import Suite
from conformance.tally import Tally

_WORD: Final = {
    "test_conforms": "",
    "test_compiles": "",
    "test_conforms_small": "small ",
    "test_known_deviation_is_still_there": "known ",
}
_TEST: Final = re.compile(rf"\btest_conformance\.py::(?P<function>{'|'.join(_WORD)})\[(?P<item>.+)\]$")


def found_in(suite: Suite, nodeid: str) -> dict[str, Any]:
    """What a test found, as plain data for its report."""
    failures = [replace(failure, item=name_of(nodeid)) for failure in suite.failures]
    sightings = [replace(sighting, item=name_of(nodeid)) for sighting in suite.sightings]
    return {"tally": suite.tally.as_data(), "failures": data(failures), "sightings": data(sightings)}


def name_of(nodeid: str) -> str:
    """The name of a test in a record: of an item that is drawn its own; empty for a test that is not the suite's."""
    found = _TEST.search(nodeid)
    return _WORD[found["function"]] + found["item"] if found else ""


class Collector:
    """What the tests of a run found, added up in the process that reports.

    Attributes:
        tally, failures, sightings: of all tests that told what they found.
        laws: what was judged of whole models.
        planned, ran: names of tests; lost: sentences about those that ended without a word.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.failures: list[Failure] = []
        self.sightings: list[Sighting] = []
        self.laws = Laws()
        self.planned: tuple[str, ...] = ()
        self.ran: dict[str, None] = {}
        self.lost: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._plan(ids)

    def _plan(self, ids: Sequence[str]) -> None:
        self.planned = tuple(name for name in map(name_of, ids) if name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found, name = getattr(report, "found", None), name_of(report.nodeid)
        if report.when == "call" and not name:
            self.laws.add(getattr(report, "user_properties", ()))
        if found:
            self.ran[name] = None
            self.tally.add(Tally.from_data(found["tally"]))
            self.failures += record_of(tuple[Failure, ...], found["failures"])
            self.sightings += record_of(tuple[Sighting, ...], found["sightings"])
        elif name and report.failed and report.when != "teardown":
            how = "its set-up failed" if report.when == "setup" else "the process that ran it ended"
            self.lost.append(f"{name} told nothing: {how}")

    def items_run(self, reasons: Sequence[str]) -> ItemsRun:
        """What was run of what was planned."""
        left = tuple(name for name in self.planned if name not in self.ran)
        return ItemsRun(len(self.planned), len(self.ran), tuple(self.ran), left, (*self.lost, *reasons))


def reasons(session: pytest.Session, exit_code: int) -> list[str]:
    """Why a run was not all that it could be, as far as the command line and its end tell."""
    option = session.config.option
    chosen = [word for word in session.config.args if "::" in word]
    told = [
        f"-k {option.keyword!r}" if option.keyword else "",
        f"-m {option.markexpr!r}" if option.markexpr else "",
        "--last-failed" if getattr(option, "lf", False) else "",
        "--stepwise" if getattr(option, "stepwise", False) else "",
        f"--deselect {' '.join(option.deselect)}" if option.deselect else "",
        f"only {' '.join(chosen)}" if chosen else "",
        str(session.shouldfail or session.shouldstop or ""),
        "interrupted" if exit_code == pytest.ExitCode.INTERRUPTED else "",
        "pytest ended by an error of its own" if exit_code == pytest.ExitCode.INTERNAL_ERROR else "",
    ]
    return [text for text in told if text]
