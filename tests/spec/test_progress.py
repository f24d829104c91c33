"""How far ranks had come: what is told is what was announced, and they part where they first did something else."""

from __future__ import annotations

import pytest

from spec import Observation
from spec.clauses.progress import diverged, parting, progress, table_of_collectives
from spec.observation import Fate

COMMON = tuple(f"#{n} {word}" for n in (1, 2) for word in ("all-reduce 64 B float32", "waits", "finished"))
THIRD = "#3 all-gather 8 B float32"


def seen(*entered: str, rank: int = 0, fate: Fate = "hung") -> Observation:
    return Observation(rank, fate=fate, entered=entered)


def table(*logs: tuple[Fate, tuple[str, ...]]) -> list[str]:
    ranks = [seen(*entered, rank=rank, fate=fate) for rank, (fate, entered) in enumerate(logs)]
    return table_of_collectives(ranks).splitlines()


def test_what_all_ranks_entered_is_told_once_and_then_what_each_did() -> None:
    assert table(
        ("hung", (*COMMON, THIRD, "#3 waits")),
        ("hung", COMMON),
        ("hung", (*COMMON, "#3 all-reduce 4 B float32", "#3 waits")),
        ("returned", COMMON),
        ("died", COMMON[:-1]),
        ("victim", COMMON[:-2]),
        ("raised", (*COMMON, THIRD, "#3 waits", "#3 failed")),
    ) == [
        "all ranks entered #1 to #2, the last all-reduce 64 B float32; they part at #3",
        "rank 0 hung: entered #3 all-gather 8 B float32, and waits in it",
        "rank 1 hung: finished #2 all-reduce 64 B float32, never joined #3",
        "rank 2 hung: entered #3 all-reduce 4 B float32, and waits in it",
        "rank 3 returned: finished #2 all-reduce 64 B float32, never joined #3",
        "rank 4 died: waited in #2 all-reduce 64 B float32, never joined #3",
        "rank 5 victim: entered #2 all-reduce 64 B float32, never joined #3",
        "rank 6 raised: entered #3 all-gather 8 B float32, and failed in it",
    ]


def test_after_a_message_between_two_ranks_nothing_is_compared() -> None:
    message = "#3 p2p 4 B float32"
    assert table(("hung", (*COMMON, message, "#4 other")), ("hung", (*COMMON, "#3 other"))) == [
        "ranks sent messages to one another, so what they entered afterwards is not compared",
        "rank 0 hung: entered #4 other",
        "rank 1 hung: entered #3 other",
    ]


def test_a_rank_that_went_on_is_told_to_the_end() -> None:
    assert table(("returned", (*COMMON, THIRD, "#4 p2p 4 B float32")), ("hung", (*COMMON, "#3 other"))) == [
        "all ranks entered #1 to #2, the last all-reduce 64 B float32; they part at #3",
        "rank 0 returned: entered #3 all-gather 8 B float32, later entered #4 p2p 4 B float32",
        "rank 1 hung: entered #3 other",
    ]


def test_ranks_that_part_at_once_have_nothing_in_common() -> None:
    assert table(("victim", COMMON[:2]), ("died", ())) == [
        "the ranks part at #1, their first collective",
        "rank 0 victim: entered #1 all-reduce 64 B float32, and waits in it",
        "rank 1 died: entered no collective, never joined #1",
    ]


def test_ranks_that_did_the_same_part_nowhere() -> None:
    assert table(("hung", (*COMMON, THIRD)), ("hung", (*COMMON, THIRD))) == [
        "all ranks entered #1 to #3, the last all-gather 8 B float32, and no other",
        "rank 0 hung: entered #3 all-gather 8 B float32",
        "rank 1 hung: entered #3 all-gather 8 B float32",
    ]
    assert table(("hung", COMMON[:1]), ("died", COMMON[:1]))[0] == (
        "all ranks entered #1 all-reduce 64 B float32, and no other"
    )
    assert table(("hung", ()), ("died", ()))[0] == "no rank entered a collective"


def test_a_rank_alone_has_nobody_to_part_from() -> None:
    assert table(("hung", COMMON)) == ["rank 0 hung: finished #2 all-reduce 64 B float32"]


def test_ranks_may_be_called_by_other_names() -> None:
    assert table_of_collectives([seen()], ["rank 0 (global 3)"]) == "rank 0 (global 3) hung: entered no collective"


def test_lines_without_numbers_are_counted() -> None:
    """As an implementation may announce them that says when it enters and no more."""
    assert table(("hung", ("sum", "gather")), ("hung", ("sum",)))[1:] == [
        "rank 0 hung: entered #2 gather",
        "rank 1 hung: entered #1 sum, never joined #2",
    ]


@pytest.mark.parametrize(
    ("one", "two", "number", "parted"),
    [
        (("a", "b"), ("a", "b"), 0, False),
        (("a", "b"), ("a",), 2, False),
        (("a", "b"), ("a", "c"), 2, True),
        (("a", "b", "c"), ("x", "b"), 1, True),
        ((), (), 0, False),
        (("(7 earlier lines dropped)", "#5 a", "#6 b"), ("#4 x", "#5 a", "#6 b"), 0, False),
        (("(7 earlier lines dropped)", "#5 a", "#6 b"), ("#1 x", "#2 y"), 3, False),
        (("(7 earlier lines dropped)", "#5 a"), ("#5 b",), 5, True),
    ],
)
def test_ranks_part_at_the_first_number_that_differs(
    one: tuple[str, ...], two: tuple[str, ...], number: int, parted: bool
) -> None:
    ranks = [progress(seen(*one)), progress(seen(*two))]
    assert (parting(ranks), diverged(ranks)) == (number, parted)


def test_a_rank_whose_lines_were_dropped_is_told_with_what_is_left() -> None:
    dropped = seen("(7 earlier lines dropped)", "#5 a", "#5 waits")
    assert table_of_collectives([dropped, seen("#1 x")]).splitlines()[1] == (
        "rank 0 hung: entered #2 a collective whose line was dropped, later waits in #5 a"
    )
