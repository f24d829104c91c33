"""Repetition, copies, compiled layers, modes, initial values, state dicts and real values, each wrong in one thing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from doctoring import (
    Doctored,
    Scene,
    clean,
    facts,
    fields,
    gradient,
    one_ulp_off,
    output,
    parameter,
    times,
    without,
)

from spec import REGISTER, Collective, judge
from spec.contract import agreement
from spec.numerics import round_to
from spec.placements import Floats, local


def line(layer: str, procedure: str, P: int = 2) -> str:
    return f"{layer} P={P} batch=3 in=4 out=4 float32 bias values=small procedure={procedure} seed=51"


SAME_BITS = {
    "repeat.same-bits": "twice",
    "repeat.delayed": "delay",
    "transforms.deepcopy": "deepcopy",
    "transforms.pickle": "pickle",
    "transforms.functional-call": "functional-call",
    "transforms.checkpoint": "checkpoint",
    "transforms.checkpoint-reentrant": "checkpoint-reentrant",
}
INIT, STATE = line("column", "init"), line("row", "state-dict")
NO_GRAD, INFERENCE = line("row", "no-grad"), line("row", "inference")
COMPILED, INDUCTOR = line("row", "compile"), line("column", "compile-inductor")
GATHER = Collective("all-gather", 8, "float32")
LONG = "bfloat16 values=positive procedure=precision"
LONG_IN = f"column P=2 batch=2 in=96 out=4 {LONG} seed=52"
LONG_OUT = f"row P=2 batch=2 in=4 out=96 {LONG} seed=53"
REAL_TWICE = "row P=2 batch=2 in=4 out=4 float32 values=gaussian procedure=accumulate seed=54"
LONG_BATCH = f"row P=2 batch=128 in=4 out=16 {LONG.replace('bfloat16', 'bfloat16 bias')} seed=54"


def narrow(a: Floats, b: Floats) -> Floats:
    """A product whose sums are rounded to bfloat16 after every term."""
    total = np.zeros((a.shape[0], b.shape[1]))
    for k in range(a.shape[1]):
        total = round_to(total + np.outer(a[:, k], b[k]), "bfloat16")
    return total


def on_rank(scene: Scene, rank: int) -> tuple[Floats, Floats, Floats]:
    """What the rank holds of X, W and G."""
    given, terms, P = scene.truth.data[0], agreement(scene.case), scene.case.P
    assert given.weight is not None
    return (
        local(terms.input.value, given.x, P, rank),
        local(terms.parameters["weight"], given.weight, P, rank),
        local(terms.output.gradient, given.g, P, rank),
    )


def narrow_output(scene: Scene, rank: int, y: Floats) -> Floats:
    x, w, _ = on_rank(scene, rank)
    return narrow(x, w.T)


def narrow_input_gradient(scene: Scene, rank: int, dx: Floats) -> Floats:
    _, w, g = on_rank(scene, rank)
    return narrow(g, w)


def narrow_weight_gradient(scene: Scene, rank: int, dw: Floats) -> Floats:
    x, _, g = on_rank(scene, rank)
    return narrow(g.T, x)


def narrow_bias_gradient(scene: Scene, rank: int, db: Floats) -> Floats:
    _, _, g = on_rank(scene, rank)
    return narrow(np.ones((1, len(g))), g)[0]


def of_own_fan_in(scene: Scene, rank: int, w: Floats) -> Floats:
    return w * np.sqrt(scene.case.P)


def of_rank_0(scene: Scene, rank: int, w: Floats) -> Floats:
    return scene.seen[0].steps["first"].parameters["weight"].numbers


def negative_zero(scene: Scene, rank: int, value: Floats) -> Floats:
    return -np.abs(value) * 0.0


TABLE = (
    *(
        Doctored(clause, "another rounding", line("row", procedure), output(one_ulp_off, "second"), ranks=(1,))
        for clause, procedure in SAME_BITS.items()
    ),
    *(
        Doctored(clause, "no gradient", line("column", procedure), without("gradients", "weight", "second"))
        for clause, procedure in SAME_BITS.items()
    ),
    Doctored("transforms.compile", "another output", COMPILED, output(one_ulp_off, "second")),
    Doctored("transforms.compile", "doubled gradient", INDUCTOR, gradient("x", times(2), "second")),
    Doctored("transforms.fullgraph", "two graphs", COMPILED, facts("second", graphs=2)),
    Doctored("transforms.fullgraph", "no graph", INDUCTOR, facts("second", graphs=0)),
    Doctored("modes.no-grad", "a graph is kept", NO_GRAD, facts(requires_grad=True)),
    Doctored("modes.inference", "an ordinary tensor", INFERENCE, facts(inference=False)),
    Doctored("modes.inference", "a graph is kept", INFERENCE, facts(requires_grad=True)),
    Doctored("init.shards", "the same on every rank", INIT, parameter("weight", of_rank_0)),
    Doctored("init.shards", "scaled by its own fan-in", INIT, parameter("weight", of_own_fan_in, "reset")),
    Doctored("init.shards", "not drawn on later storage", INIT, parameter("weight", times(0), "meta")),
    Doctored("init.bias-zero", "drawn", INIT, parameter("bias", lambda s, r, b: b + 0.1)),
    Doctored("init.bias-zero", "not reset", INIT, parameter("bias", lambda s, r, b: b + 0.1, "reset")),
    Doctored("init.bias-zero", "missing", INIT, without("parameters", "bias", "meta"), ranks=(1,)),
    Doctored("init.random-state", "the rank's own", INIT, facts(random_state="after a shard"), ranks=(1,)),
    Doctored("init.random-state", "untouched by reset", INIT, facts("reset", random_state="before")),
    Doctored("state.keys", "one too many", STATE, facts(keys=["bias", "group", "weight"])),
    *(
        Doctored("instances.independent", f"{layer}: {name}", line(layer, "interleave"), change)
        for layer in ("column", "row")
        for name, change in {
            "a's output overwritten by b": output(times(2), "a"),
            "a's gradient from b's state": gradient("weight", times(2), "a"),
            "b's gradient disturbed": gradient("x", times(2), "b"),
        }.items()
    ),
    *(
        Doctored("instances.pipelined", f"{layer}: {name}", line(layer, "pipeline"), change)
        for layer in ("column", "row")
        for name, change in {
            "a's output overwritten by b's": output(times(2), "a"),
            "a's backward uses b's input": gradient("weight", times(2), "a"),
            "b's gradients do not add up": gradient("bias", times(1 / 2), "b"),
        }.items()
    ),
    *(
        Doctored("instances.current-parameters", f"{layer}: {name}", line(layer, "update"), change)
        for layer in ("column", "row")
        for name, change in {
            "the old weight": output(times(2), "second"),
            "the old weight in the backward": gradient("x", times(2), "second"),
        }.items()
    ),
    Doctored("state.keys", "no bias on rank 1", STATE, facts(keys=["weight"]), ranks=(1,)),
    Doctored("state.round-trip", "another weight", STATE, parameter("weight", times(2), "loaded")),
    Doctored("state.round-trip", "no bias", STATE, without("parameters", "bias", "loaded")),
    Doctored(
        "state.local",
        "gathered to be loaded",
        STATE,
        fields("loaded", collectives=(GATHER,)),
    ),
    Doctored(
        "state.loud",
        "a missing key is silent",
        STATE,
        facts("loaded", loud={"missing": False, "unexpected": True, "shape": True}),
    ),
    Doctored("precision.forward", "narrow sums", LONG_IN, output(narrow_output)),
    Doctored("precision.forward", "doubled in the first of two runs", REAL_TWICE, output(times(2))),
    Doctored("precision.input-grad", "doubled in the first of two runs", REAL_TWICE, gradient("x", times(2))),
    Doctored("precision.input-grad", "narrow sums", LONG_OUT, gradient("x", narrow_input_gradient)),
    Doctored("precision.weight-grad", "narrow sums", LONG_BATCH, gradient("weight", narrow_weight_gradient)),
    Doctored("precision.bias-grad", "narrow sums", LONG_BATCH, gradient("bias", narrow_bias_gradient)),
)


@pytest.mark.parametrize("entry", TABLE, ids=str)
def test_a_procedure_doctored_in_one_thing_is_named_by_its_clause(entry: Doctored) -> None:
    assert entry.expected == entry.found()


@pytest.mark.parametrize("text", sorted({entry.line for entry in TABLE}))
def test_what_the_doctored_procedures_were_made_from_breaks_no_clause(text: str) -> None:
    """Among them bfloat16 sums of 96 and 128 terms of one sign that were rounded once."""
    scene = clean(text)
    assert not judge(scene.case, scene.truth, scene.seen)


def test_compiled_numbers_may_differ_in_the_sign_of_zero() -> None:
    """Compilers may; the other procedures compare bits."""
    for procedure, expected in (("compile", 0), ("deepcopy", 1)):
        scene = clean(line("row", procedure))
        seen = [output(negative_zero, "second")(scene, output(times(0), "first")(scene, entry)) for entry in scene.seen]
        clause = REGISTER[f"transforms.{procedure}"]
        assert expected == len(judge(scene.case, scene.truth, seen, clauses=[clause]))


def test_facts_that_nobody_looked_at_break_no_clause() -> None:
    """An implementation that shows only numbers is judged by its numbers."""
    for text in (INIT, STATE, NO_GRAD, INFERENCE, COMPILED, line("row", "run", 1)):
        scene = clean(text)
        seen = [
            replace(entry, steps={name: replace(step, facts={}) for name, step in entry.steps.items()})
            for entry in scene.seen
        ]
        assert not judge(scene.case, scene.truth, seen)
