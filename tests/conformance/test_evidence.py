"""What a failure is seen by: every tensor of every rank, and what is wrong with it; and what flowed between ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import execnet
import numpy as np
import pytest
from faulty import BiasBeforeReduction, InputGradient
from hypothesis import given, settings
from page_reports import NoBiasGradient, Superfluous, Wide

from conformance.adapters.simulated import PROCEDURES, Exchange, Simulated
from conformance.items import items
from conformance.observers import InProcess
from conformance.reporting.evidence import MOST, evidence
from conformance.reporting.evidence.flow import Exchange as Collected
from conformance.reporting.evidence.flow import exchanges, is_wrong
from conformance.strategies import cases
from spec import Array, Case, Collective, Observation, Step, Truth
from spec.numerics import encode, round_to
from spec.placements import Floats, Sharded, local
from spec.reference import truth

ROW = "row P=2 batch=2 in=4 out=3 float32 bias values=small seed=1"
COLUMN = "column P=2 batch=2 in=3 out=4 float32 bias values=small seed=1"
HAS = [item for item in items() if item.procedure in PROCEDURES and item.layer != "pair"]
Change = Callable[[int, Step], Step]


def seen(adapter: Simulated, line: str, change: Change | None = None) -> dict[str, Any]:
    """The evidence of an implementation on a case, after a change to every step."""
    case = Case.parse(line)
    groups = InProcess(adapter).observe(case, 10.0)
    number = len(groups) - 1
    observed = groups[number]
    if change:
        observed = tuple(
            replace(entry, steps={name: change(entry.rank, step) for name, step in entry.steps.items()})
            for entry in observed
        )
    found = evidence(case, truth(case, number), observed, number)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def tensor(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return next(entry["ranks"] for entry in found["tensors"] if entry["name"] == name)


def marked(found: dict[str, Any]) -> dict[str, list[int]]:
    """The tensors that are wrong, and on which ranks."""
    wrong = {
        entry["name"]: [r for r, rank in enumerate(entry["ranks"]) if rank["differs"] or rank["note"]]
        for entry in found["tensors"]
    }
    return {name: ranks for name, ranks in wrong.items() if ranks}


def with_output(array: Callable[[Array], Array | None]) -> Change:
    return lambda rank, step: replace(step, output=array(step.output)) if rank and step.output else step


@pytest.mark.parametrize("item", HAS, ids=str)
def test_nothing_is_marked_where_nothing_is_wrong(item: Any) -> None:
    @settings(max_examples=3)
    @given(cases(item))
    def clean(case: Case) -> None:
        for number, observed in enumerate(InProcess(Simulated()).observe(case, 10.0)):
            found = evidence(case, truth(case, number), observed, number)
            assert (found is None) == (case.procedure == "refuse")
            assert found is None or not (marked(found) or is_wrong(found))

    clean()


def test_every_rank_has_what_the_contract_gives_it() -> None:
    case = Case.parse(ROW)
    found, data = seen(Simulated(), ROW), truth(case).data[0]

    assert [entry["name"] for entry in found["tensors"]] == [
        *("input", "weight", "bias", "output", "upstream gradient"),
        *("gradient of input", "gradient of weight", "gradient of bias"),
    ]
    assert (found["P"], found["layer"], found["ranks"], found["step"]) == (2, "row", [0, 1], "first")
    assert next(entry for entry in found["tensors"] if entry["name"] == "weight")["placement"] == "S(1)"
    for r in range(2):
        assert tensor(found, "weight")[r]["got"] == local(Sharded(1), data.weight, 2, r).tolist()
        assert tensor(found, "input")[r] == {
            **{"shape": [2, 2], "expected": local(Sharded(1), data.x, 2, r).tolist(), "got": None, "at": [0, 0]},
            **{"wrong": [], "differs": 0, "cut": False, "note": ""},
        }


def test_a_wrong_output_is_marked_element_by_element_and_nothing_else() -> None:
    found = seen(BiasBeforeReduction(), ROW)

    assert marked(found) == {"output": [0, 1]}
    for rank in tensor(found, "output"):
        bias = np.array(tensor(found, "bias")[0]["expected"])
        assert np.array_equal(np.array(rank["got"]) - np.array(rank["expected"]), np.repeat(bias, 2, axis=0))
        assert rank["wrong"] == [[i, j] for i in range(2) for j in range(3)]
        assert rank["differs"] == 6


def test_a_gradient_that_is_not_reduced_is_marked_on_every_rank() -> None:
    found = seen(InputGradient(lambda terms: terms), COLUMN)

    assert marked(found) == {"gradient of input": [0, 1]}


def test_a_gradient_that_only_rank_0_has_is_missing_on_the_others() -> None:
    found = seen(NoBiasGradient(), ROW)

    assert [rank["note"] for rank in tensor(found, "gradient of bias")] == ["", "missing"]
    assert tensor(found, "gradient of bias")[1]["got"] is None


def test_a_gradient_that_nobody_should_have_is_unexpected() -> None:
    line = "row P=2 batch=2 in=4 out=3 float32 bias frozen=w values=small seed=1"
    array = Array(b"\0" * 24, "float32", (3, 2))
    found = seen(
        Simulated(),
        line,
        lambda rank, step: replace(step, gradients={**step.gradients, "weight": array if rank else None}),
    )

    assert [rank["note"] for rank in tensor(found, "gradient of weight")] == ["", "unexpected"]
    assert tensor(found, "gradient of weight")[1]["shape"] == [3, 2]


def test_another_dtype_is_named() -> None:
    assert [rank["note"] for rank in tensor(seen(Wide(), ROW), "output")] == ["float64, not float32"] * 2


@pytest.mark.parametrize(
    ("array", "note"),
    [
        (lambda array: Array(array.bits, "float32", (3, 2)), "shape [3, 2], not [2, 3]"),
        (lambda array: Array(array.bits, "float32", (6,)), "shape [6], not [2, 3]"),
        (lambda array: Array(array.bits[:4], "float32", ()), "shape [], not [2, 3]"),
        (lambda array: Array(b"", "float32", (2, 0)), "shape [2, 0], not [2, 3]"),
        (lambda array: Array(array.bits, "int32", (2, 3)), "int32, not float32"),
        (lambda array: None, "missing"),
    ],
)
def test_an_output_of_another_kind_is_named(array: Callable[[Array], Array | None], note: str) -> None:
    assert [rank["note"] for rank in tensor(seen(Simulated(), ROW, with_output(array)), "output")] == ["", note]


def test_numbers_that_json_has_no_word_for_are_texts() -> None:
    bits = encode(np.full((2, 3), np.nan), "float32").tobytes()
    found = seen(Simulated(), ROW, with_output(lambda array: Array(bits, "float32", (2, 3))))

    assert tensor(found, "output")[1]["got"][0] == ["nan", "nan", "nan"]
    assert tensor(found, "output")[1]["differs"] == 6


def test_large_numbers_travel_between_processes() -> None:
    """pytest-xdist carries reports by execnet, which cannot pack integers below -2^31."""
    found = seen(Simulated(), "column P=2 batch=1 in=3 out=2 float64 seed=0")
    values = [abs(v) for entry in found["tensors"] for rank in entry["ranks"] for row in rank["expected"] for v in row]

    assert max(values) > 2**40
    assert execnet.loads(execnet.dumps(found)) == found


def test_what_was_written_to_is_said() -> None:
    found = seen(Simulated(), ROW, lambda rank, step: replace(step, mutated=("x",) if rank else ()))

    assert [rank["note"] for rank in tensor(found, "input")] == ["", "written to"]


@pytest.mark.parametrize(("place", "start"), [((0, 0), [0, 0]), ((7, 7), [0, 0]), ((8, 3), [8, 0]), ((11, 9), [8, 8])])
def test_a_large_tensor_is_cut_with_the_wrong_element_in_view(place: tuple[int, int], start: list[int]) -> None:
    line = "row P=2 batch=4x4 in=4 out=16 float32 values=small seed=1"

    def spoiled(array: Array) -> Array:
        numbers = array.numbers.reshape(16, 16).copy()
        numbers[place] += 1
        return Array(encode(numbers, "float32").tobytes(), "float32", array.shape)

    rank = tensor(seen(Simulated(), line, with_output(spoiled)), "output")[1]

    assert (rank["shape"], rank["cut"], rank["at"], rank["differs"]) == ([4, 4, 16], True, start, 1)
    assert rank["wrong"] == [[place[0] - start[0], place[1] - start[1]]]
    assert len(rank["got"]) == MOST
    assert all(len(row) == MOST for row in rank["got"])
    i, j = rank["wrong"][0]
    assert rank["got"][i][j] == rank["expected"][i][j] + 1


def test_real_values_are_held_against_the_bound() -> None:
    line = "row P=2 batch=2 in=64 out=3 float32 values=gaussian procedure=precision seed=1"

    class Narrow(Simulated):
        def product(self, case: Case, a: Floats, b: Floats) -> Floats:
            return round_to(super().product(case, a, b), "bfloat16")

    assert marked(seen(Simulated(), line)) == {}
    assert "output" in marked(seen(Narrow(), line))
    got = seen(Simulated(), line)
    assert tensor(got, "output")[0]["got"] != tensor(got, "output")[0]["expected"]


def test_the_first_step_with_something_wrong_is_shown() -> None:
    """Gradients that a second backward overwrites are right in the first."""
    line = "row P=2 batch=2 in=4 out=3 float32 bias procedure=accumulate values=small seed=1"
    found = seen(
        Simulated(),
        line,
        lambda rank, step: (
            replace(step, gradients={**step.gradients, "bias": Array(b"\0" * 12, "float32", (3,))})
            if step.name == "second"
            else step
        ),
    )

    assert found["step"] == "second"
    assert marked(found) == {"gradient of bias": [0, 1]}


def test_a_second_layer_is_held_against_its_own_run() -> None:
    """Its weights are others than the first's, and right."""
    line = "row P=2 batch=2 in=4 out=3 float32 bias procedure=interleave values=small seed=1"
    zeros = Array(b"\0" * 24, "float32", (2, 3))
    found = seen(Simulated(), line, lambda rank, step: replace(step, output=zeros) if step.name == "b" else step)

    assert (found["step"], marked(found)) == ("b", {"output": [0, 1]})


