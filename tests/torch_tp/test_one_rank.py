"""P = 1 is nn.Linear: the same bits, no collective, no autograd node of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import torch_tp
from torch_tp import ColumnParallelLinear, RowParallelLinear, collectives, debug
from torch_tp.layers import share_input

FLAGS = [
    (ColumnParallelLinear, {}),
    (ColumnParallelLinear, {"gather_output": True}),
    (RowParallelLinear, {}),
    (RowParallelLinear, {"input_is_parallel": False}),
]
INPUTS = {
    "plain": torch.randn(3, 8),
    "no batch": torch.randn(8),
    "no rows": torch.randn(0, 8),
    "transposed": torch.randn(8, 3).t(),
    "expanded": torch.randn(1, 8).expand(5, 8),
    "step": torch.randn(2, 3, 16)[..., ::2],
}


@pytest.fixture(params=["world of one", "detached"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    if request.param == "detached":
        yield {"rank": 0, "world_size": 1}
        return
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield {}
    dist.destroy_process_group()


def nodes(y: Tensor) -> list[str]:
    found, left = [], [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            found.append(type(node).__name__)
            left += [one for one, _ in node.next_functions]
    return sorted(found)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("layer", "flags"), FLAGS, ids=range(len(FLAGS)))
def test_same_bits_and_nodes_as_linear(layer: Any, flags: dict[str, bool], kind: str, where: dict[str, int]) -> None:
    linear = nn.Linear(8, 12)
    part = layer.from_linear(linear, **flags, **where)
    x, own = (INPUTS[kind].detach().requires_grad_() for _ in range(2))
    expected, actual = linear(x), part(own)
    g = torch.randn_like(expected)
    assert nodes(expected) == nodes(actual)
    expected.backward(g)
    actual.backward(g)

    assert torch.equal(expected, actual)
    assert torch.equal(x.grad, own.grad)
    assert torch.equal(linear.weight.grad, part.weight.grad)
    assert torch.equal(linear.bias.grad, part.bias.grad)


def test_skip_bias_add_returns_the_parameter(where: dict[str, int]) -> None:
    x = torch.randn(3, 8)
    for layer in (ColumnParallelLinear, RowParallelLinear):
        part = layer(8, 12, skip_bias_add=True, **where)
        y, bias = part(x)
        assert bias is part.bias
        assert torch.equal(nn.functional.linear(x, part.weight), y)
        assert layer(8, 12, bias=False, skip_bias_add=True, **where)(x)[1] is None


def test_layers_that_share_an_input_have_no_node_of_ours(where: dict[str, int]) -> None:
    layers = [ColumnParallelLinear(8, 6, **where) for _ in range(2)]
    share_input(layers)
    x = torch.randn(3, 8, requires_grad=True)
    for layer in layers:
        y = layer(x)
        assert torch.equal(y, nn.functional.linear(x, layer.weight, layer.bias))
        assert y.grad_fn is not None
        assert y.grad_fn.name() == "AddmmBackward0"


@pytest.mark.parametrize("where", ["world of one"], indirect=True)
def test_functions_return_their_input(where: dict[str, int]) -> None:
    x = torch.randn(3, 8, requires_grad=True) * 1
    for function in (torch_tp.copy, torch_tp.reduce, torch_tp.gather, torch_tp.scatter):
        assert function(x) is x
    total = torch_tp.all_reduce_sum(x)
    assert total is not x
    assert torch.equal(x, total)


@pytest.mark.parametrize("where", ["world of one"], indirect=True)
@pytest.mark.parametrize("function", [torch_tp.gather, torch_tp.scatter])
def test_a_dimension_that_is_not_there(function: Any, where: dict[str, int]) -> None:
    name = f"torch_tp.{function.__name__}"
    with pytest.raises(ValueError, match=rf"^{name}: dim = 2, but .* \[3, 8\] has 2 dimensions; .* from -2 to 1$"):
        function(torch.ones(3, 8), 2)
    with pytest.raises(ValueError, match=rf"^{name}: dim = -1, but .* \[\] has 0 dimensions; give it at least one$"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match=rf"^{name}: dim = 'last' is not an integer$"):
        function(torch.ones(3, 8), "last")
    with pytest.raises(TypeError, match=rf"^{name}: the input is a list; it must be a torch.Tensor$"):
        function([1.0])


@pytest.mark.parametrize("where", ["world of one"], indirect=True)
@pytest.mark.parametrize("function", [torch_tp.gather, torch_tp.scatter])
def test_dimensions_count_from_either_end(function: Any, where: dict[str, int]) -> None:
    x = torch.ones(3, 8)
    assert all(function(x, dim) is x for dim in (-2, -1, 0, 1))
    with pytest.raises(ValueError, match=r"dim = -3, but .* has 2 dimensions"):
        function(x, -3)


@pytest.mark.parametrize("where", ["world of one"], indirect=True)
@pytest.mark.parametrize("source", [-1, 1])
def test_a_source_that_is_not_there(source: int, where: dict[str, int]) -> None:
    text = rf"^torch_tp\.broadcast_tensor: src_rank = {source}; the group has the ranks 0 to 0$"
    with pytest.raises(ValueError, match=text):
        torch_tp.broadcast_tensor(torch.ones(2), source)


def test_one_rank_has_nobody_to_compare_with(where: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setenv("TP_DEBUG", "check")
    monkeypatch.setattr(debug, "check", lambda what, *rest: compared.append(what))
    x = torch.ones(3, 8)
    for layer in (ColumnParallelLinear, RowParallelLinear):
        layer(8, 12, **where)(x)
    if not where:
        for function in (torch_tp.copy, torch_tp.reduce, torch_tp.gather, torch_tp.scatter, torch_tp.broadcast_tensor):
            function(x)
    assert not compared


@pytest.mark.parametrize("where", ["world of one"], indirect=True)
def test_the_utilities_of_one_rank_communicate_nothing(where: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    for name in ("all_reduce", "broadcast", "barrier"):
        monkeypatch.setattr(collectives, name, lambda *given, name=name: entered.append(name))
    torch_tp.all_reduce_sum(torch.ones(2))
    torch_tp.broadcast_tensor(torch.ones(2))
    torch_tp.synchronize_across_ranks()
    assert not entered
