"""Outputs and parameters that are wrong in one thing: the bias, the reduction, the order of the ranks, the slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from doctoring import (
    Doctored,
    Numbers,
    Scene,
    as_seen,
    bits,
    clean,
    facts,
    fields,
    one_ulp_off,
    output,
    parameter,
    times,
    without,
)

from spec import Truth, judge
from spec.placements import Floats, bounds

COLUMN = "column P=2 batch=3 in=4 out=4 float32 bias values=small seed=1"
GATHERED = "column P=4 batch=3 in=4 out=8 float32 gather_output values=small seed=2"
ROW = "row P=2 batch=3 in=4 out=4 float32 bias values=small seed=3"
ROW_OF_FOUR = "row P=4 batch=2x2 in=8 out=3 float32 bias values=small seed=4"
PARTIAL = "row P=2 batch=3 in=4 out=3 float32 reduce_output=False values=small seed=5"
SKIPPED = "row P=2 batch=3 in=4 out=3 float32 bias skip_bias_add values=small seed=6"
REAL = "row P=2 batch=2 in=128 out=2 float32 values=gaussian procedure=precision seed=7"
AUTOCAST = "column P=2 batch=3 in=4 out=4 float32 autocast=bfloat16 values=small seed=8"
FUNCTIONS = {
    name: f"{name} P=4 batch=2 in=8 float32 values=small seed=9" for name in ("copy", "reduce", "gather", "scatter")
}
COPY_TWICE = f"{FUNCTIONS['copy']} procedure=accumulate"
PAIR = "pair P=2 batch=3 in=2 hidden=4 out=3 float32 bias values=small seed=10"
PAIR_GATHERED = (
    "pair P=2 batch=3 in=2 hidden=4 out=3 float32 gather_output input_is_parallel=False values=small seed=10"
)
# In one row a wrong bias can be told from a wrong product only where it is a multiple of the right one.
ONE_ROW = "row P=4 batch=1 in=8 out=2 float32 bias values=small seed=4"
ONE_ELEMENT = "row P=2 batch=1 in=4 out=1 float32 bias values=small seed=4"
EQUAL_ROWS = "row P=2 batch=3 in=4 out=4 float32 bias x=expanded values=small seed=4"
RISING_ROWS = "row P=2 batch=2 in=4 out=2 float32 bias values=small seed=0"
TWO_RUNS = "row P=2 batch=1 in=4 out=2 float32 bias values=small procedure=accumulate seed=4"
TWO_LAYERS = "row P=2 batch=1 in=4 out=2 float32 bias values=small procedure=update seed=4"
_REPLICAS = ("forward.replicas",)


def data(scene: Scene) -> tuple[Floats, Floats, Floats]:
    """X, W and b of the case; zeros for a bias that it does not have."""
    given = scene.truth.data[0]
    assert given.weight is not None
    return given.x, given.weight, given.bias if given.bias is not None else np.zeros(len(given.weight))


def term(scene: Scene, rank: int) -> Floats:
    """The product of the rank's slices of the input features."""
    x, w, _ = data(scene)
    here = bounds(x.shape[-1], scene.case.P, rank)
    return x[..., here] @ w[:, here].T


def bias_counted(factor: float) -> Numbers:
    return lambda scene, rank, y: y + (factor - 1) * data(scene)[2]


def product_of_the_transposed_weight(scene: Scene, rank: int, y: Floats) -> Floats:
    x, w, b = data(scene)
    here = bounds(len(w), scene.case.P, rank)
    return x @ w.T[here].T + b[here]


def first_bias_slice_on_every_rank(scene: Scene, rank: int, y: Floats) -> Floats:
    _, _, b = data(scene)
    return y - b[bounds(len(b), scene.case.P, rank)] + b[bounds(len(b), scene.case.P, 0)]


def blocks(order: list[int]) -> Numbers:
    """The ranks' slices joined in another order."""
    return lambda scene, rank, y: np.concatenate([np.split(y, scene.case.P, -1)[r] for r in order], -1)


def joined_along_the_batch(scene: Scene, rank: int, y: Floats) -> Floats:
    return np.concatenate(np.split(y, scene.case.P, -1), 0)


def rank_0_sees(scene: Scene, rank: int, y: Floats) -> Floats:
    shown = scene.seen[0].steps["first"].output
    assert shown is not None
    return shown.numbers


def own_term(scene: Scene, rank: int, y: Floats) -> Floats:
    return scene.truth.data[0].x[rank]


