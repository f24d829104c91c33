"""What a violation says: who, in which run, what is wrong, what was expected and what was there instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from doctoring import Change, Doctored, bits, clean, collectives, facts, fields, gradient, output, raised, times

from spec import REGISTER, Collective, Violation

COLUMN = "column P=2 batch=1 in=2 out=2 float32 bias values=small seed=1"
ROW = "row P=2 batch=1 in=2 out=2 float32 bias values=small seed=1"
SKIPPED = "row P=2 batch=1 in=2 out=2 float32 bias skip_bias_add values=small seed=1"
ALONE = "row P=1 batch=1 in=2 out=2 float32 bias seed=1"
INIT = "row P=2 batch=1 in=2 out=2 float32 bias procedure=init seed=1"
STATE = "row P=2 batch=1 in=2 out=2 float32 bias procedure=state-dict seed=1"
TWICE = "row P=2 batch=1 in=2 out=2 float32 procedure=twice values=small seed=1"
COMPILED = "row P=2 batch=1 in=2 out=2 float32 procedure=compile values=small seed=1"
REFUSE = "row P=2 batch=3 in=4 out=3 float32 procedure=refuse fault=indivisible seed=1"
SUM = Collective("all-reduce", 8, "float32", ranks=(0, 1))
BACK = replace(SUM, phase="backward")
OWN, CALLERS = ("storage of its own", "shared"), ("the same bytes and version", "changed")

# Clause, case, what is doctored on rank 1, what the clause says of it.
TABLE: list[tuple[str, str, Change, Violation]] = [
    (
        "ranks.same-collectives",
        ROW,
        collectives(lambda log: ()),
        Violation(1, "first", "its collectives are not those of the other ranks", "all-reduce 8 B float32", "none"),
    ),
    (
        "ranks.same-collectives",
        "column P=2 batch=1 in=2 out=2 float32 frozen=x values=small seed=1",
        collectives(lambda log: (SUM, SUM)),
        Violation(
            1,
            "first",
            "its collectives are not those of the other ranks",
            "none",
            "all-reduce 8 B float32; all-reduce 8 B float32",
        ),
    ),
    (
        "refuse.no-collective",
        REFUSE,
        fields("refused", collectives=(SUM, SUM)),
        Violation(1, "refused", "entered a collective", "none", "all-reduce 8 B float32; all-reduce 8 B float32"),
    ),
    (
        "refuse.raises",
        REFUSE,
        fields("refused", raised=None),
        Violation(1, "refused", "accepted: P does not divide the cut dimension", "an exception", "none"),
    ),
    (
        "refuse.group-usable",
        REFUSE,
        fields("after", output=None),
        Violation(1, "after", "the all-reduce after the refusal is wrong", "[3.0]", "None"),
    ),
    (
        "refuse.type",
        REFUSE,
        fields("refused", raised=raised("KeyError", "in_features 5, 2")),
        Violation(1, "refused", "raised another type", "ValueError", "KeyError: in_features 5, 2"),
    ),
    (
        "refuse.text",
        REFUSE,
        fields("refused", raised=raised("ValueError", "in_features")),
        Violation(1, "refused", "the text lacks 5, 2", "in_features, 5, 2", "ValueError: in_features"),
    ),
    (
        "collectives.group",
        ROW,
        collectives(lambda log: (replace(log[0], ranks=(1, 3)),)),
        Violation(1, "first", "all-reduce 8 B float32 ran on another group", "ranks [0, 1]", "ranks [1, 3]"),
    ),
    ("purity.inputs", ROW, fields(mutated=("x",)), Violation(1, "first", "the caller's x was written to", *CALLERS)),
    ("purity.no-alias", ROW, fields(shared=("output/g",)), Violation(1, "first", "output shares storage with g", *OWN)),
    (
        "parameters.own-storage",
        ROW,
        fields(shared=("bias/master_bias",)),
        Violation(1, "first", "bias shares storage with master_bias", *OWN),
    ),
    (
        "parameters.own-storage",
        ROW,
        facts(storage_bytes={"weight": 32, "gone": 4}),
        Violation(1, "first", "weight's storage is not the shard's", "8 B", "32 B"),
    ),
    (
        "forward.returns",
        ROW,
        facts(returned="a list"),
        Violation(1, "first", "the return value is no layer's", "a tensor", "a list"),
    ),
    (
        "forward.returns",
        SKIPPED,
        facts(returned="a list"),
        Violation(1, "first", "the return value is no layer's", "a pair (output, bias)", "a list"),
    ),
    ("forward.returns", ROW, facts(pair=True), Violation(1, "first", "the return value", "a tensor", "a tuple")),
    ("forward.returns", SKIPPED, facts(pair=False), Violation(1, "first", "the return value", "a pair", "a tensor")),
    (
        "forward.returns",
        SKIPPED,
        fields(returned_bias=None),
        Violation(1, "first", "the returned bias is not the layer's", "float32[2]", "None"),
    ),
    (
        "forward.returns",
        SKIPPED,
        facts(bias_is_parameter=False),
        Violation(1, "first", "the returned bias is not the parameter itself", "the parameter", "another tensor"),
    ),
    (
        "backward.frozen",
        "row P=2 batch=1 in=2 out=2 float32 frozen=w values=small seed=1",
        fields(gradients={"x": None, "weight": bits(np.ones((2, 1)))}),
        Violation(1, "first", "weight has a gradient", "None", "float32[2, 1]"),
    ),
    (
        "transforms.fullgraph",
        COMPILED,
        facts("second", graphs=2),
        Violation(1, "second", "the forward was not compiled as one graph", "1 graph", "2"),
    ),
    (
        "repeat.same-bits",
        TWICE,
        fields("second", output=None),
        Violation(1, "second", "output is not that of the first run", "[[-2.0, 5.0]]", "None"),
    ),
    (
        "init.random-state",
        INIT,
        facts("reset", random_state="before"),
        Violation(1, "reset", "the random state afterwards is another", "after nn.Linear", "before"),
    ),
    (
        "state.keys",
        STATE,
        facts(keys=["weight"]),
        Violation(1, "first", "the state dict's keys", "['bias', 'weight']", "['weight']"),
    ),
    (
        "state.local",
        STATE,
        fields("loaded", collectives=(SUM, SUM)),
        Violation(1, "loaded", "entered a collective", "none", "all-reduce 8 B float32; all-reduce 8 B float32"),
    ),
    (
        "state.loud",
        STATE,
        facts("loaded", loud={"missing": True, "shape": False}),
        Violation(1, "loaded", "loading a state dict with a shape fault was silent", "an exception", "none"),
    ),
    (
        "collectives.dtype",
        ROW,
        collectives(lambda log: (replace(log[0], dtype="float16"),)),
        Violation(1, "first", "all-reduce 8 B float16 reduces in another dtype", "float32", "float16"),
    ),
    (
        "collectives.forward-budget",
        ROW,
        collectives(lambda log: ()),
        Violation(1, "first", "the collectives of the forward are others", "all-reduce 8 B", "none"),
    ),
    (
        "collectives.backward-budget",
        ROW,
        collectives(lambda log: (*log, BACK, BACK)),
        Violation(1, "first", "the collectives of the backward are others", "none", "all-reduce 8 B; all-reduce 8 B"),
    ),
]


@pytest.mark.parametrize(("clause", "line", "change", "expected"), TABLE, ids=[entry[3].what for entry in TABLE])
def test_a_violation_on_one_rank_says(clause: str, line: str, change: Change, expected: Violation) -> None:
    findings = Doctored(clause, "", line, change, ranks=(1,)).findings()
    assert [expected] == [v for finding in findings if finding.clause.name == clause for v in finding.violations]


def test_a_wrong_return_value_on_one_rank_hides_none_on_the_next() -> None:
    """What cannot be looked at further on rank 0 is looked at on rank 1 all the same."""
    scene = clean(SKIPPED)
    for first, second in ((facts(pair=False), fields(returned_bias=None)), (facts(returned="a list"),) * 2):
        seen = (first(scene, scene.seen[0]), second(scene, scene.seen[1]))
        violations = REGISTER["forward.returns"].check(scene.case, scene.truth, seen)
        assert [violation.rank for violation in violations] == [0, 1]


def test_a_wrong_output_shows_both_sides() -> None:
    found = Doctored("row.forward.value", "", ROW, output(lambda s, r, y: y + np.array([1, 2])), ranks=(1,)).findings()
    what = "output differs in 2 of 2 elements, first at [0, 0]"
    assert found[0].violations == (Violation(1, "first", what, "[[3., 4.]]", "[[4., 6.]]"),)


def test_a_difference_in_the_bits_shows_both_sides() -> None:
    clause, line = "forward.replicas", "reduce P=2 batch=1 in=2 float32 values=small seed=1"
    held = clean(line).seen[0].steps["first"].output
    assert held is not None
    (finding,) = [
        f for f in Doctored(clause, "", line, output(times(2)), ranks=(1,)).findings() if f.clause.name == clause
    ]
    one, two = (f"float32[1, 2] {np.array2string(k * held.numbers, separator=', ')}" for k in (1, 2))
    assert finding.violations == (Violation(1, "first", "the output's bits are not those of rank 0", one, two),)


def test_a_long_tensor_is_cut_off() -> None:
    line = "row P=2 batch=1 in=2 out=100 float32 procedure=twice values=small seed=1"
    (finding,) = Doctored("repeat.same-bits", "", line, output(times(2), "second"), ranks=(1,)).findings()
    assert [(len(v.expected), len(v.got)) for v in finding.violations] == [(300, 300)]


def test_one_rank_says_the_gradient_that_has_other_bits() -> None:
    (finding,) = Doctored("one-rank.bits", "", ALONE, gradient("x", times(2), "dense")).findings()
    assert finding.violations == (Violation(0, "first", "gradient of x has other bits than the unsharded layer's"),)
