"""Gradients that are wrong in one thing: a reduction too few or too many, one right slice, a frozen tensor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from doctoring import Doctored, Numbers, Scene, as_seen, clean, gradient, one_ulp_off, times, with_gradient, without

from spec import Sharded, judge
from spec.placements import Floats, bounds, local

COLUMN = "column P=4 batch=3 in=4 out=4 float32 bias values=small seed=11"
ROW = "row P=4 batch=2x3 in=8 out=4 float32 bias values=small seed=12"
GATHERING = "row P=4 batch=3 in=8 out=4 float32 input_is_parallel=False values=small seed=13"
FROZEN = "row P=2 batch=3 in=4 out=2 float32 bias frozen=wb values=small seed=14"
FROZEN_X = "column P=2 batch=3 in=4 out=2 float32 bias frozen=x values=small seed=15"
ALL_FROZEN = "column P=2 batch=3 in=4 out=2 float32 bias frozen=xwb values=small seed=16"
REAL = "column P=2 batch=2 in=2 out=128 float32 values=gaussian procedure=precision seed=17"
AUTOCAST = "row P=2 batch=3 in=4 out=2 float32 bias autocast=bfloat16 values=small seed=18"
TWO = "row P=2 batch=3 in=4 out=2 float32 bias values=small procedure=accumulate seed=19"
TWICE = "row P=2 batch=3 in=4 out=2 float32 bias values=small procedure=retain seed=19"
PAIR = "pair P=2 batch=3 in=2 hidden=4 out=3 float32 bias values=small seed=22"
FUNCTIONS = {
    name: f"{name} P=4 batch=2 in=8 float32 values=small seed=21" for name in ("copy", "reduce", "gather", "scatter")
}
COPY_TWICE = f"{FUNCTIONS['copy']} procedure=accumulate"
_REPLICAS = "backward.replicas"


def term_of_input_gradient(scene: Scene, rank: int, dx: Floats) -> Floats:
    """Column, no all-reduce: G_r W_r."""
    given, P = scene.truth.data[0], scene.case.P
    assert given.weight is not None
    here = bounds(len(given.weight), P, rank)
    return given.g[..., here] @ given.weight[here]


def of_rank_0(name: str) -> Numbers:
    def numbers(scene: Scene, rank: int, value: Floats) -> Floats:
        shown = scene.seen[0].steps["first"].gradients[name]
        assert shown is not None
        return shown.numbers

    return numbers


def own_slice_alone(scene: Scene, rank: int, value: Floats) -> Floats:
    """The rank's own slice is right, the others are zero: a gather that was left out."""
    kept, here = np.zeros_like(value), bounds(value.shape[-1], scene.case.P, rank)
    kept[..., here] = value[..., here]
    return kept


def own_slice_in_every_place(scene: Scene, rank: int, value: Floats) -> Floats:
    return np.concatenate([value[..., bounds(value.shape[-1], scene.case.P, rank)]] * scene.case.P, -1)


def own_term(scene: Scene, rank: int, value: Floats) -> Floats:
    return scene.truth.data[0].g[rank]


def summed(scene: Scene, rank: int, value: Floats) -> Floats:
    """A gather whose backward reduces and scatters: P times the slice."""
    return scene.case.P * local(Sharded(scene.case.dim), scene.truth.data[0].g, scene.case.P, rank)


def reversed_rows(scene: Scene, rank: int, value: Floats) -> Floats:
    return value[::-1]


def last_batch_alone(scene: Scene, rank: int, dw: Floats) -> Floats:
    """Row: the first batch dimension is not part of the sum."""
    given = scene.truth.data[0]
    x = given.x[-1][..., bounds(given.x.shape[-1], scene.case.P, rank)]
    return given.g[-1].T @ x


def of_the_second_run_alone(name: str) -> Numbers:
    def numbers(scene: Scene, rank: int, value: Floats) -> Floats:
        whole = scene.truth.runs[1].gradients[name]
        return whole[..., bounds(whole.shape[-1], scene.case.P, rank)] if name == "weight" else whole

    return numbers


