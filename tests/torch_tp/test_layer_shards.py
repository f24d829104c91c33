"""What a rank holds, seen through detached shards: no process group is needed to look."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_tp import ColumnParallelLinear, Replicate, RowParallelLinear, Shard
from torch_tp.group import Group

LAYERS = [(ColumnParallelLinear, 0), (RowParallelLinear, 1)]
WORLDS = [1, 2, 4]


def shards(layer: Any, world_size: int, *given: Any, **options: Any) -> list[Any]:
    return [layer(8, 12, *given, rank=r, world_size=world_size, **options) for r in range(world_size)]


def random_state() -> Tensor:
    return torch.random.get_rng_state()


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_initial_values_are_those_of_linear_for_every_world(layer: Any, dim: int, bias: bool, world_size: int) -> None:
    torch.manual_seed(5)
    linear = nn.Linear(8, 12, bias)
    after = random_state()
    parts = []
    for rank in range(world_size):
        torch.manual_seed(5)
        parts.append(layer(8, 12, bias, rank=rank, world_size=world_size))
        assert torch.equal(after, random_state())

    assert torch.equal(linear.weight, torch.cat([part.weight for part in parts], dim))
    assert not any(part.bias.any() for part in parts if bias)
    assert bias or all(part.bias is None for part in parts)


@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_reset_after_to_empty_draws_the_same_again(layer: Any, dim: int) -> None:
    torch.manual_seed(5)
    linear = nn.Linear(8, 12)
    after = random_state()
    part = layer(8, 12, rank=1, world_size=2, device="meta").to_empty(device="cpu")
    torch.manual_seed(5)
    part.reset_parameters()

    assert torch.equal(linear.weight.chunk(2, dim)[1], part.weight)
    assert not part.bias.any()
    assert torch.equal(after, random_state())


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_shards_tile_the_master_and_own_their_storage(layer: Any, dim: int, world_size: int) -> None:
    master = torch.arange(96.0).view(8, 12).t()
    bias = torch.arange(12.0)
    before = random_state()
    parts = shards(layer, world_size, True, master, master_bias=bias)

    assert torch.equal(before, random_state())
    assert torch.equal(master, torch.cat([part.weight for part in parts], dim))
    whole = torch.cat([part.bias for part in parts]) if dim == 0 else parts[-1].bias
    assert torch.equal(bias, whole)
    for part in parts:
        for own in (part.weight, part.bias):
            assert own.untyped_storage().nbytes() == own.numel() * own.element_size()
            assert own.untyped_storage().data_ptr() not in (
                master.untyped_storage().data_ptr(),
                bias.untyped_storage().data_ptr(),
            )
            assert own.is_contiguous()
            assert own.is_leaf


@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_masters_are_detached_and_set_dtype_and_device(layer: Any, dim: int) -> None:
    master = torch.ones(12, 8, dtype=torch.float64, requires_grad=True)
    plain, cast = (layer(8, 12, True, master * 1, rank=0, world_size=2, dtype=d) for d in (None, torch.bfloat16))
    meta = layer(8, 12, True, master, rank=0, world_size=2, device="meta")

    assert (plain.weight.dtype, plain.bias.dtype) == (torch.float64, torch.float64)
    assert (cast.weight.dtype, cast.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert meta.weight.is_meta
    assert plain.weight.requires_grad
    assert not plain.bias.any()


@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_from_linear_keeps_everything(layer: Any, dim: int) -> None:
    linear = nn.Linear(8, 12, dtype=torch.float64).eval()
    linear.weight.requires_grad_(False)
    part = layer.from_linear(linear, rank=1, world_size=2)

    assert torch.equal(linear.weight.chunk(2, dim)[1], part.weight)
    assert torch.equal(linear.bias.chunk(2)[1] if dim == 0 else linear.bias, part.bias)
    assert not part.weight.requires_grad
    assert part.bias.requires_grad
    assert not part.training


@pytest.mark.parametrize(("layer", "dim"), LAYERS)
def test_state_dict_is_that_of_linear_and_round_trips(layer: Any, dim: int) -> None:
    part, other = (layer(8, 12, rank=0, world_size=2) for _ in range(2))
    assert list(nn.Linear(8, 12).state_dict()) == list(part.state_dict())

    other.load_state_dict(part.state_dict())

    assert torch.equal(part.weight, other.weight)


def marks(layer: nn.Module) -> dict[str, object]:
    return {name: vars(parameter).get("placement") for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ColumnParallelLinear, {"weight": Shard(0), "bias": Shard(0)}),
        (RowParallelLinear, {"weight": Shard(1), "bias": Replicate()}),
    ],
)
def test_placements_stay_on_the_parameters(layer: Any, expected: dict[str, object]) -> None:
    """Whatever replaces a parameter: copies, pickles, conversions, loads, assignment."""
    part = layer(8, 12, rank=0, world_size=2)
    loaded = layer(8, 12, rank=0, world_size=2)
    loaded.load_state_dict({name: value.clone() for name, value in part.state_dict().items()}, assign=True)
    assigned = layer(8, 12, rank=0, world_size=2)
    assigned.weight = nn.Parameter(torch.zeros_like(assigned.weight))
    empty = layer(8, 12, rank=0, world_size=2, device="meta").to_empty(device="cpu")

    assert expected == part.placements
    for one in (part, copy.deepcopy(part), pickle.loads(pickle.dumps(part)), part.double(), loaded, assigned, empty):
        assert expected == marks(one)


def test_placements_without_a_bias_and_with_more_parameters() -> None:
    part = ColumnParallelLinear(8, 12, bias=False, rank=0, world_size=2)
    part.adapter = nn.Parameter(torch.zeros(3))

    assert part.placements == {"weight": Shard(0)}
    assert part.adapter not in part.placements


def test_conversions_reach_what_was_added_to_a_layer() -> None:
    part = ColumnParallelLinear(8, 12, rank=0, world_size=2)
    part.adapter = nn.Linear(2, 3)

    assert part.double().adapter.weight.dtype == torch.float64


@pytest.mark.parametrize("value", [Shard(0), Replicate(), Group(0, 1)])
def test_what_layers_and_parameters_share_cannot_be_changed(value: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.dim = 1


def test_repr_says_the_arguments() -> None:
    assert repr(RowParallelLinear(8, 12, bias=False, rank=1, world_size=2)) == (
        "RowParallelLinear(in_features=8, out_features=12, bias=False, input_is_parallel=True, reduce_output=True, "
        "skip_bias_add=False, rank=1, world_size=2)"
    )


def test_sizes_of_a_rank() -> None:
    assert ColumnParallelLinear(8, 12, rank=0, world_size=4).out_features_per_rank == 3
    assert RowParallelLinear(8, 12, rank=0, world_size=4).in_features_per_rank == 2


def test_a_detached_shard_does_its_local_part() -> None:
    weight, x = torch.arange(96.0).view(12, 8), torch.arange(16.0).view(2, 8)
    column = ColumnParallelLinear(8, 12, True, weight, rank=1, world_size=2)
    row = RowParallelLinear(8, 12, False, weight, reduce_output=False, rank=1, world_size=2)
    column(x).sum().backward()

    assert torch.equal((x @ weight.t())[:, 6:], column(x))
    assert column.weight.grad is not None
    assert torch.equal(x[:, 4:] @ weight[:, 4:].t(), row(x[:, 4:]))
    with torch.no_grad():
        assert torch.equal(column(x), column(x.clone().requires_grad_()))


def test_detached_shards_travel() -> None:
    part = ColumnParallelLinear(8, 12, rank=1, world_size=2)
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert (twin.rank, twin.world_size) == (1, 2)
        assert torch.equal(part.weight, twin.weight)
