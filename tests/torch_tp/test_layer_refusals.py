"""Each bad argument: the type of the error, and the text that names layer, argument, value and remedy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import torch_tp
from torch_tp import ColumnParallelLinear, NoProcessGroupError, RowParallelLinear
from torch_tp.layers import share_input

SHARD = {"in_features": 4, "out_features": 6, "rank": 1, "world_size": 2}

CONSTRUCTIONS: list[tuple[type[nn.Module], dict[str, Any], type[Exception], str]] = [
    (
        ColumnParallelLinear,
        {"out_features": 5},
        ValueError,
        "out_features = 5 cannot be cut into P = 2 equal shards; make it a multiple of 2, such as 6",
    ),
    (
        RowParallelLinear,
        {"in_features": 5},
        ValueError,
        "in_features = 5 cannot be cut into P = 2 equal shards; make it a multiple of 2, such as 6",
    ),
    (
        ColumnParallelLinear,
        {"out_features": 1},
        ValueError,
        "out_features = 1 cannot be cut into P = 2 equal shards; make it a multiple of 2, such as 2",
    ),
    (RowParallelLinear, {"in_features": 0}, ValueError, "in_features = 0; it must be at least 1"),
    (
        RowParallelLinear,
        {"out_features": -6},
        ValueError,
        "out_features = -6; it must be at least 1",
    ),
    (
        ColumnParallelLinear,
        {"in_features": 4.0},
        ValueError,
        "in_features = 4.0 is not an integer",
    ),
    (
        ColumnParallelLinear,
        {"in_features": torch.tensor(2.5)},
        ValueError,
        "in_features = tensor(2.5000) is not an integer",
    ),
    (
        ColumnParallelLinear,
        {"out_features": torch.tensor(True)},
        ValueError,
        "out_features = tensor(True) is not an integer",
    ),
    (
        ColumnParallelLinear,
        {"out_features": True},
        ValueError,
        "out_features = True is not an integer",
    ),
    (
        ColumnParallelLinear,
        {"bias": torch.ones(6)},
        ValueError,
        "bias is of type Tensor; it must be True or False",
    ),
    (
        RowParallelLinear,
        {"reduce_output": None},
        ValueError,
        "reduce_output is of type NoneType; it must be True or False",
    ),
    (
        ColumnParallelLinear,
        {"gather_output": True, "skip_bias_add": True},
        ValueError,
        "gather_output=True and skip_bias_add=True with bias=True would return a whole output and "
        "a sharded bias; set one of the three to False",
    ),
    (
        RowParallelLinear,
        {"reduce_output": False},
        ValueError,
        "reduce_output=False with bias=True would add the bias to every term of the sum; set "
        "bias=False or skip_bias_add=True",
    ),
    (
        ColumnParallelLinear,
        {"master_weight": torch.ones(3, 4)},
        ValueError,
        "master_weight has shape [3, 4]; it must be the whole, unsharded one, [6, 4]",
    ),
    (
        RowParallelLinear,
        {"master_bias": torch.ones(3)},
        ValueError,
        "master_bias has shape [3]; it must be the whole, unsharded one, [6]",
    ),
    (
        RowParallelLinear,
        {"bias": False, "master_bias": torch.ones(6)},
        ValueError,
        "master_bias was given with bias=False; leave it out, or set bias=True",
    ),
    (
        ColumnParallelLinear,
        {"master_weight": torch.ones(6, 4, dtype=torch.int32)},
        TypeError,
        "the dtype of master_weight is torch.int32; it must be a floating-point dtype, such as torch.float32",
    ),
    (
        ColumnParallelLinear,
        {"master_weight": [[1.0]]},
        TypeError,
        "master_weight is a list; it must be a torch.Tensor or None",
    ),
    (
        RowParallelLinear,
        {"dtype": torch.int64},
        TypeError,
        "dtype is torch.int64; it must be a floating-point dtype, such as torch.float32",
    ),
    (
        ColumnParallelLinear,
        {"rank": 2},
        ValueError,
        "rank = 2, world_size = 2; world_size must be at least 1 and rank at least 0 and less than world_size",
    ),
    (
        ColumnParallelLinear,
        {"rank": -1},
        ValueError,
        "rank = -1, world_size = 2; world_size must be at least 1 and rank at least 0 and less than world_size",
    ),
    (
        ColumnParallelLinear,
        {"rank": None},
        ValueError,
        "rank=None, world_size=2, group=None; give rank= and world_size= together to build a shard "
        "without a process group, or group= alone",
    ),
    (
        ColumnParallelLinear,
        {"group": "tp"},
        ValueError,
        "rank=1, world_size=2, group='tp'; give rank= and world_size= together to build a shard "
        "without a process group, or group= alone",
    ),
    (
        ColumnParallelLinear,
        {"world_size": None},
        ValueError,
        "rank=1, world_size=None, group=None; give rank= and world_size= together to build a shard "
        "without a process group, or group= alone",
    ),
    (
        RowParallelLinear,
        {"rank": None, "world_size": None, "group": "tp"},
        TypeError,
        "group is 'tp' (str); it must be a torch.distributed.ProcessGroup, a one-dimensional DeviceMesh, or None",
    ),
    (
        RowParallelLinear,
        {"rank": None, "world_size": None},
        NoProcessGroupError,
        "there is no process group; call torch_tp.init_tensor_parallel() or "
        "torch.distributed.init_process_group() first, or pass group=",
    ),
]


@pytest.mark.parametrize(("layer", "bad", "kind", "text"), CONSTRUCTIONS, ids=range(len(CONSTRUCTIONS)))
def test_construction(layer: type[nn.Module], bad: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^{layer.__name__}: {re.escape(text)}$") as caught:
        layer(**{**SHARD, **bad})
    assert caught.type is kind


@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear])
def test_an_unknown_keyword_is_named(layer: Any) -> None:
    text = re.escape(f"{layer.__name__}.__init__() got an unexpected keyword argument 'gruop'")
    with pytest.raises(TypeError, match=f"^{text}$"):
        layer(4, 6, gruop=None)
    with pytest.raises(TypeError, match=f"^{text}$"):
        layer.from_linear(nn.Linear(4, 6), gruop=None)


INPUTS: list[tuple[Any, type[Exception], str]] = [
    (
        torch.ones(3, 2),
        ValueError,
        "the input has shape [3, 2]; its last dimension must be in_features = 4 (P = 2)",
    ),
    (
        torch.tensor(1.0),
        ValueError,
        "the input has shape []; its last dimension must be in_features = 4 (P = 2)",
    ),
    (
        torch.ones(4, dtype=torch.int64),
        TypeError,
        "the input is torch.int64; it must be floating-point, torch.float32 like the weight",
    ),
    (
        torch.ones(4, dtype=torch.float64),
        TypeError,
        "the input is torch.float64 and the weight torch.float32; convert one of them, or run the "
        "layer under torch.autocast",
    ),
    (
        torch.ones(4, device="meta"),
        RuntimeError,
        "the input is on meta and the weight on cpu; move one of them",
    ),
    ([1.0], TypeError, "the input is a list; it must be a torch.Tensor"),
]


@pytest.mark.parametrize(("x", "kind", "text"), INPUTS, ids=range(len(INPUTS)))
def test_input(x: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^ColumnParallelLinear: {re.escape(text)}$") as caught:
        ColumnParallelLinear(**SHARD)(x)
    assert caught.type is kind


@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear])
def test_one_rank_refuses_what_more_refuse(layer: type[nn.Module]) -> None:
    """P = 1 is nn.Linear in what it computes; bad inputs are still named."""
    with pytest.raises(TypeError, match=r"the input is torch\.float64 and the weight torch\.float32"):
        layer(4, 6, rank=0, world_size=1)(torch.ones(4, dtype=torch.float64))


def test_float64_under_autocast_is_refused_as_a_dtype() -> None:
    """Autocast leaves float64 alone, so it meets a bfloat16 weight."""
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"float64 and the weight torch\.float32"),
    ):
        ColumnParallelLinear(**SHARD)(torch.ones(4, dtype=torch.float64))


NEEDS_A_GROUP = {
    "an input that requires grad": (ColumnParallelLinear, {}, torch.ones(4, requires_grad=True), "all-reduce"),
    "gather_output": (ColumnParallelLinear, {"gather_output": True}, torch.ones(4), "gather_output=True needs"),
    "reduce_output": (RowParallelLinear, {}, torch.ones(2), "reduce_output=True needs an all-reduce"),
    "input_is_parallel=False": (
        RowParallelLinear,
        {"input_is_parallel": False, "reduce_output": False, "bias": False},
        torch.ones(4, requires_grad=True),
        "the gradient of a replicated input needs an all-gather",
    ),
}


@pytest.mark.parametrize("why", NEEDS_A_GROUP)
def test_a_detached_shard_refuses_what_would_communicate(why: str) -> None:
    layer, flags, x, text = NEEDS_A_GROUP[why]

    with pytest.raises(NoProcessGroupError, match=f"^{layer.__name__}: .*{text}.*rank=1, world_size=2"):
        layer(**SHARD, **flags)(x)


def test_a_detached_shard_that_shares_its_input_refuses_the_same() -> None:
    layers = [ColumnParallelLinear(**SHARD) for _ in range(2)]
    share_input(layers)
    text = "the gradient of an input that requires one needs an all-reduce, .*rank=1, world_size=2"
    for layer in layers:
        with pytest.raises(NoProcessGroupError, match=f"^ColumnParallelLinear: {text}"):
            layer(torch.ones(4, requires_grad=True))
        assert layer(torch.ones(4)).shape == (3,)


@pytest.mark.parametrize("function", [torch_tp.copy, torch_tp.reduce, torch_tp.gather, torch_tp.scatter])
def test_functions_without_a_process_group(function: Any) -> None:
    with pytest.raises(NoProcessGroupError, match=f"^torch_tp.{function.__name__}: there is no process group; call"):
        function(torch.ones(2))


def test_from_linear_takes_linears_alone() -> None:
    with pytest.raises(TypeError, match=r"^RowParallelLinear: from_linear got a ReLU; it must be a torch\.nn\.Linear$"):
        RowParallelLinear.from_linear(nn.ReLU(), rank=0, world_size=1)  # type: ignore[arg-type]


def test_the_own_errors_are_runtime_errors() -> None:
    assert issubclass(torch_tp.NoProcessGroupError, RuntimeError)
    assert issubclass(torch_tp.RankMismatchError, RuntimeError)


@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("where", ["cpu", "meta", "compiled"])
@pytest.mark.parametrize(
    ("x", "kind", "text"),
    [
        (
            torch.ones(3, 5),
            ValueError,
            "the input has shape [3, 5]; its last dimension must be in_features = 4 (P = 1)",
        ),
        (torch.ones(3, 4).double(), TypeError, "the input is torch.float64 and the weight torch.float32"),
        (torch.ones(3, 4).long(), TypeError, "the input is torch.int64; it must be floating-point"),
    ],
    ids=["width", "dtype", "integers"],
)
def test_one_rank_refuses_what_several_refuse(
    layer: Any, where: str, x: torch.Tensor, kind: type[Exception], text: str
) -> None:
    made = layer(4, 6, rank=0, world_size=1, device="meta" if where == "meta" else "cpu")
    call = torch.compile(made, backend="eager") if where == "compiled" else made
    with pytest.raises(kind, match=re.escape(f"{layer.__name__}: {text}")):
        call(x.to("meta") if where == "meta" else x)