def test_each_group_has_its_own_data() -> None:
    line = "row P=2 batch=2 in=4 out=3 float32 bias values=small world=4 groups=interleaved seed=1"
    case = Case.parse(line)
    found = seen(Simulated(), line)

    assert found["ranks"] == [1, 3]
    assert tensor(found, "bias")[0]["expected"] == [truth(case, 1).data[0].bias.tolist()]  # type: ignore[union-attr]
    assert marked(found) == {}


def test_initial_weights_are_held_against_the_unsharded_layer_s() -> None:
    case = Case.parse("column P=2 in=2 out=2 float32 procedure=init seed=0")
    whole = Array(encode(np.array([[1.0, 2.0], [3.0, 4.0]]), "float32").tobytes(), "float32", (2, 2))
    same = Array(whole.bits[:8], "float32", (1, 2))
    steps = {"first": Step("first", {"weight": same}), "dense": Step("dense", {"weight": whole})}
    found = evidence(case, truth(case), [Observation(r, steps) for r in range(2)])

    assert found is not None
    assert marked(found) == {"weight": [1]}
    assert tensor(found, "weight")[1]["expected"] == [[3, 4]]


def test_loaded_parameters_are_held_against_the_masters() -> None:
    case = Case.parse("row P=2 in=2 out=1 float32 procedure=state-dict seed=0")
    right = [
        Array(encode(w, "float32").tobytes(), "float32", (1, 1)) for w in np.split(truth(case).data[0].weight, 2, 1)
    ]  # type: ignore[arg-type]
    observed = [
        Observation(r, {"first": Step("first", {"weight": right[r]}), "loaded": Step("loaded", {"weight": right[0]})})
        for r in range(2)
    ]
    found = evidence(case, truth(case), observed)

    assert found is not None
    assert (found["step"], marked(found)) == ("loaded", {"weight": [1]})


