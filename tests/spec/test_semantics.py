"""Declared semantics: what they translate is judged as the contract's, what they do not cover is found as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doctoring import (
    Change,
    clean,
    facts,
    gradient,
    one_ulp_off,
    output,
    parameter,
    times,
    with_facts,
)

from spec import STANDARD, Case, Observation, Semantics, judge, normal
from spec.observation import Step

ROW = "row P=2 batch=3 in=4 out=4 float32 bias values=small seed=3"
PAIR = "pair P=2 batch=3 in=2 hidden=4 out=3 float32 bias values=small seed=10"
COLUMN = "column P=2 batch=3 in=4 out=4 float32 bias values=small seed=1"
PAIRS, FIRST_RANK, DIVIDED = (
    Semantics(always_pair=True),
    Semantics(row_bias="first-rank"),
    Semantics(row_bias="divided"),
)


def found(semantics: Semantics, line: str, *changes: Change, ranks: tuple[int, ...] = (0, 1)) -> list[str]:
    """The clauses broken by a clean scene with these changes on these ranks, under a declaration."""
    scene = clean(line)
    seen = list(scene.seen)
    for change in changes:
        seen = [change(scene, entry) if entry.rank in ranks else entry for entry in seen]
    translated = normal(semantics, scene.case, scene.truth, seen)
    return [finding.clause.name for finding in judge(scene.case, scene.truth, translated)]


@pytest.mark.parametrize("semantics", [STANDARD, PAIRS, FIRST_RANK, DIVIDED], ids=lambda s: s.sentences() or "standard")
@pytest.mark.parametrize("line", [ROW, COLUMN])
def test_what_keeps_the_contract_keeps_it_under_every_declaration(semantics: Semantics, line: str):
    assert found(semantics, line) == []


@pytest.mark.parametrize("line", [ROW, COLUMN])
def test_a_pair_with_none_is_a_tensor_if_that_is_declared(line: str):
    assert found(PAIRS, line, facts(pair=True)) == []
    assert found(STANDARD, line, facts(pair=True)) == ["forward.returns"]


def test_a_pair_with_a_bias_that_was_added_is_found():
    def with_bias(scene: object, seen: Observation) -> Observation:
        step = seen.steps["first"]
        return replace(seen, steps={"first": replace(step, returned_bias=step.parameters["bias"])})

    assert found(PAIRS, ROW, facts(pair=True), with_bias) == ["forward.returns"]


def no_bias(scene: object, seen: Observation) -> Observation:
    def without(step: Step) -> Step:
        parameters = {name: array for name, array in step.parameters.items() if name != "bias"}
        gradients = {name: array for name, array in step.gradients.items() if name != "bias"}
        sizes = {name: size for name, size in step.facts.get("storage_bytes", {}).items() if name != "bias"}
        changed = replace(step, parameters=parameters, gradients=gradients)
        return with_facts(changed, storage_bytes=sizes) if sizes else changed

    return replace(seen, steps={name: without(step) for name, step in seen.steps.items()})


def test_a_bias_on_rank_0_alone_stands_for_all_if_that_is_declared():
    assert found(FIRST_RANK, ROW, no_bias, ranks=(1,)) == []
    assert found(STANDARD, ROW, no_bias, ranks=(1,))[0] == "row.bias.replicated"


def test_a_rank_without_a_bias_may_lack_its_key_and_no_other():
    def keys(*names: str) -> Change:
        return facts(keys=list(names))

    line = "row P=2 batch=1 in=2 out=1 float32 bias procedure=state-dict seed=0"
    whole = [keys("bias", "weight")]
    assert found(FIRST_RANK, line, *whole) == []
    scene = clean(line)
    for held, broken in ((("weight",), []), (("W",), ["state.keys"]), (("junk", "weight"), ["state.keys"])):
        seen = [keys("bias", "weight")(scene, scene.seen[0]), no_bias(scene, keys(*held)(scene, scene.seen[1]))]
        translated = normal(FIRST_RANK, scene.case, scene.truth, seen)
        assert [finding.clause.name for finding in judge(scene.case, scene.truth, translated)] == broken


def test_so_does_the_row_bias_of_a_pair():
    def no_second_bias(scene: object, seen: Observation) -> Observation:
        step = seen.steps["first"]
        parameters = {name: array for name, array in step.parameters.items() if name != "bias2"}
        gradients = {name: array for name, array in step.gradients.items() if name != "bias2"}
        return replace(seen, steps={"first": replace(step, parameters=parameters, gradients=gradients)})

    assert found(FIRST_RANK, PAIR, no_second_bias, ranks=(1,)) == []
    assert found(STANDARD, PAIR, no_second_bias, ranks=(1,)) == ["pair.backward.gradients", "backward.replicas"]


def test_a_wrong_bias_on_rank_0_is_found():
    wrong = found(FIRST_RANK, ROW, no_bias, ranks=(1,)) + found(FIRST_RANK, ROW, gradient("bias", times(2)), ranks=(0,))

    assert wrong[0].startswith("row.backward.bias-grad")


def test_a_second_bias_that_is_wrong_is_not_replaced():
    assert found(FIRST_RANK, ROW, parameter("bias", times(2)), ranks=(1,)) != []


def test_a_divided_bias_may_round_the_output_alike_on_all_ranks():
    assert found(DIVIDED, ROW, output(one_ulp_off)) == []
    assert found(STANDARD, ROW, output(one_ulp_off)) == ["row.forward.value"]


@pytest.mark.parametrize(
    ("change", "ranks"),
    [
        (output(one_ulp_off), (1,)),
        (output(times(1.001)), (0, 1)),
        (output(lambda scene, rank, value: value - scene.truth.data[0].bias), (0, 1)),
        (output(lambda scene, rank, value: value + scene.truth.data[0].bias), (0, 1)),
        (output(lambda scene, rank, value: value[:-1]), (0, 1)),
    ],
    ids=["replicas", "beyond the bound", "bias missing", "bias twice", "another shape"],
)
def test_a_divided_bias_excuses_nothing_else(change: Change, ranks: tuple[int, ...]):
    assert found(DIVIDED, ROW, change, ranks=ranks) != []


def test_a_divided_bias_excuses_no_column():
    assert found(DIVIDED, COLUMN, output(one_ulp_off)) == ["column.forward.value"]


def test_lost_and_declined_ranks_are_left_as_they_are():
    scene = clean(ROW)
    lost = tuple(replace(entry, fate="hung", steps={}) for entry in scene.seen)

    assert normal(DIVIDED, scene.case, scene.truth, lost) == lost
    declined = tuple(Observation(rank, declined="no") for rank in range(2))
    assert normal(DIVIDED, scene.case, scene.truth, declined) == declined


@pytest.mark.parametrize(
    ("semantics", "line", "device", "reason"),
    [
        (Semantics(needs_cuda=("gather_output",)), f"{COLUMN} gather_output", "cpu", "gather_output needs CUDA"),
        (Semantics(needs_cuda=("gather_output",)), f"{COLUMN} gather_output", "cuda", ""),
        (Semantics(needs_cuda=("gather_output",)), COLUMN, "cpu", ""),
        (
            Semantics(needs_cuda=("gather_output",)),
            f"{COLUMN} procedure=refuse fault=gathered-and-skipped",
            "cpu",
            "gather_output needs CUDA",
        ),
        (
            Semantics(needs_cuda=("input_is_parallel=False",)),
            f"{ROW} input_is_parallel=False",
            "cpu",
            "input_is_parallel=False needs CUDA",
        ),
        (Semantics(needs_cuda=("copy",)), "copy P=2 batch=3 in=4 float32 seed=3", "cpu", "copy needs CUDA"),
        (Semantics(needs_cuda=("copy",)), "copy P=1 batch=3 in=4 float32 seed=3", "cpu", ""),
        (Semantics(needs_cuda=("autocast",)), f"{ROW} autocast=bfloat16", "cpu", "autocast needs CUDA"),
        (Semantics(needs_cuda=("autocast",)), f"{ROW} autocast=bfloat16", "cuda", ""),
        (Semantics(batch_dims=(0, 0)), "copy P=2 batch=3 in=4 float32 seed=3", "cpu", ""),
        (Semantics(batch_dims=(1, 2)), ROW, "cpu", ""),
        (Semantics(batch_dims=(2, 2)), ROW, "cpu", "takes 2 to 2 batch dimensions"),
        (Semantics(batch_dims=(0, 0)), ROW, "cpu", "takes 0 to 0 batch dimensions"),
        (
            DIVIDED,
            "pair P=2 batch=3 in=2 hidden=4 out=3 float32 bias seed=10",
            "cpu",
            "its output is rounded where b / P is added before the reduction, and a pair has no bound for that",
        ),
    ],
)
def test_what_it_does_not_have_is_declined_with_a_reason(semantics: Semantics, line: str, device: str, reason: str):
    assert semantics.declines(Case.parse(line), device) == reason


def test_it_travels_as_plain_data():
    from dataclasses import asdict
    from json import dumps, loads

    declared = Semantics(always_pair=True, row_bias="divided", needs_cuda=("gather",), batch_dims=(1, 2))

    assert Semantics.from_data(loads(dumps(asdict(declared)))) == declared
    assert Semantics.from_data(loads(dumps(asdict(STANDARD)))) == STANDARD
    assert len(declared.sentences()) == 4


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"row_bias": "rank0"}, "row_bias = 'rank0'; it must be one of whole, first-rank, divided"),
        ({"needs_cuda": ("collumn",)}, "needs_cuda has 'collumn'; it may have column, row"),
    ],
)
def test_a_word_that_is_none_is_refused(fields: dict[str, object], text: str):
    with pytest.raises(ValueError, match=text):
        Semantics(**fields)
