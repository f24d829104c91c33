"""What a run has judged: counted, added up over workers, and carried between them as plain data."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.coverage.cells import Cell, cell_of
from conformance.tally import Tally, Weakest
from spec import REGISTER, Case, Finding, amplitude

ROW = Case.parse("row P=2 batch=3 in=4 out=2 float32 bias seed=7")
SUBGROUP = Case.parse("copy P=2 batch=3 in=4 float32 world=4 seed=7")

worlds = st.sampled_from((1, 2, 4))
clauses = st.tuples(st.sampled_from(sorted(REGISTER)), worlds, st.sampled_from(("row", "copy")))
counts = st.integers(1, 100)
counters = st.dictionaries(clauses, counts, max_size=4).map(Counter)
cells = st.builds(
    Cell, worlds, worlds, *[st.sampled_from(("a", "b c"))] * 3, st.integers(0, 2), *[st.sampled_from(("a", "b"))] * 3
)
weakest = st.builds(Weakest, st.floats(0, 1), st.integers(2, 2**40))
tallies = st.builds(
    Tally,
    counters,
    counters,
    counters,
    counters,
    st.dictionaries(st.tuples(st.text(), st.sampled_from(("row", "copy")), worlds), counts, max_size=4).map(Counter),
    st.dictionaries(worlds, counts).map(Counter),
    st.lists(st.text(), max_size=3),
    st.dictionaries(
        st.tuples(cells, st.lists(st.sampled_from(sorted(REGISTER)), max_size=2).map(tuple)), counts, max_size=4
    ).map(Counter),
    st.dictionaries(cells, weakest, max_size=4),
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
    for name in ("judged", "broken", "blamed", "unsupported", "declined", "examples", "visited"):
        assert getattr(one, name) + getattr(two, name) == getattr(total, name)
    assert one.intermittent + two.intermittent == total.intermittent
    assert one.weakest.keys() | two.weakest.keys() == total.weakest.keys()


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
    assert tally.judged == {("ranks.alive", 2, "row"): 2, ("row.forward.value", 2, "row"): 2}
    assert tally.broken == tally.blamed == {("row.forward.value", 2, "row"): 1}
    assert tally.examples == {2: 2}


def test_a_clause_that_two_groups_broke_is_blamed_once() -> None:
    tally = Tally()
    found = [Finding(REGISTER["copy.backward"], group, ()) for group in (0, 1)]
    tally.count(SUBGROUP, ["copy.backward"], frozenset({"copy.backward"}), found)
    assert tally.blamed == {("copy.backward", 4, "copy"): 1}


def test_what_is_not_blamed_is_broken_all_the_same() -> None:
    """A known deviation, or a SHOULD, does not vanish from the report."""
    tally = Tally()
    tally.count(ROW, ["row.forward.value"], frozenset({"row.forward.value"}), [])
    assert tally.broken == {("row.forward.value", 2, "row"): 1}
    assert not tally.blamed


def test_an_example_that_was_declined_is_not_judged() -> None:
    tally = Tally()
    tally.decline(SUBGROUP, "no subgroups", ["copy.forward", "copy.backward"])
    assert tally.declined == {("no subgroups", "copy", 4): 1}
    assert tally.unsupported == {("copy.forward", 4, "copy"): 1, ("copy.backward", 4, "copy"): 1}
    assert not tally.examples
    assert not tally.judged


def test_cells_and_clauses_travel_once_however_often_they_were_visited() -> None:
    tally = Tally()
    for _ in range(3):
        tally.count(ROW, ["ranks.alive"], frozenset(), [])
        tally.count(ROW, ["ranks.finish"], frozenset(), [])
    data = tally.as_data()
    assert len(data["cells"]) == 1
    assert data["visited"] == [[0, 0, 3], [0, 1, 3]]


def test_an_example_counts_in_its_cell_for_the_clauses_that_judged_it() -> None:
    tally = Tally()
    tally.count(ROW, ["ranks.alive", "row.forward.value"], frozenset(), [])
    tally.count(ROW, ["ranks.alive"], frozenset(), [])
    tally.count(SUBGROUP, ["ranks.alive"], frozenset(), [])
    assert tally.cells == {cell_of(ROW): 2, cell_of(SUBGROUP): 1}
    assert tally.judged_in[cell_of(ROW)] == {"ranks.alive": 2, "row.forward.value": 1}
    assert tally.judged_in[cell_of(SUBGROUP)] == {"ranks.alive": 1}


def test_the_weakest_example_of_a_cell_is_kept_in_either_order() -> None:
    """Of equal cells, the one with longer sums has fewer values."""
    long = Case.parse("row P=2 batch=3 in=14 out=2 float32 bias seed=7")
    both, other = Tally(), Tally()
    for case in (long, ROW):
        both.count(case, [], frozenset(), [])
    for case in (ROW, long):
        other.count(case, [], frozenset(), [])
    assert both.weakest == other.weakest
    assert both.weakest[cell_of(ROW)].values == 2 * amplitude(long) < 2 * amplitude(ROW)


def test_the_weakest_of_two_workers_is_the_weakest() -> None:
    one, two = Tally(), Tally()
    one.weakest = {cell_of(ROW): Weakest(0.5, 8)}
    two.weakest = {cell_of(ROW): Weakest(0.25, 6), cell_of(SUBGROUP): Weakest(0.1, 20)}
    one.add(two)
    assert one.weakest == {cell_of(ROW): Weakest(0.5, 6), cell_of(SUBGROUP): Weakest(0.1, 20)}


def test_real_values_are_worth_nothing_that_is_stated() -> None:
    tally = Tally()
    tally.count(Case.parse("row P=2 batch=3 in=4 out=2 float32 values=gaussian seed=7"), [], frozenset(), [])
    assert not tally.weakest


def test_totals_add_the_layers_up_and_name_what_was_only_declined() -> None:
    tally = Tally()
    other = Case.parse("copy P=2 batch=3 in=4 float32 seed=7")
    finding = Finding(REGISTER["forward.dtype"], 0, ())
    tally.count(ROW, ["forward.dtype"], frozenset({"forward.dtype"}), [finding], ["collectives.dtype"])
    tally.count(other, ["forward.dtype"], frozenset(), [])
    tally.decline(other, "has none", ["forward.dtype", "copy.forward"])
    assert tally.totals == {
        ("forward.dtype", 2): (2, 1, 1, 1),
        ("collectives.dtype", 2): (0, 0, 0, 1),
        ("copy.forward", 2): (0, 0, 0, 1),
    }
