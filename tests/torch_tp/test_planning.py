"""What is derived of a model: chains that are right, and a reason for whatever stays whole."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_tp
from torch_tp.models.cuts import Place, through_view
from torch_tp.models.planning import Derived, Example, Slice, Unfollowable, derive

X = torch.empty(2, 3, 8)
CALL = [Example((X,))]


class Model(nn.Module):
    """Linears a, b, c ... of eight features, and a forward that is given."""

    def __init__(self, forward: Any, count: int = 2, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name in "abcdef"[:count]:
            self.add_module(name, nn.Linear(*sizes.get(name, (8, 8))))
        self.norm = nn.LayerNorm(8)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def told(derived: Derived) -> list[tuple[str, str]]:
    """The chains as text, sorted."""
    return sorted(
        (
            " ".join(f"{name[:-7]}{_parts(chain.slices[name])}" for name in chain.columns),
            " ".join(name[:-7] for name in chain.rows),
        )
        for chain in derived.chains
    )


def _parts(cut: Slice) -> str:
    return "" if cut.plain else str([*cut.sizes])


def attention(m: Any, x: Tensor, heads: int = 4, kv_heads: int = 4) -> Tensor:
    q, k, v = (layer(x).view(*x.shape[:-1], -1, 8 // heads).transpose(1, 2) for layer in (m.a, m.b, m.c))
    if kv_heads != heads:
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    return m.d(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


PROVEN: list[tuple[str, Model, list[tuple[str, str]]]] = [
    ("MLP", Model(lambda m, x: x + m.b(F.gelu(m.a(m.norm(x))))), [("a", "b")]),
    ("gated", Model(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), 3), [("a b", "c")]),
    ("dropout", Model(lambda m, x: m.b(F.dropout(m.a(x), 0.5))), [("a", "b")]),
    ("attention", Model(attention, 4), [("a b c", "d")]),
    (
        "grouped-query attention",
        Model(lambda m, x: attention(m, x, 4, 2), 4, b=(8, 4), c=(8, 4)),
        [("a b c", "d")],
    ),
    ("two branches", Model(lambda m, x: m.b(F.relu(m.a(x))) + m.c(torch.tanh(m.a(x))), 3), [("a", "b c")]),
    ("merged", Model(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, -1))), a=(8, 16)), [("a[8, 8]", "b")]),
    ("a chain of four", Model(lambda m, x: m.d(m.c(m.b(m.a(x)))), 4), [("a", "b"), ("c", "d")]),
    ("called twice", Model(lambda m, x: m.b(F.relu(m.a(x))) + m.b(F.relu(m.a(2 * x)))), [("a", "b")]),
    ("a mean over the sequence", Model(lambda m, x: m.b(m.a(x).mean(1))), [("a", "b")]),
    ("a softmax over the sequence", Model(lambda m, x: m.b(m.a(x).softmax(1))), [("a", "b")]),
    ("joined along the sequence", Model(lambda m, x: m.b(torch.cat([m.a(x), m.a(x)], 1))), [("a", "b")]),
    ("stacked", Model(lambda m, x: m.b(torch.stack([m.a(x), -m.a(x)], 1).sum(1))), [("a", "b")]),
    ("heads, transposed", Model(lambda m, x: m.b(m.a(x).view(2, 3, 4, 2).mT.flatten(2))), [("a[2, 2, 2, 2]", "b")]),
    ("a size that is written down", Model(lambda m, x: m.b(m.a(x).view(2, 3, 4, 2).flatten(2))), [("a", "b")]),
    ("flattened and back", Model(lambda m, x: m.b(m.a(x).flatten(0, 1).unflatten(0, (2, 3)))), [("a", "b")]),
]


@pytest.mark.parametrize(("model", "chains"), [entry[1:] for entry in PROVEN], ids=[entry[0] for entry in PROVEN])
def test_a_chain_is_found(model: Model, chains: list[tuple[str, str]]) -> None:
    assert told(derive(model, 2, CALL)) == chains


WHOLE: list[tuple[str, Model, str, str]] = [
    ("output", Model(lambda m, x: m.a(x), 1), "a", "it is seen from outside, in the model's output"),
    (
        "output as well",
        Model(lambda m, x: (h := m.a(x), m.b(h))),
        "a",
        "it is seen from outside, in the model's output",
    ),
    (
        "norm",
        Model(lambda m, x: m.b(m.norm(m.a(x)))),
        "a",
        "a norm runs over its sharded dimension (aten.native_layer_norm, in norm",
    ),
    ("softmax", Model(lambda m, x: m.b(m.a(x).softmax(-1))), "a", "a softmax runs over its sharded dimension"),
    (
        "mean",
        Model(lambda m, x: m.b(m.a(x) - m.a(x).mean(-1, keepdim=True))),
        "a",
        "aten.mean runs over its sharded dimension",
    ),
    ("residual", Model(lambda m, x: m.b(x + m.a(x))), "a", "its output meets a value that is not sharded"),
    (
        "slice",
        Model(lambda m, x: m.b(m.a(x)[..., 2:10]), a=(8, 12)),
        "a",
        "a slice is taken along its sharded dimension",
    ),
    (
        "entry",
        Model(lambda m, x: m.b(x * m.a(x)[..., :1])),
        "a",
        "its output meets a value that is not sharded (aten.mul",
    ),
    ("joined", Model(lambda m, x: m.b(torch.cat([m.a(x), m.a(x)], -1)), b=(16, 8)), "a", "along its sharded dimension"),
    (
        "joined with",
        Model(lambda m, x: m.b(torch.cat([m.a(x), x], 1))),
        "a",
        "its output is joined with what is not sharded",
    ),
    (
        "stacked with",
        Model(lambda m, x: m.b(torch.stack([m.a(x), x], 1))),
        "a",
        "its output is stacked with what is not sharded",
    ),
    (
        "mixed",
        Model(lambda m, x: m.b(m.a(x).flatten(1).view(2, 4, 6)), b=(6, 8)),
        "a",
        "mixes what is sharded with what is not",
    ),
    (
        "product",
        Model(lambda m, x: m.b(m.a(x) @ m.a(x).mT), b=(3, 8)),
        "a",
        "a sum over the ranks that is still to come",
    ),
    (
        "ordered",
        Model(lambda m, x: m.b(m.a(x).sort(-1).values)),
        "a",
        "entries are ordered along its sharded dimension (aten.sort",
    ),
    ("heads", Model(lambda m, x: m.b(m.a(x).view(2, 3, 1, 8).flatten(2))), "", ""),
    ("odd", Model(lambda m, x: m.b(m.a(x)), a=(8, 5), b=(5, 8)), "a", "P = 2 does not divide its 5 features"),
    ("no taker", Model(lambda m, x: (m.a(x), m.b(x))[1].relu(), b=(8, 8)), "a", "no linear takes its output up"),
    (
        "three in a row",
        Model(lambda m, x: m.c(m.b(m.a(x))), 3, c=(8, 2)),
        "c",
        "it is seen from outside, in the model's output",
    ),
    ("used twice", Model(lambda m, x: m.b(m.a(x)) + m.a.weight.sum()), "a", "aten.sum.default uses its weight"),
    ("tied", Model(lambda m, x: m.b(F.relu(m.a(x))) @ m.b.weight), "a", "b.weight: aten."),
]


@pytest.mark.parametrize(
    ("model", "name", "reason"), [entry[1:] for entry in WHOLE if entry[2]], ids=[e[0] for e in WHOLE if e[2]]
)
def test_what_cannot_be_proven_stays_whole_with_the_reason(model: Model, name: str, reason: str) -> None:
    derived = derive(model, 2, CALL)

    assert reason in derived.replicated[f"{name}.weight"]
    assert f"{name}.weight" not in {label for chain in derived.chains for label in (*chain.columns, *chain.rows)}


def test_heads_that_the_ranks_cannot_share_stay_whole() -> None:
    model = Model(attention, 4)

    assert told(derive(model, 4, CALL)) == [("a b c", "d")]
    assert "which P = 8 does not divide" in derive(model, 8, CALL).replicated["a.weight"]


def test_key_and_value_heads_that_the_ranks_cannot_share_stay_whole() -> None:
    model = Model(lambda m, x: attention(m, x, 4, 2), 4, b=(8, 4), c=(8, 4))

    assert told(derive(model, 4, CALL)) == []


def test_of_two_chains_that_share_a_linear_the_larger_is_cut() -> None:
    model = Model(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), 3, a=(8, 8), b=(8, 64), c=(64, 8))

    assert told(derive(model, 2, CALL)) == [("b", "c")]


def test_a_whole_size_that_is_an_attribute_is_divided() -> None:
    def whole(m: Any, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x)).view(*x.shape[:-1], m.heads, m.width).flatten(2))

    model = Model(whole)
    model.heads, model.width, model.other = 4, 2, 8
    (chain,) = derive(model, 2, CALL).chains

    assert chain.sizes == {("", "heads"): 2}
    assert (model.heads, model.width, model.other) == (4, 2, 8)


def test_control_flow_that_depends_on_data_is_not_followed() -> None:
    with pytest.raises(Unfollowable, match=r"the model at test_planning.py:\d+ decides by values"):
        derive(Model(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x), 2, [Example((torch.ones(2, 3, 8),))])


def test_the_model_is_left_as_it_was() -> None:
    model = Model(lambda m, x: m.b(F.relu(m.a(x)))).train()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    derive(model, 2, CALL)

    assert model.training
    assert not model.a._forward_hooks
    assert {name: id(p) for name, p in model.named_parameters()} == {name: key for name, (key, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())


def test_names_mean_nothing() -> None:
    model = Model(lambda m, x: m.a(F.relu(m.b(x))))

    assert told(derive(model, 2, CALL)) == [("b", "a")]


class Lenient:
    """Notes of a view that shares out whatever lies side by side."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def lose(self, labels: Any, why: str) -> None:
        self.lost += labels

    def blocks(self, *_: object) -> int:
        return 1

    def single(self, *_: object) -> bool:
        return False

    def inner(self, *_: object) -> None:
        return None


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=4)


