"""The suite itself: one test per item, each of its examples judged by every clause that applies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.enumeration import examine_all, small_cases
from conformance.items import Item
from conformance.known import Deviation
from conformance.reporting.failure.raised import keep_known, raise_first
from conformance.reporting.record import KnownReason, Sighting
from conformance.strategies import cases
from conformance.suite import Suite

# Relative to the profile's number, because compiling costs a hundred times as much as a plain example.
_FEW = settings(max_examples=max(settings().max_examples // 12, 1))


def examine(item: Item, suite: Suite, data: st.DataObject) -> None:
    """Draw one case, run it, and raise the first clause that it breaks."""
    __tracebackhide__ = True
    case = data.draw(cases(item), label="case")
    verdict = suite.examine(case)
    raise_first(suite.options, verdict, suite.blamed(verdict))


@given(data=st.data())
def test_conforms(item: Item, suite: Suite, data: st.DataObject) -> None:
    __tracebackhide__ = True
    examine(item, suite, data)


@_FEW
@given(data=st.data())
def test_compiles(compiled_item: Item, suite: Suite, data: st.DataObject) -> None:
    __tracebackhide__ = True
    examine(compiled_item, suite, data)


def test_conforms_small(small_item: Item, suite: Suite) -> None:
    """Of the profile deep alone: nothing is drawn, every small case is run."""
    __tracebackhide__ = True
    examine_all(suite, small_cases(small_item))


def test_known_deviation_is_still_there(deviation: Deviation, suite: Suite) -> None:
    verdict = suite.examine(deviation.case)
    finding = next((found for found in verdict.findings if found.clause.name == deviation.clause), None)

    assert not verdict.declined, f"{deviation.case} is declined: {verdict.declined}"
    assert not verdict.intermittent, verdict.intermittent
    known = KnownReason(deviation.reason, deviation.link, deviation.machine)
    if deviation.machine:
        place = deviation.clause, deviation.case.world, deviation.case.layer
        suite.sightings.append(Sighting(*place, "", str(deviation.case), known, bool(finding)))
    else:
        assert finding, f"{deviation.case} does not break {deviation.clause} any more: take the entry out"
    if finding:
        keep_known(suite, verdict, finding, known)
    raise_first(suite.options, verdict, suite.blamed(verdict))