# Collectives


def flow_of(case: Case, logs: Sequence[Sequence[Collective] | None]) -> dict[str, Any]:
    (observed,) = InProcess(Simulated()).observe(case, 10.0)
    changed = [
        replace(entry, steps={"first": replace(entry.steps["first"], collectives=None if log is None else tuple(log))})
        for entry, log in zip(observed, logs, strict=True)
    ]
    found = evidence(case, truth(case), changed)
    assert found is not None
    return found


REDUCE = Collective("all-reduce", 24, "float32", "forward", (0, 1))


def test_what_was_asked_for_and_made_stands_on_all_ranks() -> None:
    found = seen(Simulated(), ROW)

    assert found["agreed"] == [{"phase": "forward", "kind": "all-reduce", "bytes": 24}]
    assert exchanges(found, "forward") == [Collected("all-reduce", 24, True, (0, 1), "float32")]
    assert exchanges(found, "backward") == []
    assert not is_wrong(found)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([[], []], [Collected("all-reduce", 24, True, ())]),
        ([[REDUCE], []], [Collected("all-reduce", 24, True, (0,), "float32")]),
        (
            [[REDUCE, REDUCE]] * 2,
            [
                Collected("all-reduce", 24, True, (0, 1), "float32"),
                Collected("all-reduce", 24, False, (0, 1), "float32"),
            ],
        ),
        (
            [[replace(REDUCE, bytes=12)]] * 2,
            [Collected("all-reduce", 12, False, (0, 1), "float32"), Collected("all-reduce", 24, True, ())],
        ),
        ([[replace(REDUCE, ranks=(0, 1, 2, 3))]] * 2, [Collected("all-reduce", 24, True, (0, 1), "float32", "2, 3")]),
        (
            [[REDUCE], [replace(REDUCE, kind="broadcast"), REDUCE]],
            [Collected("broadcast", 24, False, (1,), "float32"), Collected("all-reduce", 24, True, (0, 1), "float32")],
        ),
    ],
)
def test_collectives_beside_those_asked_for(logs: list[list[Collective]], expected: list[Collected]) -> None:
    found = flow_of(Case.parse(ROW), logs)

    assert exchanges(found, "forward") == expected
    assert is_wrong(found)