@given(before=SHAPES, after=SHAPES, dim=st.integers(0, 3), P=st.sampled_from([2, 4]))
def test_a_view_of_a_slice_is_the_slice_of_the_view(before: list[int], after: list[int], dim: int, P: int) -> None:
    """What through_view says, against index arithmetic: both ways give the same elements to every rank."""
    whole = torch.arange(torch.Size(before).numel()).view(before)
    if whole.numel() != torch.Size(after).numel() or dim >= len(before) or before[dim] % P:
        return
    notes = Lenient()
    found = through_view({dim: {"a": Place()}}, before, after, notes)
    if notes.lost or after[next(iter(found))] // found[next(iter(found))]["a"].outer % P:
        return
    ((place, labels),) = found.items()
    local = [size // P if k == place else size for k, size in enumerate(after)]
    for rank in range(P):
        mine = whole.chunk(P, dim)[rank].reshape(local)
        blocks = whole.view(after).unflatten(place, (labels["a"].outer, P, -1))
        assert torch.equal(mine, blocks.select(place + 1, rank).flatten(place, place + 1))


def test_without_a_process_group_the_parts_of_a_rank_are_made_all_the_same() -> None:
    model = torch_tp.parallelize(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)), rank=1, world_size=2)

    assert [tuple(p.shape) for p in model.parameters()] == [(3, 8), (3,), (8, 3), (8,)]
    with pytest.raises(torch_tp.NoProcessGroupError, match="reduce_output=True needs an all-reduce"):
        model(torch.ones(2, 8))


