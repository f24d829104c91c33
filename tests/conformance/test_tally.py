"""What a run has judged: counted, added up over workers, and carried between them as plain data."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.tally import Tally
from spec import REGISTER, Case, Finding

ROW = Case.parse("row P=2 batch=3 in=4 out=2 float32 bias seed=7")
SUBGROUP = Case.parse("copy P=2 batch=3 in=4 float32 world=4 seed=7")

worlds = st.sampled_from((1, 2, 4))
clauses = st.tuples(st.sampled_from(sorted(REGISTER)), worlds)
counts = st.integers(1, 100)
counters = st.dictionaries(clauses, counts, max_size=4).map(Counter)
tallies = st.builds(
    Tally,
    counters,
    counters,
    counters,
    st.dictionaries(st.tuples(st.text(), st.sampled_from(("row", "copy")), worlds), counts, max_size=4).map(Counter),
    st.dictionaries(worlds, counts).map(Counter),
    st.lists(st.text(), max_size=3),
)


@settings(max_examples=30)
@given(tallies)
def test_a_tally_survives_the_way_to_the_reporter(tally: Tally) -> None:
    carried = json.loads(json.dumps(tally.as_data()))
    assert tally == Tally.from_data(carried)


@settings(max_examples=30)
@given(tallies, tallies)
def test_tallies_add_up(one: Tally, two: Tally) -> None:
    total = Tally.from_data(one.as_data())
    total.add(two)
    for name in ("judged", "broken", "blamed", "declined", "examples"):
        assert getattr(one, name) + getattr(two, name) == getattr(total, name)
    assert one.intermittent + two.intermittent == total.intermittent


@settings(max_examples=30)
@given(tallies, tallies)
def test_adding_a_tally_leaves_the_other_as_it_was(one: Tally, two: Tally) -> None:
    before = Tally.from_data(two.as_data())
    one.add(two)
    one.count(ROW, ["ranks.alive"], frozenset(), [])
    assert before == two


def test_an_example_counts_once_for_every_clause_that_judged_it() -> None:
    tally = Tally()
    finding = Finding(REGISTER["row.forward.value"], 0, ())
    tally.count(ROW, ["ranks.alive", "row.forward.value"], frozenset({"row.forward.value"}), [finding])
    tally.count(ROW, ["ranks.alive", "row.forward.value"], frozenset(), [])
    assert tally.judged == {("ranks.alive", 2): 2, ("row.forward.value", 2): 2}
    assert tally.broken == tally.blamed == {("row.forward.value", 2): 1}
    assert tally.examples == {2: 2}


def test_a_clause_that_two_groups_broke_is_blamed_once() -> None:
    tally = Tally()
    found = [Finding(REGISTER["copy.backward"], group, ()) for group in (0, 1)]
    tally.count(SUBGROUP, ["copy.backward"], frozenset({"copy.backward"}), found)
    assert tally.blamed == {("copy.backward", 4): 1}


def test_what_is_not_blamed_is_broken_all_the_same() -> None:
    """A known deviation, or a SHOULD, does not vanish from the report."""
    tally = Tally()
    tally.count(ROW, ["row.forward.value"], frozenset({"row.forward.value"}), [])
    assert tally.broken == {("row.forward.value", 2): 1}
    assert not tally.blamed


def test_an_example_that_was_declined_is_not_judged() -> None:
    tally = Tally()
    tally.decline(SUBGROUP, "no subgroups")
    assert tally.declined == {("no subgroups", "copy", 4): 1}
    assert not tally.examples
    assert not tally.judged
