"""A case is one line of text: it parses back, has one canonical order, and a bad line says where and why."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.items import Item, items
from conformance.strategies import cases
from spec import Case, CaseSyntaxError
from spec.faults import FAULTS, arguments

ITEMS = items()
SETTING_EVERY_WORD = (
    "column P=2 batch=2x3 in=4 out=6 bfloat16 gather_output skip_bias_add x=transposed g=expanded frozen=xw "
    "autocast=float16 values=small world=4 groups=interleaved procedure=twice seed=9"
)


@given(st.data())
def test_every_drawn_case_parses_back(data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(ITEMS))
    case = data.draw(cases(item))
    assert case == Case.parse(str(case))


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_cases_of_an_item_are_what_its_name_says(item: Item) -> None:
    @given(cases(item))
    def belongs(case: Case) -> None:
        expected = (item.procedure, item.layer, item.P, item.world or item.P, item.dtype, item.autocast)
        assert expected == (case.procedure, case.layer, case.P, case.world, case.dtype, case.autocast)
        assert case == Case.parse(case.text)

    settings(max_examples=3)(belongs)()


@pytest.mark.parametrize(
    "line",
    [
        "row P=2 batch=3 in=4 out=2 float32 bias seed=7",
        "column P=1 batch=none in=4 out=2 float64 seed=0",
        "row P=2 batch=0x3 in=4 out=2 float16 input_is_parallel=False reduce_output=False seed=1",
        "gather P=2 batch=2x4 in=4 float32 dim=-2 seed=3",
        "pair P=2 batch=3 in=4 hidden=6 out=2 float32 bias gather_output input_is_parallel=False seed=3",
        "copy P=4 batch=3 in=4 float32 x=strided g=strided seed=3",
        "row P=4 batch=3 in=4 out=2 float32 procedure=refuse fault=indivisible seed=3",
        "merged P=2 batch=3 in=4 parts=4,2,6 float32 bias gather_output seed=7",
        "qkv P=4 batch=3 in=4 heads=8 kv=2 head_size=3 bfloat16 bias skip_bias_add seed=7",
        SETTING_EVERY_WORD,
    ],
)
def test_a_canonical_line_is_written_as_it_was_read(line: str) -> None:
    assert line == str(Case.parse(line))


def test_words_in_any_order_give_the_canonical_line() -> None:
    layer, *words = SETTING_EVERY_WORD.split()
    assert Case.parse("  ".join([layer, *reversed(words)])).text == SETTING_EVERY_WORD


def test_words_that_have_their_default_are_left_out() -> None:
    line = "row P=2 batch=none in=4 out=2 float32 world=2 groups=neighbouring values=exact x=contiguous procedure=run"
    expected = "row P=2 batch=none in=4 out=2 float32 seed=0"
    assert expected == str(Case.parse(line))


def test_a_case_shows_how_to_make_it_again() -> None:
    case = Case.parse("copy P=2 batch=none in=4 float32 seed=3")
    expected = "Case.parse('copy P=2 batch=none in=4 float32 seed=3')"
    assert expected == repr(case)


@pytest.mark.parametrize(
    ("line", "reason", "pointer"),
    [
        (
            "diagonal P=2 in=4",
            "a case begins with a layer, one of column, row, merged, qkv, pair, copy, reduce, gather, scatter",
            "^^^^^^^^",
        ),
        (
            "row P=2 in=4 out=2 biased",
            "unknown word 'biased'; words are float32, float64, bfloat16, float16, bias, gather_output, skip_bias_add, "
            "P=, batch=, in=, hidden=, out=, parts=, heads=, kv=, head_size=, dim=, input_is_parallel=, "
            "reduce_output=, x=, g=, frozen=, autocast=, values=, world=, groups=, procedure=, fault=, seed=",
            "                   ^^^^^^",
        ),
        (
            "row P=2 in=4 out=2 bias=1",
            "unknown key 'bias'; keys are P, batch, in, hidden, out, parts, heads, kv, head_size, dim, "
            "input_is_parallel, reduce_output, x, g, frozen, autocast, values, world, groups, procedure, fault, seed",
            "                   ^^^^^^",
        ),
        ("row P=two in=4 out=2", "P needs a whole number, not 'two'", "    ^^^^^"),
        ("row P=2 batch=3x in=4 out=2", "batch needs a whole number, not ''", "        ^^^^^^^^"),
        ("row P=2 in=4 in=4 out=2", "in_features is given twice", "             ^^^^"),
        ("row P=2 in=4 out=2 float32 float64", "dtype is given twice", "                           ^^^^^^^"),
        ("row P=2 in=4 out=2 reduce_output=no", "reduce_output is True or False, not 'no'", " " * 19 + "^" * 16),
        ("row P=2 in=3 out=2", "P=2 must divide in, which has size 3", "^" * 18),
        ("gather P=2 batch=3 in=4 dim=0", "P=2 must divide dim, which has size 3", "^" * 29),
        ("scatter P=2 in=4 dim=1", "dim=1 is out of range for a tensor of 1 dimensions", "^" * 22),
        ("row P=2 in=4 out=2 gather_output", "row has no gather_output", "^" * 32),
        ("column P=2 in=4 out=2 reduce_output=False", "column has no reduce_output", "^" * 41),
        ("copy P=2 in=4 out=2", "copy has no out_features", "^" * 19),
        ("copy P=2 in=4 out=2 bias", "copy has no bias", "^" * 24),
        ("scatter P=2 in=4 dim=-2", "dim=-2 is out of range for a tensor of 1 dimensions", "^" * 23),
        ("column P=2 in=4", "in=4 out=0: sizes must be at least 1", "^" * 15),
        ("pair P=2 in=4 out=2", "P=2 must divide hidden, which has size 0, at least 1", "^" * 19),
        ("pair P=2 in=4 hidden=3 out=2", "P=2 must divide hidden, which has size 3, at least 1", "^" * 28),
        (
            "pair P=2 in=4 hidden=4 out=2 gather_output",
            "a pair either gathers between its layers, gather_output and input_is_parallel=False, or does neither",
            "^" * 42,
        ),
        ("row P=2 in=4 hidden=4 out=2", "row has no hidden_features", "^" * 27),
        ("merged P=2 in=4", "in=4 parts=(): sizes must be at least 1, and P=2 divide each part", "^" * 15),
        (
            "merged P=2 in=4 parts=4,3",
            "in=4 parts=(4, 3): sizes must be at least 1, and P=2 divide each part",
            "^" * 25,
        ),
        ("merged P=2 in=4 parts=4,", "parts needs a whole number, not ''", " " * 16 + "^" * 8),
        ("merged P=2 in=4 parts=4,2 out=6", "out follows from the parts of a merged layer", " " * 26 + "^" * 5),
        ("qkv P=2 in=4 heads=4 kv=2", "in=4 heads=4 kv=2 head_size=0: sizes must be at least 1", "^" * 25),
        ("qkv P=2 in=4 heads=3 kv=1 head_size=2", "heads=3 must be a multiple of P=2 and of kv=1", "^" * 37),
        ("qkv P=2 in=4 heads=4 kv=3 head_size=2", "heads=4 must be a multiple of P=2 and of kv=3", "^" * 37),
        ("qkv P=2 in=4 heads=6 kv=3 head_size=2", "kv=3 must divide P=2 or be a multiple of it", "^" * 37),
        ("row P=2 batch=3", "the word in=<size> is missing", " " * 15 + "^"),
        ("row in=3 out=2", "the word P=<size> is missing", " " * 14 + "^"),
        ("row P=0 in=4 out=2", "world=0 must be a positive multiple of P=0", "^" * 18),
        ("row P=2 in=4 out=2 world=3", "world=3 must be a positive multiple of P=2", "^" * 26),
        ("row P=2 batch=-1 in=4 out=2", "batch=(-1,) has a negative size", "^" * 27),
        ("row P=2 in=4 out=2 seed=-1", "seed=-1 must not be negative", "^" * 26),
        *(
            (
                f"row P=2 in=4 out=2 frozen={letters}",
                f"frozen='{letters}' must be letters of x, w, b, in this order, and b only where there is a bias",
                "^" * (26 + len(letters)),
            )
            for letters in ("q", "wx", "b")
        ),
        (
            "column P=2 in=4 out=2 bias gather_output skip_bias_add",
            "gather_output and skip_bias_add with a bias would return a sharded bias with a whole output",
            "^" * 54,
        ),
        (
            "row P=2 in=4 out=2 bias reduce_output=False",
            "reduce_output=False with a bias needs skip_bias_add: a partial output has no place for it",
            "^" * 43,
        ),
        (
            "pair P=2 in=4 hidden=4 out=2 values=gaussian",
            "a pair has no bound for values=gaussian; it has exact and small values",
            "^" * 44,
        ),
        (
            "copy P=2 in=4 procedure=refuse fault=input-width",
            "fault=input-width is none that this case can have: there is none",
            "^" * 48,
        ),
        ("row P=2 in=4 out=2 autocast=int8", "autocast='int8' is none of '', bfloat16, float16", "^" * 32),
        (
            "row P=2 in=4 out=2 procedure=refuse",
            "fault='' goes with procedure=refuse, and procedure=refuse needs a fault",
            "^" * 35,
        ),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_points_at_it(line: str, reason: str, pointer: str) -> None:
    with pytest.raises(CaseSyntaxError) as caught:
        Case.parse(line)
    expected = f"not a case: {reason}\n  {line}\n  {pointer}"
    assert expected == str(caught.value)


PARTS = ("parts=4", "heads=4", "kv=4", "head_size=4")
LINEAR = ("out=2", "hidden=4", "bias", "gather_output", "skip_bias_add", "autocast=bfloat16")
ROW = ("input_is_parallel=False", "reduce_output=False")
# The words that a layer has not.
FOREIGN = {
    "column P=2 in=4 out=4": ("hidden=4", "dim=0", *ROW, *PARTS),
    "row P=2 in=4 out=4": ("gather_output", "hidden=4", "dim=0", *PARTS),
    "merged P=2 in=4 parts=4,2": ("hidden=4", "dim=0", *ROW, *PARTS[1:]),
    "qkv P=2 in=4 heads=4 kv=2 head_size=1": ("gather_output", "hidden=4", "dim=0", *ROW, PARTS[0]),
    "pair P=2 in=4 hidden=4 out=4": ("dim=0", "skip_bias_add", "reduce_output=False", *PARTS),
    "copy P=2 in=4": ("dim=0", *LINEAR, *ROW, *PARTS),
    "reduce P=2 in=4": ("dim=0", *LINEAR, *ROW, *PARTS),
    "gather P=2 in=4": (*LINEAR, *ROW, *PARTS),
    "scatter P=2 in=4": (*LINEAR, *ROW, *PARTS),
}

FIELDS = {"kv=4": "kv_heads"}


@pytest.mark.parametrize(("line", "word"), [(line, word) for line, words in FOREIGN.items() for word in words])
def test_a_word_of_another_layer_is_refused(line: str, word: str) -> None:
    assert Case.parse(line)
    with pytest.raises(
        CaseSyntaxError, match=rf"^not a case: {line.split()[0]} has no {FIELDS.get(word, word).split('=')[0]}"
    ):
        Case.parse(f"{line} {word}")


@pytest.mark.parametrize("line", ["", "  \t"])
def test_an_empty_line_says_what_a_case_looks_like(line: str) -> None:
    with pytest.raises(CaseSyntaxError) as caught:
        Case.parse(line)
    expected = "a case line is empty; write for example: row P=2 batch=3 in=4 out=2 float32 bias seed=7"
    assert expected == str(caught.value)


def test_the_example_of_that_sentence_is_a_case() -> None:
    line = "row P=2 batch=3 in=4 out=2 float32 bias seed=7"
    expected = Case("row", 2, 4, out_features=2, batch=(3,), bias=True, seed=7)
    assert expected == Case.parse(line)


def test_a_case_that_is_made_and_not_parsed_is_checked_too() -> None:
    with pytest.raises(ValueError, match="P=2 must divide out, which has size 3"):
        Case("column", 2, 4, out_features=3)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [("neighbouring", ((0, 1), (2, 3))), ("interleaved", ((0, 2), (1, 3)))],
)
def test_a_world_holds_groups_with_ranks_of_their_own(groups: str, expected: tuple[tuple[int, ...], ...]) -> None:
    assert expected == Case("copy", 2, 4, world=4, groups=groups).group_ranks


SEVERAL_PARTS = {
    "merged": {"parts": (4, 2), "bias": True},
    "qkv": {"heads": 4, "kv_heads": 1, "head_size": 3, "bias": True},
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_spoils_the_arguments_of_each_layer_that_has_it(name: str) -> None:
    fault = FAULTS[name]
    for layer in fault.layers:
        sizes = {"out_features": 4, "bias": True} if layer in ("column", "row") else SEVERAL_PARTS.get(layer, {})
        plain = Case(layer, 2, 4, batch=(3,), **sizes)
        spoilt = Case(layer, 2, 4, batch=(3,), **sizes, procedure="refuse", fault=name)
        assert fault.needs(plain)
        assert arguments(plain) != arguments(spoilt)
        assert all(isinstance(word, str) and word for word in fault.words(spoilt))


@pytest.mark.parametrize(
    ("line", "sizes", "copies", "out"),
    [
        ("column P=4 in=1 out=8", (8,), (1,), 8),
        ("merged P=2 in=1 parts=4,2", (4, 2), (1, 1), 6),
        ("qkv P=2 in=1 heads=4 kv=4 head_size=3", (12, 12, 12), (1, 1, 1), 36),
        ("qkv P=4 in=1 heads=4 kv=4 head_size=3", (12, 12, 12), (1, 1, 1), 36),
        ("qkv P=4 in=1 heads=4 kv=2 head_size=3", (12, 6, 6), (1, 2, 2), 24),
        ("qkv P=4 in=1 heads=4 kv=1 head_size=3", (12, 3, 3), (1, 4, 4), 18),
    ],
)
def test_the_parts_of_a_layer_follow_from_its_sizes(
    line: str, sizes: tuple[int, ...], copies: tuple[int, ...], out: int
) -> None:
    case = Case.parse(line)
    assert (sizes, copies, out) == (case.sizes, case.copies, case.out_features)
