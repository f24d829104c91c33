"""Layers of several parts that are wrong in one thing: a part, the order of parts, a head, or a sum over copies."""

from __future__ import annotations

import numpy as np
import pytest
from doctoring import (
    Change,
    Doctored,
    Numbers,
    Scene,
    clean,
    collectives,
    gradient,
    one_ulp_off,
    output,
    parameter,
    times,
    without,
)

from spec import Case, Collective, Truth, applicable, judge
from spec.placements import Floats, Parts, bounds, local

MERGED = "merged P=2 batch=3 in=4 parts=4,2 float32 bias values=small seed=1"
GATHERED = "merged P=2 batch=3 in=4 parts=4,2 float32 gather_output values=small seed=2"
THREE = "merged P=4 batch=2 in=3 parts=4,8,4 float32 bias values=small procedure=accumulate seed=3"
BELOW = "qkv P=2 batch=3 in=4 heads=4 kv=4 head_size=1 float32 bias values=small seed=4"
ABOVE = "qkv P=4 batch=3 in=4 heads=4 kv=2 head_size=2 float32 bias values=small seed=5"
ALONE = "qkv P=2 batch=3 in=4 heads=2 kv=1 head_size=1 float32 bias frozen=xw values=small seed=6"
REAL = "qkv P=4 batch=64 in=4 heads=4 kv=2 head_size=2 float32 values=gaussian procedure=precision seed=7"
SKIPPED = "qkv P=4 batch=3 in=4 heads=4 kv=2 head_size=2 float32 bias skip_bias_add values=small seed=8"
SEPARATE, SUMMED, EQUAL = "merged.parts.separate", "qkv.backward.copies-summed", "qkv.backward.copies-equal"
FIRST = 2  # the query rows of a rank of ABOVE


def whole(scene: Scene, name: str) -> Floats:
    given = scene.truth.data[0].parameters[name]
    assert given is not None
    return given


def one_block(name: str) -> Numbers:
    """The rank's slice of all parts as if they were one."""
    return lambda scene, rank, v: whole(scene, name)[bounds(len(whole(scene, name)), scene.case.P, rank)]


def parts_swapped(scene: Scene, rank: int, v: Floats) -> Floats:
    first = scene.case.parts[0] // (1 if scene.case.gather_output else scene.case.P)
    return np.roll(v, -first, -1) if v.ndim > 1 else np.roll(v, -first)


