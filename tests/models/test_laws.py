"""The laws of models, on doctored measurements, and the items that they judge."""

from __future__ import annotations

import re

import pytest

from conformance.models.items import PROCEDURES, ModelItem, model_items
from conformance.models.subjects import SUBJECTS
from conformance.models.told import BROKEN, JUDGED, SIZE, Laws
from spec import LAWS, REGISTER, Measured, broken

OUTPUT, REPLICATED = LAWS["model.output"], LAWS["model.replicated"]
RIGHT = Measured("model.output", "the output", 1e-15, 1e-14, 1.0)


def reasons(law, *ranks: Measured | None) -> list[tuple[int | None, str]]:
    return [(v.rank, v.what) for v in broken(law, [[entry] if entry else [] for entry in ranks])]


def test_what_lies_within_its_bound_breaks_nothing() -> None:
    assert reasons(OUTPUT, RIGHT, RIGHT) == []


@pytest.mark.parametrize("deviation", [2e-14, float("inf"), float("nan")])
def test_what_lies_outside_is_named_with_its_rank(deviation: float) -> None:
    wrong = Measured("model.output", "the output", deviation, 1e-14, 1.0)

    assert reasons(OUTPUT, RIGHT, wrong) == [(1, "the output lies too far from the dense model's")]


@pytest.mark.parametrize("bound", [1e-7, float("inf"), float("nan")])
def test_a_bound_that_is_too_wide_tests_nothing(bound: float) -> None:
    (told,) = reasons(OUTPUT, Measured("model.output", "the output", 0.0, bound, 1.0))[:1]

    assert "the output" in told[1]


def test_a_law_that_measured_nothing_was_not_tested() -> None:
    assert reasons(OUTPUT, RIGHT, None)[0] == (1, "measured nothing, so the law was not tested")
    assert reasons(OUTPUT, Measured("model.gradients", "w"))[0][1] == "measured nothing, so the law was not tested"


def test_ranks_that_measured_different_things_are_named() -> None:
    assert reasons(OUTPUT, RIGHT, Measured("model.output", "w")) == [(1, "measured other tensors than rank 0")]


def test_replicas_with_other_bits_are_named() -> None:
    same = Measured("model.replicated", "w", digest="aa")

    assert reasons(REPLICATED, same, same) == []
    told = reasons(REPLICATED, same, Measured("model.replicated", "w", digest="ab"))
    assert told == [(1, "w is not the same on every rank")]


def test_what_is_wrong_without_a_number_is_said() -> None:
    assert reasons(OUTPUT, Measured("model.output", "the output", wrong="is missing")) == [(0, "the output is missing")]


def test_names_are_words_with_dots_that_no_clause_has() -> None:
    assert not LAWS.keys() & REGISTER.keys()
    for name, law in LAWS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", name)
        assert law.text.endswith(".")
        assert not law.title.endswith(".")


def test_every_law_judges_an_item_at_every_size_that_it_can() -> None:
    for P in (2, 4):
        judged = {law.name for item in model_items((P,)) for law in item.laws}
        assert LAWS.keys() - judged == ({"works.fsdp2", "works.ddp"} if P == 2 else set())


def test_items_are_told_apart_by_their_text_and_parse_back() -> None:
    items = list(model_items())

    assert len(set(map(str, items))) == len(items)
    assert [ModelItem.parse(str(item)) for item in items] == items
    assert {item.subject for item in items} == set(SUBJECTS)
    with pytest.raises(ValueError, match="there is no item 'gated-P3-model'; it is MODEL-P2-PROCEDURE"):
        ModelItem.parse("gated-P3-model")


def test_items_can_be_chosen_by_size_and_law() -> None:
    assert {item.P for item in model_items((1, 2))} == {2}
    assert {item.procedure for item in model_items((2,), ("train.replicated",))} >= {"sgd", "adamw", "dropout"}
    assert {item.procedure for item in model_items((2,), ("model.",))} == {"model"}
    assert {item.procedure for item in model_items((4,), ("works.ddp",))} == {"ddp"}


def test_a_model_that_does_not_generate_is_not_judged_for_it() -> None:
    assert LAWS["model.generate"] in ModelItem("llama", 2, "model").laws
    assert LAWS["model.generate"] not in ModelItem("bert", 2, "model").laws


def test_procedures_name_laws_and_models_that_there_are() -> None:
    assert {law for each in PROCEDURES.values() for law in each.laws} == set(LAWS)
    assert {name for each in PROCEDURES.values() for name in each.subjects} == set(SUBJECTS)


def test_a_run_counts_laws_by_size() -> None:
    laws = Laws()
    laws.add([(SIZE, 2), (JUDGED, "model.cut model.output"), (BROKEN, "")])
    laws.add([(SIZE, 2), (JUDGED, "model.cut"), (BROKEN, "model.cut")])
    laws.add([("procedure", "run")])

    assert [re.sub(" +", " ", line) for line in laws.lines((2, 4))] == [
        "law, by models world 2 world 4",
        "model.cut FAIL 1/2 -",
        "model.output 1 -",
    ]
    assert Laws().lines((2, 4)) == []