INPUT = "column.backward.input-grad-reduced"
TABLE = (
    Doctored(INPUT, "not reduced", COLUMN, gradient("x", term_of_input_gradient), (_REPLICAS,)),
    Doctored(INPUT, "reduced twice", COLUMN, gradient("x", times(4))),
    Doctored(INPUT, "doubled", COLUMN, gradient("x", times(2))),
    Doctored(INPUT, "averaged", COLUMN, gradient("x", times(1 / 4))),
    Doctored(INPUT, "None", COLUMN, without("gradients", "x")),
    Doctored("row.backward.input-grad", "slice of rank 0 on all ranks", ROW, gradient("x", of_rank_0("x"))),
    Doctored("row.backward.input-grad", "reduced", ROW, gradient("x", times(4))),
    Doctored("row.backward.input-grad", "right on rank 0 alone", ROW, gradient("x", times(0)), ranks=(1, 2, 3)),
    Doctored(
        "row.backward.input-grad-gathered", "own slice alone", GATHERING, gradient("x", own_slice_alone), (_REPLICAS,)
    ),
    Doctored(
        "row.backward.input-grad-gathered",
        "own slice in every place",
        GATHERING,
        gradient("x", own_slice_in_every_place),
        (_REPLICAS,),
    ),
    Doctored(
        "row.backward.input-grad-gathered", "slice of rank 0", GATHERING, gradient("x", lambda s, r, v: v[..., :2])
    ),
    Doctored("column.backward.weight-grad", "averaged", COLUMN, gradient("weight", times(1 / 4))),
    Doctored("column.backward.weight-grad", "slice of rank 0", COLUMN, gradient("weight", of_rank_0("weight"))),
    Doctored("row.backward.weight-grad", "one batch entry alone", ROW, gradient("weight", last_batch_alone)),
    Doctored("row.backward.weight-grad", "rows swapped", ROW, gradient("weight", reversed_rows)),
    Doctored("row.backward.weight-grad", "None", ROW, without("gradients", "weight")),
    Doctored("column.backward.bias-grad", "counted P times", COLUMN, gradient("bias", times(4))),
    Doctored("column.backward.bias-grad", "slice of rank 0", COLUMN, gradient("bias", of_rank_0("bias"))),
    Doctored("row.backward.bias-grad", "counted P times", ROW, gradient("bias", times(4))),
    Doctored("row.backward.bias-grad", "divided by P", ROW, gradient("bias", times(1 / 4))),
    Doctored(
        "row.backward.bias-grad", "on rank 0 only", ROW, without("gradients", "bias"), (_REPLICAS,), ranks=(1, 2, 3)
    ),
    Doctored(_REPLICAS, "another rounding on rank 1", REAL, gradient("x", one_ulp_off), ranks=(1,)),
    Doctored("backward.dtype", "wider than the tensor", COLUMN, gradient("weight", as_seen, dtype="float64")),
    Doctored("backward.dtype", "left in the autocast dtype", AUTOCAST, gradient("bias", as_seen, dtype="bfloat16")),
    Doctored("backward.frozen", "a frozen weight", FROZEN, with_gradient("weight", np.ones((2, 2)))),
    Doctored("backward.frozen", "a frozen input", FROZEN_X, with_gradient("x", np.ones((3, 4)))),
    Doctored("backward.frozen", "all frozen", ALL_FROZEN, with_gradient("bias", np.ones(1))),
    Doctored(
        "backward.accumulate", "overwritten", TWO, gradient("weight", of_the_second_run_alone("weight"), "second")
    ),
    Doctored(
        "backward.accumulate", "bias overwritten", TWO, gradient("bias", of_the_second_run_alone("bias"), "second")
    ),
    Doctored("backward.accumulate", "the input's added too", TWO, gradient("x", times(2), "second")),
    Doctored("backward.retain-graph", "overwritten", TWICE, gradient("weight", times(1 / 2), "second")),
    Doctored("backward.retain-graph", "the input's not doubled", TWICE, gradient("x", times(1 / 2), "second")),
    Doctored("pair.backward.gradients", "input's averaged", PAIR, gradient("x", times(1 / 2))),
    Doctored("pair.backward.gradients", "weight2's rows reversed", PAIR, gradient("weight2", reversed_rows)),
    Doctored("pair.backward.gradients", "first bias's doubled", PAIR, gradient("bias", times(2))),
    Doctored("copy.backward", "not reduced", FUNCTIONS["copy"], gradient("x", own_term), ("copy.adjoint", _REPLICAS)),
    Doctored("copy.backward", "averaged in the first of two runs", COPY_TWICE, gradient("x", times(1 / 4))),
    Doctored("copy.backward", "averaged", FUNCTIONS["copy"], gradient("x", times(1 / 4)), ("copy.adjoint",)),
    Doctored("reduce.backward", "reduced again", FUNCTIONS["reduce"], gradient("x", times(4)), ("reduce.adjoint",)),
    Doctored("gather.backward", "none on rank 1", FUNCTIONS["gather"], without("gradients", "x"), ranks=(1,)),
    Doctored(
        "gather.backward", "one row on rank 1", FUNCTIONS["gather"], gradient("x", lambda s, r, v: v[:1]), ranks=(1,)
    ),
    Doctored(
        "gather.backward",
        "a row too many on rank 1",
        FUNCTIONS["gather"],
        gradient("x", lambda s, r, v: v[[0, 0, 1]]),
        ranks=(1,),
    ),
    Doctored("gather.backward", "summed", FUNCTIONS["gather"], gradient("x", summed), ("gather.adjoint",)),
    Doctored(
        "gather.backward", "slice of rank 0", FUNCTIONS["gather"], gradient("x", of_rank_0("x")), ("gather.adjoint",)
    ),
    Doctored(
        "scatter.backward",
        "not gathered",
        FUNCTIONS["scatter"],
        gradient("x", own_slice_alone),
        ("scatter.adjoint", _REPLICAS),
    ),
    Doctored("scatter.backward", "averaged", FUNCTIONS["scatter"], gradient("x", times(1 / 4)), ("scatter.adjoint",)),
)


@pytest.mark.parametrize("entry", TABLE, ids=str)
def test_a_gradient_wrong_in_one_thing_is_named_by_its_clause(entry: Doctored) -> None:
    assert entry.expected == entry.found()


@pytest.mark.parametrize("line", sorted({entry.line for entry in TABLE}))
def test_what_the_doctored_gradients_were_made_from_breaks_no_clause(line: str) -> None:
    scene = clean(line)
    assert not judge(scene.case, scene.truth, scene.seen)


def test_two_backwards_through_one_graph_are_judged_by_the_truth_of_the_first_run() -> None:
    """There is no other; whatever else the truth holds is of no case."""
    scene = clean(TWICE)
    run = scene.truth.runs[0]
    later = replace(run, gradients={name: 2 * value for name, value in run.gradients.items()})
    assert not judge(scene.case, replace(scene.truth, runs=(run, later)), scene.seen)