def test_what_cannot_be_observed_is_not_called_missing() -> None:
    found = flow_of(Case.parse(ROW), [None, None])

    assert (found["flow"], found["agreed"], is_wrong(found)) == (None, [], False)


def test_a_superfluous_collective_is_told_from_one_asked_for() -> None:
    found = seen(Superfluous(), ROW)

    assert exchanges(found, "backward") == [Collected("all-reduce", 24, False, (0, 1), "float32")]


# Lost ranks


def test_of_lost_ranks_there_is_what_they_held_and_how_far_they_came() -> None:
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
    observed = (
        Observation(0, fate="hung", entered=("#1 all-reduce 4 B float32", "#1 waits", "#1 finished", "#2 what ever")),
        Observation(1, fate="died", entered=("#1 all-reduce 4 B float32", "#1 waits")),
    )
    found = evidence(case, Truth(()), observed)

    assert found is not None
    assert (found["fates"], found["parts"], found["agreed"]) == (["hung", "died"], 2, [])
    plain = [(e["rank"], e["number"], e["kind"], e["bytes"], e["dtype"], e["stage"]) for e in found["flow"]]
    assert plain == [
        (0, 1, "all-reduce", 4, "float32", "finished"),
        (0, 2, "what ever", 0, "", ""),
        (1, 1, "all-reduce", 4, "float32", "waits"),
    ]
    assert [entry["name"] for entry in found["tensors"]] == ["input", "weight"]
    assert tensor(found, "weight")[1]["expected"] == [[truth(case).data[0].weight[0, 1]]]  # type: ignore[index]
    assert marked(found) == {}


def test_a_rank_that_raised_is_lost_too() -> None:
    case = Case.parse("row P=2 batch=1 in=2 out=1 float32 seed=0")
    found = evidence(case, Truth(()), (Observation(0, fate="raised"), Observation(1, fate="victim")))

    assert found is not None
    assert found["fates"] == ["raised", "victim"]


def test_an_exchange_of_the_simulation_is_seen() -> None:
    """The evidence above comes from a simulation that records what it exchanges."""
    exchange = Exchange(Case.parse(ROW))
    exchange.all_reduce([np.ones(2), np.ones(2)])

    assert [entry.kind for entry in exchange.log] == ["all-reduce"]
