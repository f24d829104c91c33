"""torch_tp's adapter with one bug each, planted where the library has none; named after what is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import torch_tp
from conformance.adapters.torch_tp import TorchTp


def layers(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [each for each in model.modules() if isinstance(each, kind)]


class Clips(TorchTp):
    """No bug: the norm of the dense gradient, of slices that are no copies of each other."""

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        held = [p for p in model.parameters() if p.grad is not None]
        cut = [p for p in held if isinstance(getattr(p, "placement", None), torch_tp.Shard)]
        whole = [p for p in held if all(p is not other for other in cut)]
        squares = sum((p.grad.square().sum() for p in cut), torch.zeros((), dtype=torch.float64))
        dist.all_reduce(squares)
        total = (squares + sum(p.grad.square().sum() for p in whole)).sqrt()
        for p in held:
            p.grad.mul_((max_norm / (total + 1e-6)).clamp(max=1.0))
        return total


class ClipsItsOwn(TorchTp):
    """Each rank clips by the norm of what it holds."""

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


class ClipsCopies(TorchTp):
    """Replicated parameters are counted once per rank."""

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        squares = sum(p.grad.square().sum() for p in model.parameters())
        dist.all_reduce(squares)
        total = squares.sqrt()
        for p in model.parameters():
            p.grad.mul_((max_norm / (total + 1e-6)).clamp(max=1.0))
        return total


class Planted(TorchTp):
    """A bug that is put in after the model was cut."""

    def parallelize(self, model: nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        dense = {name: p.detach().clone() for name, p in model.named_parameters()}
        made = super().parallelize(model, group, example)
        with torch.no_grad():
            self.plant(made, dense, dist.get_rank(group), dist.get_world_size(group))
        return made

    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        raise NotImplementedError


class BiasTwice(Planted):
    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        layers(model, torch_tp.RowParallelLinear)[-1].register_forward_hook(lambda layer, _, y: y + layer.bias)


class NotReduced(Planted):
    """The input's gradient of one column layer stays what each rank has of it."""

    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        layer = layers(model, torch_tp.ColumnParallelLinear)[-1]
        layer.forward = lambda x: F.linear(x, layer.weight, layer.bias)


class OneGradientNotReduced(Planted):
    """The gradient of one replicated parameter is a term of it on each rank; its sum would be right."""

    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        layers(model, torch_tp.RowParallelLinear)[0].bias.register_hook(
            lambda g: g * (2 * (rank + 1) / (size * (size + 1)))
        )


class WrongSlice(Planted):
    """Rank r holds the slice of the rank after it."""

    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        name, layer = next(
            (name, each) for name, each in model.named_modules() if isinstance(each, torch_tp.RowParallelLinear)
        )
        layer.weight.copy_(dense[f"{name}.weight"].chunk(size, 1)[(rank + 1) % size])


class OwnSeeds(Planted):
    """Every rank draws its own random numbers."""

    def plant(self, model: nn.Module, dense: Mapping[str, Tensor], rank: int, size: int) -> None:
        model.register_forward_pre_hook(lambda *_: torch.manual_seed(rank) and None)


class Whole(TorchTp):
    """Cuts nothing."""

    def parallelize(self, model: nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        return model


class Refuses(TorchTp):
    def parallelize(self, model: nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        raise ValueError("this model has no linears")


class Dies(TorchTp):
    def parallelize(self, model: nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        if dist.get_rank(group) == 1:
            os._exit(3)
        dist.barrier(group)
        return model


class Hangs(TorchTp):
    def parallelize(self, model: nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        if dist.get_rank(group) == 0:
            dist.barrier(group)
        time.sleep(3600)


class NoModels(TorchTp):
    """Has layers alone."""

    parallelize = None  # type: ignore[assignment]
