"""The block column -> gelu -> row of each contender, on the same masters, input and upstream gradient.

A contender is a function of `Given` that returns something to run; it is found by its name. Imported inside ranks only,
and a peer's package only when that peer is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import torch_tp
from benchmarks.layers.floor import ByHand, Floor
from benchmarks.layers.given import Given


class Contender(Protocol):
    """What can be timed: a forward alone, and a forward with a backward, either of which may be repeated."""

    def forward(self) -> Tensor:
        """The output, complete on this rank."""
        ...

    def both(self) -> Mapping[str, Tensor]:
        """Forward and backward; the output `y` and the gradients `x`, `w1`, `b1`, `w2`, `b2` of this rank."""
        ...


@dataclass(eq=False)
class Block:
    """A contender in modules, run by autograd.

    Attributes:
        call: the block's forward.
        leaves: input and parameters by their names.
        settle: makes complete what a library hands out before its collective has ended.
    """

    given: Given
    call: Callable[[Tensor], Tensor]
    leaves: Mapping[str, Tensor]
    settle: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.settle(self.call(self.leaves["x"]))

    def both(self) -> Mapping[str, Tensor]:
        y = self.call(self.leaves["x"])
        y.backward(self.given.g)
        done = {"y": self.settle(y.detach()), "x": self.settle(self.leaves["x"].grad)}
        for name, leaf in self.leaves.items():
            done.setdefault(name, leaf.grad)
            leaf.grad = None
        return done

    def count_saved(self) -> int:
        """Bytes of the distinct storages that one forward keeps for its backward, beyond input and parameters."""
        held = {_local(leaf).untyped_storage().data_ptr() for leaf in self.leaves.values()}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = _local(tensor).untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.settle(self.call(self.leaves["x"]).detach())
        return sum(size for address, size in seen.items() if address not in held)


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def build_torch_tp(given: Given) -> Contender:
    """Of this project."""
    sizes = (given.features, given.hidden)
    up = torch_tp.ColumnParallelLinear(*sizes, True, given.w1, master_bias=given.b1)
    down = torch_tp.RowParallelLinear(*reversed(sizes), True, given.w2, master_bias=given.b2)
    return Block(given, lambda x: down(F.gelu(up(x))), _leaves(given, up, down))


def build_plain(given: Given) -> Contender:
    """Two `nn.Linear`, for which one rank is needed."""
    up, down = _dense(given)
    return Block(given, lambda x: down(F.gelu(up(x))), _leaves(given, up, down))


def build_megatron(given: Given) -> Contender:
    """Megatron-core; its layers return `(output, bias or None)`."""
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

    P = dist.get_world_size()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=P)
    on_gpu = given.device.type == "cuda"
    config = ModelParallelConfig(
        tensor_model_parallel_size=P, use_cpu_initialization=not on_gpu, perform_initialization=False
    )
    same: dict[str, Any] = {"config": config, "init_method": nn.init.zeros_, "bias": True, "skip_bias_add": False}
    up = ColumnParallelLinear(given.features, given.hidden, gather_output=False, **same)
    down = RowParallelLinear(given.hidden, given.features, input_is_parallel=True, **same)
    _fill(given, up, down)
    return Block(given, lambda x: down(F.gelu(up(x)[0]))[0], _leaves(given, up, down))


def build_fairscale(given: Given) -> Contender:
    """fairscale."""
    from fairscale.nn.model_parallel import initialize as model_parallel
    from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear

    if not model_parallel.model_parallel_is_initialized():
        backend = dist.get_backend()
        model_parallel.initialize_model_parallel(
            dist.get_world_size(), model_parallel_backend=backend, ddp_backend=backend, pipeline_backend=backend
        )
    up = ColumnParallelLinear(given.features, given.hidden, gather_output=False, init_method=nn.init.zeros_)
    down = RowParallelLinear(given.hidden, given.features, input_is_parallel=True, init_method=nn.init.zeros_)
    up.to(given.device)
    down.to(given.device)
    _fill(given, up, down)
    return Block(given, lambda x: down(F.gelu(up(x))), _leaves(given, up, down))


def build_dtensor(given: Given) -> Contender:
    """torch.distributed.tensor.parallel on two `nn.Linear`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh(given.device.type, (dist.get_world_size(),))
    up, down = _dense(given)
    parallelize_module(up, mesh, ColwiseParallel())
    parallelize_module(down, mesh, RowwiseParallel())
    return Block(given, lambda x: down(F.gelu(up(x))), _leaves(given, up, down), _waited)


BUILDERS: Mapping[str, Callable[[Given], Contender]] = {
    "torch_tp": build_torch_tp,
    "plain": build_plain,
    "Megatron": build_megatron,
    "fairscale": build_fairscale,
    "DTensor": build_dtensor,
    "by hand": ByHand,
    "floor": Floor,
}


def reference(given: Given) -> Mapping[str, Tensor]:
    """This rank's part of what the dense block of the whole masters gives."""
    up, down = _dense(given)
    block = Block(given, lambda x: down(F.gelu(up(x))), _leaves(given, up, down))
    whole = block.both()
    cut = {name: given.own(name, whole[name]) for name in ("w1", "b1", "w2", "b2")}
    return {**whole, **cut}


def disagreement(done: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """Which result is not the dense block's, and by how much; `""` if all are.

    The products of the largest size sum 8192 terms in float32 in an order of the contender's own: a ten-thousandth of
    the largest element is above what that rounds, and far below what a bias too many or a term too few does.
    """
    for name, wanted in right.items():
        room = 1e-4 * float(wanted.abs().max())
        try:
            torch.testing.assert_close(_local(done[name]), wanted, rtol=1e-4, atol=room)
        except AssertionError as error:
            what = "output" if name == "y" else f"gradient of {name}"
            return f"gives a wrong {what}: {' '.join(str(error).split())}"
    return ""


def _dense(given: Given) -> tuple[nn.Linear, nn.Linear]:
    layers = nn.Linear(given.features, given.hidden), nn.Linear(given.hidden, given.features)
    for layer, weight, bias in zip(layers, (given.w1, given.w2), (given.b1, given.b2), strict=True):
        layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layers


@torch.no_grad()
def _fill(given: Given, up: nn.Module, down: nn.Module) -> None:
    for name, parameter in (("w1", up.weight), ("b1", up.bias), ("w2", down.weight), ("b2", down.bias)):
        parameter.copy_(given.own(name, getattr(given, name)))


def _leaves(given: Given, up: nn.Module, down: nn.Module) -> dict[str, Tensor]:
    x = given.x.clone().requires_grad_()
    return {"x": x, "w1": up.weight, "b1": up.bias, "w2": down.weight, "b2": down.bias}


def _waited(tensor: Tensor) -> Tensor:
    return tensor.wait() if hasattr(tensor, "wait") else tensor
