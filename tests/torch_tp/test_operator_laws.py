"""A law for each row of the table of operators, on real tensors.

What a rule says is held against torch itself: the operator on the shards of a rank gives the shards of its result, or
terms of a sum; it is linear where the row says so; and its gradients are shards, or partial sums, likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.torch_tp.operator_samples_of_layers
import tests.torch_tp.operator_samples_of_sums  # noqa: F401  its generators are noted
from tests.torch_tp.operator_samples import SAMPLES, Source
from tests.torch_tp.operator_samples_of_layers import POINTWISE
from tests.torch_tp.operator_shards import KINDS, Sample, Trial, trials
from torch_tp.models import operators, specials
from torch_tp.models.cuts import Place
from torch_tp.models.factors import factors
from torch_tp.models.ledger import Ledger
from torch_tp.models.operators import Operator, operator_of
from torch_tp.models.rules import Call, Operand

aten = torch.ops.aten
torch.set_num_threads(1)
NAMES = [str(packet).removeprefix("aten.") for packet in operators.table()]


# Rows whose operators make random numbers or have no kernel for a CPU are held against shapes alone.
def same(one: Tensor, other: Tensor, what: str) -> None:
    """Two tensors are equal, but for the last bits of what is no whole number."""
    assert one.shape == other.shape, f"{what}: {list(one.shape)} is not {list(other.shape)}"
    if one.is_meta:
        return
    kind = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    assert torch.allclose(one.to(kind), other.to(kind), 1e-12, 1e-12, True), f"{what}: {one} is not {other}"


def shards_of_results(trial: Trial) -> None:
    """Each rank computes its shards of the results; where a sum ran over shards, the ranks' results add up."""
    parts, added = [], trial.operator.added
    for rank in range(trial.ledger.P):
        tensors, about = trial.local(rank)
        if trial.terms and added is not None and added < len(tensors) and rank:
            tensors[added] = torch.zeros_like(tensors[added])
        out, after = trial.sample.run(tensors, about)
        parts.append(out)
        if trial.terms:
            continue
        for y, whole, cuts in zip(out, trial.whole, trial.cuts, strict=True):
            same(y, trial.shard(whole, cuts, rank), f"a result of rank {rank}")
        reshaped = torch.Tag.inplace_view in trial.sample.func.tags
        for y, whole, operand in zip(after, trial.after, trial.operands, strict=True) if not reshaped else ():
            same(y, trial.shard(whole, operand.cuts, rank), f"an operand of rank {rank}, afterwards")
    if trial.terms:
        for k, (whole, cuts) in enumerate(zip(trial.whole, trial.cuts, strict=True)):
            same(trial.joined([out[k] for out in parts], cuts, whole.shape), whole, "the sum of the ranks' results")


