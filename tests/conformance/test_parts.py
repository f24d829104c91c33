"""From a wrong tensor of a layer of several parts to a sentence, and implementations that have no such layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from conformance.adapters.dtensor import DTensorStyles
from conformance.adapters.protocol import Declaration
from conformance.adapters.torch_tp import TorchTp
from conformance.diagnosis.guesses import fitting
from conformance.diagnosis.parts import Layout
from conformance.diagnosis.tensors import Tensor, tensors
from conformance.items import items
from conformance.reporting.record import ItemsRun, RunOptions, missing
from spec import Case, Observation, inputs
from spec.placements import Floats, Parts, bounds, local
from spec.reference import truth

P = 4
_draw = np.random.default_rng(0)
MERGED = Parts(0, (8, 12), (1, 1))
ROWS = _draw.integers(1, 1000, (20, 7)).astype(float)
SHARD = Tensor(
    "weight",
    (),
    tuple(local(MERGED, ROWS, P, r) for r in range(P)),
    whole=ROWS,
    dim=0,
    layout=Layout(MERGED, ROWS),
)
OUTPUTS = Parts(-1, (8, 12), (1, 1))
JOINED = Tensor("output", (), (ROWS.T,) * P, whole=ROWS.T, dim=1, layout=Layout(OUTPUTS, ROWS.T))
COPIED = Parts(0, (8, 4, 4), (1, 2, 2))
HEADS = _draw.integers(1, 1000, (16, 7)).astype(float)
QKV = Tensor(
    "weight",
    (),
    tuple(local(COPIED, HEADS, P, r) for r in range(P)),
    whole=HEADS,
    dim=0,
    layout=Layout(COPIED, HEADS),
)
TERMS = tuple(_draw.integers(1, 1000, (6, 7)).astype(float) for _ in range(P))


def summed(r: int, rows: slice = slice(2, None), over: Callable[[int], list[int]] | None = None) -> Floats:
    """A rank's term with some of its rows summed over other ranks, by default as it should be."""
    ranks = over(r) if over else [r // 2 * 2, r // 2 * 2 + 1]
    value = TERMS[r].copy()
    value[rows] = np.sum([TERMS[s][rows] for s in ranks], axis=0)
    return value


GRADIENT = replace(
    QKV,
    name="gradient of weight",
    expected=tuple(summed(r) for r in range(P)),
    whole=HEADS,
    layout=Layout(COPIED, HEADS, TERMS),
)


def copied(head: Callable[[int], int]) -> Callable[[int], Floats]:
    def held(r: int) -> Floats:
        return np.concatenate([QKV.expected[r][:2], QKV.expected[2 * head(r)][2:]])

    return held


MISTAKES: list[tuple[Tensor, Callable[[int], Floats], str]] = [
    (SHARD, lambda r: ROWS[bounds(20, P, r)], "parts that are cut as one block"),
    (SHARD, lambda r: np.roll(SHARD.expected[r], 3, 0), "parts in another order"),
    (
        SHARD,
        lambda r: np.concatenate([SHARD.expected[r][:2], SHARD.expected[(r + 1) % P][2:]]),
        "a part that is another rank's slice",
    ),
    (JOINED, lambda r: np.concatenate(SHARD.expected).T, "slices joined by rank, not by part"),
    (JOINED, lambda r: np.roll(ROWS, 12, 0).T, "parts in another order"),
    (QKV, copied(lambda r: r % 2), "a key or value head that other ranks should hold"),
    (QKV, copied(lambda r: 0), "a key or value head that other ranks should hold"),
    (QKV, lambda r: QKV.expected[r][[0, 1, 4, 5, 2, 3]], "parts in another order"),
    (GRADIENT, lambda r: TERMS[r], "a gradient of copies that is not summed: each rank has its own term"),
    (
        GRADIENT,
        lambda r: np.concatenate([TERMS[r][:2], summed(r)[2:] / 2]),
        "a gradient of copies that is averaged",
    ),
    (GRADIENT, lambda r: summed(r, over=lambda r: [0, 1, 2, 3]), "a gradient of copies that is summed over all ranks"),
    (
        GRADIENT,
        lambda r: summed(r, over=lambda r: [r % 2, r % 2 + 2]),
        "a gradient of copies that is summed over ranks which hold other heads",
    ),
    (GRADIENT, lambda r: summed(r, slice(None)), "a gradient of query rows that is summed with that of copies"),
    (
        GRADIENT,
        lambda r: np.concatenate([TERMS[r][:2], TERMS[r // 2 * 2][2:]]),
        "a gradient of copies that is that of their first rank",
    ),
    (
        GRADIENT,
        lambda r: np.concatenate([TERMS[r][:2], 2 * summed(r)[2:]]),
        "a gradient of copies that is counted once for each copy",
    ),
    (GRADIENT, lambda r: summed(r, slice(2, 4)), "a gradient of copies that is not summed for the value heads"),
    (GRADIENT, lambda r: summed(r, slice(4, None)), "a gradient of copies that is not summed for the key heads"),
]


@pytest.mark.parametrize(("tensor", "seen", "sentence"), MISTAKES, ids=[f"{t.name}: {s}" for t, _, s in MISTAKES])
def test_a_known_mistake_is_named_first(tensor: Tensor, seen: Callable[[int], Floats], sentence: str) -> None:
    assert fitting(replace(tensor, got=tuple(seen(r) for r in range(P))))[:1] == [sentence]


def test_parts_taken_for_interleaved_ones_are_named() -> None:
    """Groups of two query heads, a key head and a value head, taken for all heads of one kind together."""
    held = Parts(0, (8, 4, 4), (1, 1, 1))
    order = [4 * group + n for part in ((0, 1), (2,), (3,)) for group in range(4) for n in part]
    shards = tuple(local(held, HEADS, 2, r) for r in range(2))
    seen = tuple(local(held, HEADS[order], 2, r) for r in range(2))
    tensor = Tensor("weight", seen, shards, whole=HEADS, dim=0, layout=Layout(held, HEADS))
    assert fitting(tensor)[:1] == ["parts that are taken for interleaved ones"]


@pytest.mark.parametrize("tensor", [SHARD, JOINED, QKV, GRADIENT], ids=lambda tensor: tensor.name)
def test_noise_is_not_named(tensor: Tensor) -> None:
    noise = tuple(_draw.integers(1, 1000, value.shape).astype(float) for value in tensor.expected)
    assert fitting(replace(tensor, got=noise)) == []


@pytest.mark.parametrize(
    "line",
    [
        "merged P=2 batch=3 in=4 parts=4,2 float32 bias values=small seed=1",
        "merged P=4 batch=3 in=4 parts=4,8,4 float32 gather_output values=small seed=1",
        "qkv P=4 batch=2x3 in=4 heads=4 kv=2 head_size=2 float32 bias values=small seed=1",
        "qkv P=2 batch=3 in=4 heads=4 kv=4 head_size=1 float32 bias values=small seed=1",
    ],
)
def test_terms_of_the_ranks_add_up_to_the_truth(line: str) -> None:
    """What a diagnosis takes for each rank's own term is one."""
    from conformance.adapters.simulated import Simulated

    case = Case.parse(line)
    steps = Simulated().steps(case, inputs(case))
    seen = [Observation(rank, {"first": step}) for rank, step in enumerate(steps)]
    named = {tensor.name: tensor for tensor in tensors(case, truth(case), seen)}
    assert not any(tensor.wrong for tensor in named.values())
    assert np.array_equal(np.sum(named["gradient of x"].terms, axis=0), named["gradient of x"].expected[0])
    weight = named["gradient of weight"]
    assert weight.layout is not None
    for r, own in enumerate(weight.layout.own):
        first = case.heads * case.head_size // case.P
        copies = max(case.copies)
        block = range(r // copies * copies, r // copies * copies + copies)
        assert np.array_equal(own[:first], weight.expected[r][:first])
        assert np.array_equal(sum(weight.layout.own[s][first:] for s in block), weight.expected[r][first:])


def test_what_an_adapter_has_of_them_is_declared() -> None:
    assert list(TorchTp().declare().fused) == ["merged", "qkv"]
    assert list(DTensorStyles().declare().fused) == []
    assert Declaration("mine", {}).fused == ()


def test_an_adapter_without_them_declines_their_cases() -> None:
    case = Case.parse("merged P=2 batch=3 in=4 parts=4,2 float32 seed=1")
    assert DTensorStyles().declines(case) == "has no merged"
    assert TorchTp().declines(case) == ""


def test_a_run_without_them_is_whole_where_there_are_none() -> None:
    plain = tuple(map(str, items((1, 2, 4), ())))
    options = RunOptions((1, 2, 4), "gloo", "cpu", (), "quick", "1")
    done = ItemsRun(len(plain), len(plain), plain, (), ())
    assert missing(options, done, ()) == ()
    assert "items were run" in missing(options, done, ("merged",))[0]