TABLE = (
    Doctored("row.forward.bias-once", "counted P times", ROW, output(bias_counted(2))),
    Doctored("row.forward.bias-once", "counted P times, of four", ROW_OF_FOUR, output(bias_counted(4))),
    Doctored("row.forward.bias-once", "divided by P", ROW_OF_FOUR, output(bias_counted(1 / 4))),
    Doctored("row.forward.bias-once", "left out", ROW, output(bias_counted(0))),
    Doctored("row.forward.bias-once", "on rank 0 only", ROW, output(bias_counted(0)), _REPLICAS, ranks=(1,)),
    *(
        Doctored("row.forward.bias-once", f"counted {factor} times in one row", ONE_ROW, output(bias_counted(factor)))
        for factor in (0, 1 / 4, 2, 3, 4)
    ),
    Doctored("row.forward.value", "counted more often than there are ranks", ONE_ROW, output(bias_counted(5))),
    Doctored("row.forward.value", "counted twice in one element", ONE_ELEMENT, output(bias_counted(2))),
    Doctored("row.forward.value", "the same error in equal rows", EQUAL_ROWS, output(lambda s, r, y: y + np.arange(4))),
    Doctored(
        "row.forward.bias-once", "another bias in rows that rise", RISING_ROWS, output(lambda s, r, y: y + np.arange(2))
    ),
    Doctored("row.forward.bias-once", "left out of the first of two runs", TWO_RUNS, output(bias_counted(0))),
    Doctored("row.forward.bias-once", "left out of the first of two layers", TWO_LAYERS, output(bias_counted(0))),
    Doctored(
        "row.forward.value", "one of equal rows, twice the bias", EQUAL_ROWS, output(lambda s, r, y: y[:1] + data(s)[2])
    ),
    Doctored("row.forward.value", "the bias added all the same", SKIPPED, output(lambda s, r, y: y + data(s)[2])),
    Doctored("column.forward.bias-once", "doubled", COLUMN, output(lambda s, r, y: y + np.split(data(s)[2], 2)[r])),
    Doctored("column.forward.bias-once", "slice of rank 0", COLUMN, output(first_bias_slice_on_every_rank)),
    Doctored("column.forward.value", "transposed square weight", COLUMN, output(product_of_the_transposed_weight)),
    Doctored("column.forward.value", "slice of rank 0", COLUMN, output(rank_0_sees)),
    Doctored("column.forward.value", "rows reversed", COLUMN, output(lambda s, r, y: y[::-1]), ranks=(1,)),
    Doctored("column.forward.value", "no output", COLUMN, fields(output=None)),
    Doctored("column.forward.gathered", "ranks reversed", GATHERED, output(blocks([3, 2, 1, 0]))),
    Doctored("column.forward.gathered", "slice of rank 0 everywhere", GATHERED, output(blocks([0, 0, 0, 0]))),
    Doctored("column.forward.gathered", "joined along the batch", GATHERED, output(joined_along_the_batch)),
    Doctored("row.forward.value", "not reduced", ROW, output(lambda s, r, y: term(s, r) + data(s)[2]), _REPLICAS),
    Doctored("row.forward.value", "reduced twice", ROW, output(lambda s, r, y: 2 * (y - data(s)[2]) + data(s)[2])),
    Doctored("row.forward.value", "averaged", ROW, output(lambda s, r, y: (y - data(s)[2]) / 2 + data(s)[2])),
    Doctored("row.forward.value", "one rank left out", ROW_OF_FOUR, output(lambda s, r, y: y - term(s, 3))),
    Doctored("row.forward.partial", "reduced all the same", PARTIAL, output(lambda s, r, y: term(s, 0) + term(s, 1))),
    Doctored("row.forward.partial", "term of the other rank", PARTIAL, output(lambda s, r, y: term(s, 1 - r))),
    Doctored("forward.replicas", "another rounding on rank 1", REAL, output(one_ulp_off), ranks=(1,)),
    Doctored("forward.dtype", "wider than the input", COLUMN, output(as_seen, dtype="float64")),
    Doctored("forward.dtype", "narrower than the input", COLUMN, output(as_seen, dtype="bfloat16")),
    Doctored("forward.dtype", "not the autocast dtype", AUTOCAST, output(as_seen, dtype="float32")),
    Doctored("forward.returns", "a tensor where a pair is due", SKIPPED, facts(pair=False)),
    Doctored("forward.returns", "a pair where a tensor is due", ROW, facts(pair=True)),
    Doctored("forward.returns", "no bias in the pair", SKIPPED, fields(returned_bias=None)),
    Doctored("forward.returns", "another bias in the pair", SKIPPED, fields(returned_bias=bits(np.ones(3)))),
    Doctored("forward.returns", "a copy of the bias", SKIPPED, facts(bias_is_parameter=False)),
    Doctored("copy.forward", "P times in the first of two runs", COPY_TWICE, output(times(4))),
    Doctored("copy.forward", "P times", FUNCTIONS["copy"], output(times(4)), ("copy.adjoint",)),
    Doctored("scatter.forward", "no output on rank 1", FUNCTIONS["scatter"], fields(output=None), ranks=(1,)),
    Doctored(
        "scatter.forward",
        "a row too many on rank 1",
        FUNCTIONS["scatter"],
        output(lambda s, r, y: y[[0, 0, 1]]),
        ranks=(1,),
    ),
    Doctored("scatter.forward", "one row on rank 1", FUNCTIONS["scatter"], output(lambda s, r, y: y[:1]), ranks=(1,)),
    Doctored(
        "reduce.forward", "not reduced", FUNCTIONS["reduce"], output(own_term), ("reduce.adjoint", "forward.replicas")
    ),
    Doctored("reduce.forward", "reduced twice", FUNCTIONS["reduce"], output(times(4)), ("reduce.adjoint",)),
    Doctored("reduce.forward", "averaged", FUNCTIONS["reduce"], output(times(1 / 4)), ("reduce.adjoint",)),
    Doctored(
        "gather.forward", "ranks reversed", FUNCTIONS["gather"], output(blocks([3, 2, 1, 0])), ("gather.adjoint",)
    ),
    Doctored(
        "gather.forward",
        "slice of rank 0 everywhere",
        FUNCTIONS["gather"],
        output(blocks([0] * 4)),
        ("gather.adjoint",),
    ),
    Doctored("scatter.forward", "slice of rank 0", FUNCTIONS["scatter"], output(rank_0_sees), ("scatter.adjoint",)),
    Doctored("pair.forward.value", "reduced twice", PAIR, output(times(2))),
    Doctored("pair.forward.value", "halved", PAIR_GATHERED, output(times(1 / 2))),
    Doctored(
        "column.weight.shard", "transposed", COLUMN, parameter("weight", lambda s, r, w: data(s)[1].T[2 * r :][:2])
    ),
    Doctored("column.weight.shard", "slice of rank 0", COLUMN, parameter("weight", lambda s, r, w: data(s)[1][:2])),
    Doctored("column.weight.shard", "whole", COLUMN, parameter("weight", lambda s, r, w: data(s)[1])),
    Doctored("column.weight.shard", "narrower", COLUMN, parameter("weight", as_seen, dtype="bfloat16")),
    Doctored("column.weight.shard", "wider", COLUMN, parameter("weight", as_seen, dtype="float64")),
    Doctored("column.bias.shard", "slice of rank 0", COLUMN, parameter("bias", lambda s, r, b: data(s)[2][:2])),
    Doctored("column.bias.shard", "whole", COLUMN, parameter("bias", lambda s, r, b: data(s)[2])),
    Doctored("row.weight.shard", "rows, not columns", ROW, parameter("weight", lambda s, r, w: data(s)[1][:2])),
    Doctored(
        "row.weight.shard", "transposed", ROW, parameter("weight", lambda s, r, w: data(s)[1].T[:, 2 * r :][:, :2])
    ),
    Doctored("row.bias.replicated", "on rank 0 only", ROW, without("parameters", "bias"), ranks=(1,)),
    Doctored("row.bias.replicated", "divided by P", ROW, parameter("bias", times(1 / 2))),
)


@pytest.mark.parametrize("entry", TABLE, ids=str)
def test_an_output_wrong_in_one_thing_is_named_by_its_clause(entry: Doctored) -> None:
    assert entry.expected == entry.found()


@pytest.mark.parametrize("line", sorted({entry.line for entry in TABLE}))
def test_what_the_doctored_outputs_were_made_from_breaks_no_clause(line: str) -> None:
    scene = clean(line)
    assert not judge(scene.case, scene.truth, scene.seen)


@pytest.mark.parametrize("line", [ROW, COLUMN, PAIR, REAL, *FUNCTIONS.values()])
def test_a_first_run_is_judged_by_the_truth_of_the_first(line: str) -> None:
    """Whatever the truth holds of later ones."""
    scene = clean(line)
    given, run = scene.truth.data[0], scene.truth.runs[0]
    later = replace(
        run, output=2 * run.output, gradients={name: 2 * value for name, value in run.gradients.items()}, magnitudes={}
    )
    longer = Truth((given, replace(given, x=3 * given.x, g=2 * given.g)), (run, later))
    assert not judge(scene.case, longer, scene.seen)