def rolled(scene: Scene, rank: int, v: Floats) -> Floats:
    """The rows of the first part behind those of the second."""
    return np.roll(v, -(scene.case.parts[0] // scene.case.P), 0)


def by_rank(scene: Scene, rank: int, y: Floats) -> Floats:
    """Joined by rank first, then by part."""
    held = Parts(-1, scene.case.sizes, scene.case.copies)
    return np.concatenate([local(held, y, scene.case.P, r) for r in range(scene.case.P)], -1)


def head_by_remainder(scene: Scene, rank: int, v: Floats) -> Floats:
    """Key and value head r % K."""
    held = scene.seen[rank % scene.case.kv_heads * 2].steps["first"].parameters["weight"]
    return np.concatenate([v[:FIRST], held.numbers[FIRST:]])


def own_rows(scene: Scene, rank: int, v: Floats) -> Floats:
    """The rank's own term of a weight's gradient."""
    data, case = scene.truth.data[0], scene.case
    g = local(Parts(-1, case.sizes, case.copies).expanded(case.P), data.g, case.P, rank)
    own: Floats = g.reshape(case.rows, -1).T @ data.x.reshape(case.rows, -1)
    return own


def shared_rows(change: Numbers) -> Numbers:
    return lambda scene, rank, v: np.concatenate([v[:FIRST], change(scene, rank, v)[FIRST:]])


def query_rows(change: Numbers) -> Numbers:
    return lambda scene, rank, v: np.concatenate([change(scene, rank, v)[:FIRST], v[FIRST:]])


def of_next_rank(scene: Scene, rank: int, v: Floats) -> Floats:
    """Slices of the first part of the rank itself, of the others of the next one."""
    other = scene.seen[(rank + 1) % scene.case.P].steps["first"].output
    assert other is not None
    first = scene.case.parts[0] // scene.case.P
    return np.concatenate([v[..., :first], other.numbers[..., first:]], -1)


def last_row_one_ulp_off(scene: Scene, rank: int, v: Floats) -> Floats:
    return one_ulp_off(scene, rank, v[::-1])[::-1]


def among(*ranks: int) -> Change:
    """Every collective ran on these ranks."""
    return collectives(lambda log: tuple(Collective(c.kind, c.bytes, c.dtype, c.phase, ranks) for c in log))


def without_the_last(log: tuple[Collective, ...]) -> tuple[Collective, ...]:
    return log[:-1]


_NO_PARTS = (SEPARATE,)
TABLE = (
    Doctored("merged.weight.shard", "cut as one block", MERGED, parameter("weight", one_block("weight"))),
    Doctored("merged.weight.shard", "parts swapped", MERGED, parameter("weight", rolled)),
    Doctored("merged.bias.shard", "cut as one block", MERGED, parameter("bias", one_block("bias"))),
    Doctored("merged.bias.shard", "none on rank 1", MERGED, without("parameters", "bias"), ranks=(1,)),
    Doctored("merged.forward.bias-once", "doubled", MERGED, output(lambda s, r, y: y + _bias(s, r)), _NO_PARTS),
    Doctored("merged.forward.bias-once", "left out", THREE, output(lambda s, r, y: y - _bias(s, r))),
    Doctored("merged.forward.value", "parts swapped", MERGED, output(parts_swapped), _NO_PARTS),
    Doctored("merged.forward.value", "a part of another rank", MERGED, output(of_next_rank), _NO_PARTS),
    Doctored("merged.forward.gathered", "by rank, not by part", GATHERED, output(by_rank), _NO_PARTS),
    Doctored("merged.forward.gathered", "parts swapped", GATHERED, output(parts_swapped), _NO_PARTS),
    Doctored("merged.backward.input-grad-reduced", "averaged", MERGED, gradient("x", times(1 / 2)), _NO_PARTS),
    Doctored("merged.backward.weight-grad", "parts swapped", MERGED, gradient("weight", rolled), _NO_PARTS),
    Doctored("merged.backward.bias-grad", "parts swapped", MERGED, gradient("bias", rolled), _NO_PARTS),
    Doctored("qkv.weight.shard", "cut as one block", BELOW, parameter("weight", one_block("weight"))),
    Doctored("qkv.weight.shard", "head r % K", ABOVE, parameter("weight", head_by_remainder)),
    Doctored(
        "qkv.weight.shard", "another copy on rank 1", ABOVE, parameter("weight", shared_rows(times(2))), ranks=(1,)
    ),
    Doctored("qkv.bias.shard", "cut as one block", BELOW, parameter("bias", one_block("bias"))),
    Doctored("qkv.forward.bias-once", "left out", ABOVE, output(lambda s, r, y: y - _bias(s, r))),
    Doctored("qkv.forward.value", "key and value swapped", ABOVE, output(lambda s, r, y: y[..., [0, 1, 4, 5, 2, 3]])),
    Doctored("qkv.backward.input-grad-reduced", "without the copies", ABOVE, gradient("x", times(1 / 2))),
    Doctored("qkv.backward.weight-grad", "wrong below the key heads", BELOW, gradient("weight", times(2))),
    Doctored("qkv.backward.weight-grad", "query rows doubled", ABOVE, gradient("weight", query_rows(times(2)))),
    Doctored("qkv.backward.weight-grad", "none on rank 1", ABOVE, without("gradients", "weight"), (EQUAL,), ranks=(1,)),
    Doctored("qkv.backward.bias-grad", "query rows doubled", ABOVE, gradient("bias", query_rows(times(2)))),
    Doctored(SUMMED, "the rank's own term", ABOVE, gradient("weight", own_rows), (EQUAL,)),
    Doctored(SUMMED, "averaged", ABOVE, gradient("weight", shared_rows(times(1 / 2)))),
    Doctored(SUMMED, "averaged, of the bias", ABOVE, gradient("bias", shared_rows(times(1 / 2)))),
    Doctored(SUMMED, "the bias alone is trained", ALONE, gradient("bias", lambda s, r, v: v * [1, 2, 2])),
    Doctored(EQUAL, "another rounding on rank 3", REAL, gradient("weight", last_row_one_ulp_off), ranks=(3,)),
    Doctored("collectives.group", "sums of copies among other ranks", ABOVE, among(0, 2)),
    Doctored("collectives.backward-budget", "one sum of copies left out", ABOVE, collectives(without_the_last)),
    Doctored(
        "collectives.backward-budget",
        "a sum for a bias that is only returned",
        SKIPPED,
        collectives(lambda log: (*log, log[-1])),
    ),
)


def _bias(scene: Scene, rank: int) -> Floats:
    case = scene.case
    return local(Parts(0, case.sizes, case.copies), whole(scene, "bias"), case.P, rank)


@pytest.mark.parametrize("entry", TABLE, ids=str)
def test_a_layer_of_parts_wrong_in_one_thing_is_named_by_its_clause(entry: Doctored) -> None:
    assert entry.expected == entry.found()


@pytest.mark.parametrize("line", sorted({entry.line for entry in TABLE}))
def test_what_the_doctored_parts_were_made_from_breaks_no_clause(line: str) -> None:
    scene = clean(line)
    assert not judge(scene.case, scene.truth, scene.seen)


def test_collectives_among_the_holders_of_a_head_are_on_the_given_group() -> None:
    for rank, ranks in ((0, (0, 1)), (3, (2, 3))):
        scene = clean(ABOVE)
        seen = [among(*ranks)(scene, entry) if entry.rank == rank else entry for entry in scene.seen]
        assert not [
            finding for finding in judge(scene.case, scene.truth, seen) if finding.clause.name == "collectives.group"
        ]


def test_copies_are_asked_for_only_where_there_are_some() -> None:
    """Below the number of key heads every row is the rank's own."""
    names = {entry.name for entry in applicable(Case.parse(BELOW))}
    assert not {SUMMED, EQUAL} & names
    assert {SUMMED, EQUAL} <= {entry.name for entry in applicable(Case.parse(ABOVE))}


def test_separate_layers_are_computed_without_the_truths_numbers() -> None:
    """A truth that is wrong itself does not deceive the clause that each part is a column layer's."""
    scene = clean(MERGED)
    run = scene.truth.runs[0]
    deceived = Truth(scene.truth.data, (type(run)(2 * run.output, run.gradients),))
    names = [finding.clause.name for finding in judge(scene.case, deceived, scene.seen)]
    assert "merged.forward.value" in names
    assert SEPARATE not in names
