"""The register: every clause has a fault that it names, a name that is no position, and an error of its own."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from doctoring import Doctored

from spec import REGISTER, Case, Clause, ContractViolation, applicable
from spec.case import LAYERS
from spec.register import clause

# What these say follows from clauses before them, so no fault is theirs alone.
FOLLOWING = {*(f"{name}.adjoint" for name in ("copy", "reduce", "gather", "scatter")), "merged.parts.separate"}


def every_fault() -> list[Doctored]:
    modules = sorted(path.stem for path in Path(__file__).parent.glob("test_doctored_*.py"))
    return [entry for module in modules for entry in importlib.import_module(module).TABLE]


def test_every_clause_has_a_fault_that_it_is_first_to_name() -> None:
    assert set(REGISTER) - FOLLOWING == {entry.clause for entry in every_fault()}


def test_every_clause_that_follows_from_others_is_seen_to_fail_too() -> None:
    following = {name for entry in every_fault() for name in entry.also}
    assert FOLLOWING & following == FOLLOWING


def test_no_two_faults_have_the_same_name() -> None:
    names = [str(entry) for entry in every_fault()]
    assert sorted(set(names)) == sorted(names)


def test_what_a_fault_breaks_stands_in_the_order_of_the_register() -> None:
    order = list(REGISTER)
    for entry in every_fault():
        assert sorted(entry.expected, key=order.index) == entry.expected


def test_names_are_words_with_dots_and_never_positions() -> None:
    for name in REGISTER:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*(\.[a-z]+(-[a-z]+)*)+", name), name


def test_every_clause_has_a_sentence_for_its_title_and_its_text() -> None:
    for entry in REGISTER.values():
        assert entry.title
        assert not entry.title.endswith(".")
        assert entry.text.endswith(".")
        assert " ".join(entry.text.split()) == entry.text


def test_every_clause_raises_a_class_of_its_own() -> None:
    errors = [entry.error for entry in REGISTER.values()]
    assert len(set(errors)) == len({error.__name__ for error in errors}) == len(REGISTER)
    for entry in REGISTER.values():
        assert issubclass(entry.error, ContractViolation)
        assert entry is entry.error.clause


def test_a_name_is_given_once() -> None:
    expected = "clause ranks.alive is in the register already; a changed meaning needs a new name"
    with pytest.raises(ValueError, match=re.escape(expected)):
        clause("ranks.alive", "", "", lambda case: True)(lambda case, truth, seen: ())


def names(line: str) -> list[str]:
    return [entry.name for entry in applicable(Case.parse(line))]


def test_applicable_clauses_of_one_case_are_pinned() -> None:
    expected = [
        "ranks.no-exception",
        "ranks.alive",
        "ranks.same-collectives",
        "ranks.finish",
        "purity.inputs",
        "purity.upstream",
        "purity.masters",
        "purity.no-alias",
        "row.weight.shard",
        "row.bias.replicated",
        "parameters.own-storage",
        "row.forward.bias-once",
        "row.forward.value",
        "forward.replicas",
        "forward.dtype",
        "forward.returns",
        "row.backward.input-grad",
        "row.backward.weight-grad",
        "row.backward.bias-grad",
        "backward.replicas",
        "backward.dtype",
        "collectives.group",
        "collectives.dtype",
        "collectives.forward-budget",
        "collectives.backward-budget",
    ]
    assert sorted(expected) == sorted(names("row P=2 batch=3 in=4 out=2 float32 bias seed=7"))


def test_a_refusal_is_judged_by_no_clause_about_values() -> None:
    refusals = {name for name in REGISTER if name.split(".")[0] in ("ranks", "refuse")}
    judged = names("row P=2 batch=3 in=4 out=2 float32 procedure=refuse fault=zero-size frozen=xw seed=7")
    assert sorted(refusals) == sorted(judged)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_case_is_judged_by_the_clauses_of_another_layer(layer: str) -> None:
    sizes = {"column": "in=4 out=4", "row": "in=4 out=4", "pair": "in=4 hidden=4 out=4"}
    sizes |= {"merged": "in=4 parts=4,2", "qkv": "in=4 heads=4 kv=1 head_size=2"}
    others = set(LAYERS) - {layer}
    assert not [
        name
        for name in names(f"{layer} P=2 batch=3 {sizes.get(layer, 'in=4')} float32 seed=1")
        if name.split(".")[0] in others
    ]


def test_every_clause_is_must_or_should() -> None:
    should = {name for name, entry in REGISTER.items() if entry.level == "SHOULD"}
    expected = {
        "refuse.same-everywhere",
        "refuse.type",
        "refuse.text",
        "one-rank.nodes",
        "one-rank.no-collective",
        "collectives.forward-budget",
        "collectives.backward-budget",
        "state.local",
    }
    assert expected == should
    assert {"MUST", "SHOULD"} == {entry.level for entry in REGISTER.values()}
    assert all(isinstance(entry, Clause) for entry in REGISTER.values())
