"""Fused projections, seen through detached shards and on one rank: who holds which rows, and what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_tp
from torch_tp import ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, Shard

D = 2
# (query heads, key and value heads), for P below, at and above the latter.
HEADS = [(4, 4), (4, 2), (8, 4), (4, 1), (8, 2)]
WORLDS = [1, 2, 4]


def merged(**options: Any) -> MergedColumnParallelLinear:
    return MergedColumnParallelLinear(3, [4, 8], **options)


def rows_of(rank: int, P: int, heads: int, kv_heads: int, v_size: int = D) -> list[int]:
    """The rows of [W_q; W_k; W_v] that a rank holds, head by head, without any formula of the layer's."""
    copies = max(1, P // kv_heads)
    groups = [list(range(heads)), list(range(kv_heads)), list(range(kv_heads))]
    rows, first = [], 0
    for number, group in enumerate(groups):
        spread = [head for head in group for _ in range(copies if number else 1)]
        mine = spread[rank * len(spread) // P : (rank + 1) * len(spread) // P]
        size = v_size if number == 2 else D
        rows += [first + head * size + n for head in mine for n in range(size)]
        first += len(group) * size
    return rows


@pytest.mark.parametrize("P", WORLDS)
def test_a_merged_layer_holds_its_slice_of_each_part(P: int) -> None:
    weight, bias = torch.arange(36.0).view(12, 3), torch.arange(12.0)
    for rank in range(P):
        layer = merged(master_weight=weight, master_bias=bias, rank=rank, world_size=P)
        for name, whole in (("weight", weight), ("bias", bias)):
            gate, up = whole[:4].chunk(P)[rank], whole[4:].chunk(P)[rank]
            assert torch.equal(layer.get_parameter(name), torch.cat([gate, up]))
        assert layer.output_sizes_per_rank == (4 // P, 8 // P)
        assert layer.placements == {"weight": Shard(0, (4, 8)), "bias": Shard(0, (4, 8))}


@pytest.mark.parametrize("P", WORLDS)
@pytest.mark.parametrize("v_size", [None, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_query_key_and_value_are_sharded_by_heads(heads: int, kv_heads: int, v_size: int | None, P: int) -> None:
    E = v_size or D
    rows = (heads + kv_heads) * D + kv_heads * E
    weight, bias = torch.arange(3.0 * rows).view(rows, 3), torch.arange(float(rows))
    for rank in range(P):
        where = {"v_head_size": v_size, "rank": rank, "world_size": P}
        layer = QKVParallelLinear(3, D, heads, kv_heads, master_weight=weight, master_bias=bias, **where)
        mine = rows_of(rank, P, heads, kv_heads, E)
        assert torch.equal(layer.weight, weight[mine])
        assert layer.bias is not None
        assert torch.equal(layer.bias, bias[mine])
        held = layer.placements["weight"]
        assert isinstance(held, Shard)
        assert [row for part in held.ranges(rows, P, rank) for row in part] == mine
        assert (layer.num_heads, layer.num_kv_heads) == (heads // P, max(1, kv_heads // P))
        kv = layer.num_kv_heads
        assert layer.output_sizes_per_rank == (layer.num_heads * D, kv * D, kv * E)
        assert sum(layer.output_sizes_per_rank) == len(mine)
        with torch.no_grad():
            parts = layer.split(layer(torch.ones(5, 3)))
        assert tuple(part.shape[-1] for part in parts) == layer.output_sizes_per_rank


@pytest.mark.parametrize("P", WORLDS)
def test_initial_values_are_those_of_one_linear_for_every_world(P: int) -> None:
    torch.manual_seed(5)
    whole = nn.Linear(3, 12).weight
    for rank in range(P):
        torch.manual_seed(5)
        layer = merged(rank=rank, world_size=P)
        assert torch.equal(layer.weight, torch.cat([part.chunk(P)[rank] for part in whole.split([4, 8])]))


def test_on_one_rank_the_parts_are_those_of_separate_layers() -> None:
    gate, up, x = nn.Linear(3, 4), nn.Linear(3, 8), torch.arange(15.0).view(5, 3)
    with torch.no_grad():
        for parameter in (*gate.parameters(), *up.parameters()):
            parameter.mul_(100).round_()
    layer = MergedColumnParallelLinear.from_linears([gate, up], rank=0, world_size=1)

    for part, linear in zip(layer.split(layer(x)), (gate, up), strict=True):
        assert torch.equal(part, linear(x))


def test_a_layer_made_of_dense_ones_keeps_what_they_have() -> None:
    linears = [nn.Linear(3, size, dtype=torch.float64).eval() for size in (4, 8)]
    for linear in linears:
        linear.weight.requires_grad_(False)
    layer = MergedColumnParallelLinear.from_linears(linears, rank=1, world_size=2)

    assert not layer.training
    assert layer.weight.dtype == torch.float64
    assert layer.bias is not None
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (False, True)
    assert isinstance(layer, ColumnParallelLinear)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_hold_the_same(copied: Any) -> None:
    for layer in (merged(rank=1, world_size=2), QKVParallelLinear(3, D, 4, 1, rank=1, world_size=2)):
        other = copied(layer)
        assert other.placements == layer.placements
        assert torch.equal(other.weight, layer.weight)
        assert repr(other) == repr(layer)
        assert other.weight.placement == layer.weight_placement


def test_the_sizes_are_in_the_text() -> None:
    assert repr(merged(rank=1, world_size=2)).startswith(
        "MergedColumnParallelLinear(in_features=3, output_sizes=(4, 8),"
    )
    for v_size, shown in ((None, 2), (5, 5)):
        layer = QKVParallelLinear(3, 2, 4, 1, v_head_size=v_size, rank=0, world_size=1)
        sizes = "in_features=3, head_size=2, total_num_heads=4, total_num_kv_heads=1"
        assert repr(layer).startswith(f"QKVParallelLinear({sizes}, v_head_size={shown}, bias=True,")


def test_a_dense_layer_with_value_heads_of_another_size() -> None:
    linear = nn.Linear(3, 4 * D + 2 * D + 2 * 5)
    layer = QKVParallelLinear.from_linear(linear, D, 4, 2, v_head_size=5, rank=1, world_size=2)
    assert torch.equal(layer.weight, linear.weight[[*range(4, 8), *range(10, 12), *range(17, 22)]])
    assert copy.deepcopy(layer).v_head_size == 5


def test_a_copied_head_needs_its_ranks_for_its_gradient() -> None:
    layer = QKVParallelLinear(3, D, 4, 1, rank=1, world_size=2)
    text = "QKVParallelLinear: the gradient of a key or value head with copies needs an all-reduce"
    with pytest.raises(torch_tp.NoProcessGroupError, match=re.escape(text)):
        layer(torch.ones(5, 3))
    with torch.no_grad():
        assert layer(torch.ones(5, 3)).shape == (5, 2 * D + 2 * D)


REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: MergedColumnParallelLinear(3, []),
        ValueError,
        "output_sizes is empty; give the size of at least one part",
    ),
    (lambda: MergedColumnParallelLinear(3, 12), TypeError, "output_sizes is a int; it must be a sequence of sizes"),
    (lambda: MergedColumnParallelLinear(3, [4, 0]), ValueError, "output_sizes[1] = 0; it must be at least 1"),
    (
        lambda: MergedColumnParallelLinear(3, [4, 3], rank=0, world_size=2),
        ValueError,
        "output_sizes[1] = 3 cannot be cut into P = 2 equal shards; make it a multiple of 2, such as 4",
    ),
    (
        lambda: QKVParallelLinear(3, D, 3, rank=0, world_size=2),
        ValueError,
        "total_num_heads = 3 cannot be cut into P = 2 equal shards; make it a multiple of 2, such as 4",
    ),
    (
        lambda: QKVParallelLinear(3, D, 4, 3, rank=0, world_size=2),
        ValueError,
        "total_num_heads = 4 is no multiple of total_num_kv_heads = 3",
    ),
    (
        lambda: QKVParallelLinear(3, D, 12, 3, rank=0, world_size=4),
        ValueError,
        "total_num_kv_heads = 3 neither divides P = 4 nor is divided by it",
    ),
    (lambda: QKVParallelLinear(3, 0, 4, rank=0, world_size=2), ValueError, "head_size = 0; it must be at least 1"),
    (
        lambda: QKVParallelLinear(3, D, 4, v_head_size=0, rank=0, world_size=2),
        ValueError,
        "v_head_size = 0; it must be at least 1",
    ),
    (
        lambda: QKVParallelLinear(3, D, 4, 2, master_weight=torch.ones(16, 3), v_head_size=3, rank=0, world_size=2),
        ValueError,
        "master_weight has shape [16, 3]; it must be the whole, unsharded one, [18, 3]",
    ),
    (
        lambda: QKVParallelLinear(3, D, 4, gather_output=True, rank=0, world_size=2),  # type: ignore[call-arg]
        TypeError,
        "QKVParallelLinear.__init__() got an unexpected keyword argument 'gather_output'",
    ),
    (
        lambda: QKVParallelLinear(3, D, 4, 2, True, torch.ones(8, 3), rank=0, world_size=2),
        ValueError,
        "master_weight has shape [8, 3]; it must be the whole, unsharded one, [16, 3]",
    ),
    (lambda: MergedColumnParallelLinear.from_linears([]), ValueError, "from_linears: there is no layer"),
    (
        lambda: MergedColumnParallelLinear.from_linears([nn.Linear(3, 4), nn.Linear(2, 4)]),
        ValueError,
        "from_linears: the layers differ in in_features: [3, 2]",
    ),
    (
        lambda: MergedColumnParallelLinear.from_linears([nn.Linear(3, 4), nn.Linear(3, 4, bias=False)]),
        ValueError,
        "from_linears: the layers differ in bias: [True, False]",
    ),
    (
        lambda: MergedColumnParallelLinear.from_linears([nn.Linear(3, 4), nn.Conv1d(3, 4, 1)]),
        TypeError,
        "from_linears: got a Conv1d; it must be a torch.nn.Linear",
    ),
    (
        lambda: QKVParallelLinear.from_linear(nn.Linear(3, 12), D, 4, 2, rank=0, world_size=2),
        ValueError,
        "master_weight has shape [12, 3]; it must be the whole, unsharded one, [16, 3]",
    ),
]


@pytest.mark.parametrize(("attempt", "kind", "text"), REFUSALS, ids=[text[:40] for _, _, text in REFUSALS])
def test_what_is_refused_is_named(attempt: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)) as raised:
        attempt()

    assert re.match(r"(MergedColumnParallelLinear|QKVParallelLinear)[.:]", str(raised.value))


def test_a_whole_output_comes_in_the_order_of_the_parts() -> None:
    weight = torch.arange(36.0).view(12, 3)
    layer = merged(bias=False, master_weight=weight, gather_output=True, rank=0, world_size=1)
    x: Tensor = torch.eye(3)

    assert [part.shape[-1] for part in layer.split(layer(x))] == [4, 8]