def _flows(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _backward(sample: Sample, tensors: Sequence[Tensor], rank: Any, upstream: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of all floating operands, zero where there is none."""
    still = sample.still
    leaves = [x.detach().requires_grad_(_flows(x) and k not in still) for k, x in enumerate(tensors)]
    out, _ = sample.run(leaves, rank)
    flowing = [k for k, y in enumerate(out) if y.requires_grad]
    into = [x for x in leaves if x.requires_grad]
    if not flowing or not into:
        return out, [torch.zeros_like(x) for x in leaves]
    given = upstream(out)
    found = torch.autograd.grad([out[k] for k in flowing], into, [given[k] for k in flowing], allow_unused=True)
    rest = iter(found)
    each = [next(rest) if x.requires_grad else None for x in leaves]
    return out, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, each, strict=True)]


def _shares(trial: Trial, g: Tensor, cuts: Any, generator: torch.Generator) -> list[Tensor]:
    """The upstream gradients of the ranks, which add up to the whole one where several hold the same entries."""
    ranks = range(trial.ledger.P)
    drawn = [torch.randint(-4, 5, trial.shard(g, cuts, r).shape, generator=generator).to(g.dtype) for r in ranks]
    rest, taken = g - trial.joined(drawn, cuts, g.shape), torch.zeros(g.shape, dtype=torch.float64)
    for rank in ranks:
        free = trial.shard(taken, cuts, rank) == 0
        drawn[rank] = drawn[rank] + trial.shard(rest, cuts, rank) * free
        mine = [free.double() if k == rank else torch.zeros_like(d, dtype=torch.float64) for k, d in enumerate(drawn)]
        taken += trial.joined(mine, cuts, g.shape)
    return drawn


def shards_of_gradients(trial: Trial) -> None:
    """Gradients are shards or partial sums, as the second pass over a graph takes them to be."""
    ledger, operator, tensors = trial.ledger, trial.operator, trial.sample.tensors
    if trial.sample.shapes:
        return
    generator = torch.Generator().manual_seed(0)
    kinds = [y.dtype if _flows(y) else torch.float64 for y in trial.whole]
    upstream = [
        torch.randint(-4, 5, y.shape, generator=generator).to(k) for y, k in zip(trial.whole, kinds, strict=True)
    ]
    _, whole = _backward(trial.sample, tensors, None, lambda _: upstream)
    if not operator.gradient:
        assert not any(g.any() for g in whole), "a gradient flows back"
        return
    into = {ledger.root(label) for cuts in trial.cuts for labels in cuts.values() for label in labels}
    terms = {ledger.root(label) for label in trial.terms}
    if into and not terms:
        shares = [_shares(trial, g, cuts, generator) for g, cuts in zip(upstream, trial.cuts, strict=True)]
    else:
        shares = [
            [trial.shard(g, cuts, r) for r in range(ledger.P)] for g, cuts in zip(upstream, trial.cuts, strict=True)
        ]
    found = []
    for rank in range(ledger.P):
        given, about = trial.local(rank)
        found.append(_backward(trial.sample, given, about, lambda _, r=rank: [each[r] for each in shares])[1])
    for k, operand in enumerate(trial.operands):
        own = {ledger.root(label) for labels in operand.cuts.values() for label in labels}
        more = (into | terms) - own
        adds = operator.jointly or operator.added == k
        parts = [gradients[k] for gradients in found]
        if own or (more and not (more & terms and adds)):
            same(trial.joined(parts, operand.cuts, operand.shape), whole[k], f"the gradients of operand {k}, added up")
        else:
            for part in parts:
                same(part, whole[k], f"the gradient of operand {k}, which every rank has")


def linearity(operator: Operator, sample: Sample) -> None:
    """An operator is linear in the tensors of which its row says so."""
    tensors, generator = sample.tensors, torch.Generator().manual_seed(1)
    if sample.shapes or sample.kwargs.get("rounding_mode") is not None:
        return
    floating = [k for k, x in enumerate(tensors) if _flows(x)]
    whole, _ = sample.run(tensors)
    if operator.added is not None and operator.added < len(tensors):
        tensors[operator.added], before = torch.zeros_like(tensors[operator.added]), tensors[operator.added]
        for y, rest in zip(whole, sample.run(tensors)[0], strict=True):
            expected = before * sample.kwargs.get("beta", 1)
            if sample.func is aten.convolution.default:
                expected = expected.view(-1, *[1] * (y.dim() - 2))
            same(y - rest, expected.expand(y.shape), "what is added")
    together = [floating] if operator.jointly and len(tensors) > 1 else []
    for positions in [*([k] for k in operator.linear if k in floating), *together]:
        others = list(tensors)
        for k in positions:
            others[k] = torch.randint(-4, 5, tensors[k].shape, generator=generator).to(tensors[k].dtype)
        sums = [a + b if k in positions else a for k, (a, b) in enumerate(zip(tensors, others, strict=True))]
        for both, a, b in zip(*(sample.run(each)[0] for each in (sums, tensors, others)), strict=True):
            same(both, a + b, f"of a sum in {positions}, the sum of the results")


_NO_ROW = {*POINTWISE, "_grouped_mm"}  # what the table says of these is no row


def held_to(sample: Sample, P: int, kinds: Sequence[str], seen: tuple[bool, bool]) -> int:
    """Hold the row of a call's operator against it; returns in how many ways its operands can have labels."""
    survived = 0
    dims = sum(x.dim() for x in sample.tensors[:2])
    operator = operator_of(sample.func, dims, len(sample.run(sample.tensors)[0]))
    assert operator is not None, "it has no row"
    linearity(operator, sample)
    for trial in trials(operator, sample, P, kinds, seen):
        try:
            shards_of_results(trial)
            shards_of_gradients(trial)
        except Exception as error:
            raise AssertionError(f"{trial.says()}: {error}") from error
        survived += 1
    return survived


def law(name: str, examples: int = 8, phases: Sequence[Phase] = (Phase.explicit, Phase.generate)) -> int:
    """Draw calls of an operator and hold its row against them; returns how many of the labels survived."""
    survived = 0
    assert SAMPLES.get(name), f"aten.{name} has no samples"
    assert name in _NO_ROW or getattr(aten, name) in operators.table(), f"aten.{name} has no row"

    @settings(max_examples=examples, phases=phases, report_multiple_bugs=False)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        nonlocal survived
        source = Source(data.draw)
        sample = source.pick(*SAMPLES[name])(source, name)
        P, kinds = source.pick(2, 4), source.pick(*[[kind] for kind in KINDS], source.draw(_MIXED))
        seen = source.pick(*_SEEN)
        try:
            survived += held_to(sample, P, kinds, seen)
        except Exception as error:
            raise AssertionError(f"the row of aten.{name} is wrong: {error}") from error

    holds()
    return survived


_MIXED = st.lists(st.sampled_from(KINDS), min_size=3, max_size=3)
_SEEN = [(False, False), (True, False), (False, True)]


# They take no tensor.
_MADE = frozenset(["zeros", "ones", "full", "empty", "rand", "randn", "arange"])


@pytest.mark.parametrize("name", sorted({*NAMES, *SAMPLES}))
def test_what_a_row_says_holds_for_real_tensors(name: str) -> None:
    survived = law(name) or law(name, 100)  # few draws may all be of labels that do not survive

    assert survived or name in _MADE, f"aten.{name} keeps no label"


def _planted(name: str, **changed: Any) -> Operator:
    return replace(operators.table()[getattr(aten, name)], **changed)


PLANTS: list[tuple[str, str, Operator | None]] = [
    ("a softmax that may run over shards", "_softmax", _planted("_softmax", rule=specials.same)),
    ("a running sum over shards", "cumsum", _planted("cumsum", rule=specials.same)),
    ("a difference, linear in each alone", "sub", _planted("sub", linear=frozenset({0, 1}))),
    ("a product, linear in both at once", "mul", _planted("mul", jointly=True)),
    ("a quotient, linear in its divisor", "div", _planted("div", linear=frozenset({1}))),
    ("a transposition that moves nothing", "transpose", _planted("transpose", rule=specials.same)),
    ("a product with its dimensions exchanged", "mm", _planted("mm", rule=factors("i k, k j -> j i"))),
    ("a product that does not sum", "bmm", _planted("bmm", rule=factors("b i k, K k j -> b i j"))),
    ("nothing is added to a product", "addmm", _planted("addmm", added=None)),
    ("the first factor is what is added", "addmm", _planted("addmm", added=1)),
    ("what is written lies along shards", "index_put", _planted("index_put", rule=specials.same)),
    ("what is read lies along shards", "gather", _planted("gather", rule=specials.same)),
    ("a sum that keeps its dimension", "sum", _planted("sum", rule=specials.same)),
    ("a table sharded by rows", "embedding", _planted("embedding", rule=lambda call: [{**call.first.cuts, 1: {}}])),
    ("a norm over shards", "native_layer_norm", _planted("native_layer_norm", rule=specials.same)),
    ("joined shards", "cat", _planted("cat", rule=lambda call: [call.args[0][0].cuts])),
    ("a detached gradient", "clone", _planted("clone", gradient=False)),
    ("a row that is missing", "mm", None),
    ("a row that is missing, of a pointwise operator", "mul", None),
]


@pytest.mark.parametrize(("name", "planted"), [plant[1:] for plant in PLANTS], ids=[plant[0] for plant in PLANTS])
def test_a_wrong_row_is_seen_and_named(name: str, planted: Operator | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted is None:
        monkeypatch.delitem(operators._TABLE, getattr(aten, name))
    else:
        monkeypatch.setitem(operators._TABLE, getattr(aten, name), planted)
    with pytest.raises(AssertionError, match=rf"aten\.{name}\b"):
        law(name, 100, [Phase.generate])


def test_a_row_that_loses_everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(call: Call) -> Any:
        for x in call.operands:
            call.without(x.cuts, x.cuts, "")
        return [{}] * len(call.shapes)

    monkeypatch.setitem(operators._TABLE, aten.mm, _planted("mm", rule=nothing))
    assert law("mm") == 0


def lost(sample: Sample, dims: Mapping[int, int], P: int = 2) -> bool:
    """Whether evenly sharded dimensions of some operands of a call, by position, cannot be sharded."""
    whole, _ = sample.run(sample.tensors)
    ledger = Ledger(P, {f"{k}@{d}": sample.tensors[k].shape[d] for k, d in dims.items()})
    cuts = [{dims[k]: {f"{k}@{dims[k]}": Place()}} if k in dims else {} for k in range(len(sample.tensors))]
    operands = [Operand(k, tuple(x.shape), cuts[k]) for k, x in enumerate(sample.tensors)]
    operator = operator_of(sample.func, sum(x.dim for x in operands[:2]), len(whole))
    assert operator is not None
    operator.rule(sample.call(operands, ledger, [tuple(y.shape) for y in whole]))
    ledger.judge()
    return bool(ledger.lost)


_X, _N = torch.arange(16.0).view(4, 4), torch.tensor([0, 1, 2, 3])
_HEADS = torch.ones(2, 2, 4, 4)
ONCE_KEPT = {
    "an index that is sharded, into a table": (Sample(aten.embedding.default, (_X, _N)), {1: 0}),
    "an index that is sharded, to write": (Sample(aten.index_put.default, (_X[0], [_N], _X[1])), {1: 0}),
    "a mask of two dimensions, in its second one": (Sample(aten.index.Tensor, (_X, [_X > 3])), {0: 1}),
    "values that a mask takes": (Sample(aten.index_put.default, (_X, [_X > 3], torch.ones(12))), {2: 0}),
    "fewer entries than there are": (Sample(aten.gather.default, (_X, 1, _N[:2].view(2, 1))), {0: 0, 1: 0}),
    "probabilities": (Sample(aten.bernoulli_.Tensor, (_X, _X / 16)), {1: 0}),
    "a mask that is sharded along a sequence": (
        Sample(aten._scaled_dot_product_flash_attention_for_cpu.default, (_HEADS,) * 3, {"attn_mask": _X}),
        {3: 0},
    ),
    "a dimension that a rank would leave out": (Sample(aten.squeeze.dims, (_X[:2], [0])), {0: 0}),
    "a volume's depth": (Sample(aten.avg_pool3d.default, (torch.ones(1, 1, 4, 4, 4), [2] * 3)), {0: 2}),
}


@pytest.mark.parametrize(("sample", "dims"), ONCE_KEPT.values(), ids=ONCE_KEPT)
def test_labels_that_a_rule_once_kept_wrongly_are_lost(sample: Sample, dims: Mapping[int, int]) -> None:
    assert lost(sample, dims)


def test_a_dimension_that_is_left_out_moves_those_behind_it() -> None:
    for func, more in ((aten.kthvalue.default, (1, 0)), (aten.mode.default, (0,))):
        (call,) = [
            Call((Operand(0, (2, 4), {1: {"a@0": Place()}}), *more), {}, [], [(4,), (4,)], Ledger(2, {"a@0": 4}))
        ]
        assert operators.table()[func.overloadpacket].rule(call)[0].keys() == {0}


def test_of_blocks_with_copies_no_part_can_be_split_off() -> None:
    """A block is one rank's or several ranks', as a whole: its halves are not parts of the dimension."""
    ledger = Ledger(4, {"a@0": 4})
    ledger.blocks("a@0", Place(), 2)
    for k in range(4):
        ledger.sliced("a@0", Place(), 4, k, k + 1)
    ledger.judge()
    assert "a@0" in ledger.lost


STARTS = {
    "mm": (_X, _X),
    "bmm": (_HEADS[0], _HEADS[0]),
    "addmm": (torch.ones(1, 1), _X, _X),
    "baddbmm": (torch.ones(1, 1, 1), _HEADS[0], _HEADS[0]),
    "convolution": (
        _HEADS[:1].view(1, 4, 2, 4)[..., :2],
        torch.ones(4, 4, 1, 1),
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
    ),
}


@pytest.mark.parametrize("name", [name for name in NAMES if operators.table()[getattr(aten, name)].starts])
def test_a_product_can_start_shards_where_its_row_says_so(name: str) -> None:
    for start in operators.table()[getattr(aten, name)].starts:
        assert not lost(Sample(getattr(aten, name).default, STARTS[name]), dict([start])), f"aten.{name} at {start}"