def test_a_report_can_be_read() -> None:
    model = torch_tp.parallelize(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)), rank=1, world_size=2)
    told = str(model.tp_report).splitlines()

    assert told[0] == ("P = 2: 2 of 2 are cut; a rank holds 236 B of 440 B (100.0 % of all parameters lie in slices)")
    assert re.sub(" +", " ", told[1]) == "0 column [6, 8] 216 B -> 108 B backward: all-reduce of the input's gradient"
    assert re.sub(" +", " ", told[2]) == "2 row [8, 6] 224 B -> 128 B forward: all-reduce of the output"


def test_linears_whose_weight_is_no_parameter_are_left_alone_with_a_reason() -> None:
    class Packed(nn.Module):
        """As torch.ao's quantised linears are held."""

        def __init__(self) -> None:
            super().__init__()
            self._packed_params = torch.ones(8, 8, dtype=torch.int8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self._packed_params.to(x.dtype).t()

    computed = nn.Linear(8, 8)
    weight = computed.weight.detach()
    del computed.weight
    computed.scale = nn.Parameter(torch.ones(8, 1))
    computed.register_forward_pre_hook(lambda module, _: setattr(module, "weight", weight * module.scale))
    model = torch_tp.parallelize(nn.Sequential(computed, Packed()), rank=0, world_size=2, example=X)

    assert "packed for a quantised kernel" in str(model.tp_report)
    assert all(entry.style == "replicated" for entry in model.tp_report.entries)
