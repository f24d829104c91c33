"""Mistakes about a layer's life: how it starts, what it saves and loads, and what its copies are.

Implementations for `--impl tests/mutants/initial.py:<class>`; what is to be said of each is in `initial.toml`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import group as groups
from torch_tp.autocast import autocast
from torch_tp.collectives import all_gather, broadcast
from torch_tp.functions import gather_along
from torch_tp.layers import column, linear
from torch_tp.layers.products import column_product

reset, restore = linear.ShardedLinear.reset_parameters, linear.ShardedLinear.__setstate__


class SameSeedShards(TorchTp):
    """Every rank draws its own shard from the one seed, so that all shards are equal: modelscope/ms-swift#7944."""

    def set_up(self, group: Group) -> None:
        @torch.no_grad()
        def draw_shard(layer: Any) -> None:
            rows, columns = layer.weight.shape
            drawn = nn.Linear(
                columns, rows, layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype
            )
            layer.weight.copy_(drawn.weight)
            if layer.bias is not None:
                layer.bias.zero_()

        linear.ShardedLinear.reset_parameters = draw_shard


class FanInOfShard(TorchTp):
    """The row layer's initial weights are scaled by the inputs of one rank, so they are sqrt(P) times too large."""

    def set_up(self, group: Group) -> None:
        @torch.no_grad()
        def too_large(layer: Any) -> None:
            reset(layer)
            layer.weight.mul_((layer.in_features / layer.weight.shape[1]) ** 0.5)

        linear.ShardedLinear.reset_parameters = too_large


class ReplicatedBiasByRank(TorchTp):
    """Every rank draws its bias from another seed, the row layer's replicated one too: NVIDIA-NeMo/Automodel#1291."""

    def set_up(self, group: Group) -> None:
        @torch.no_grad()
        def by_rank(layer: Any) -> None:
            reset(layer)
            if layer.bias is not None:
                source = torch.Generator().manual_seed(layer.rank)
                layer.bias.copy_(torch.rand(len(layer.bias), generator=source))

        linear.ShardedLinear.reset_parameters = by_rank


class RandomStateRestored(TorchTp):
    """Drawing leaves the random state as it was, so that the next layer draws the same numbers."""

    def set_up(self, group: Group) -> None:
        def forked(layer: Any) -> None:
            with torch.random.fork_rng(devices=[]):
                reset(layer)

        linear.ShardedLinear.reset_parameters = forked


class RankInState(TorchTp):
    """The rank is a buffer, and so a key of the state dict."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if isinstance(made, nn.Module):
            made.register_buffer("tensor_parallel_rank", torch.tensor(layer.rank))
        return made


def save_whole(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Put the whole weight into a state dict."""
    if module.world_size > 1:
        dim = module.weight_placement.dim
        state[f"{prefix}weight"] = all_gather(module.weight.detach(), dim, module._resolved(), "state dict")


def load_own(module: Any, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Cut this rank's shard out of a whole weight."""
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = module._own_shard(state[f"{prefix}weight"], module.weight_placement)


class SavesWhole(TorchTp):
    """A rank that saves alone waits for the others, since it saves the whole weight: huggingface/transformers#48569."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if isinstance(made, nn.Module):
            made.register_state_dict_post_hook(save_whole)
            made.register_load_state_dict_pre_hook(load_own)
        return made


def save_narrow(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Round a state dict to bfloat16."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[name] = state[name].bfloat16()


class SavesInBfloat16(TorchTp):
    """A state dict is saved in bfloat16, and loads without a word."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if isinstance(made, nn.Module):
            made.register_state_dict_post_hook(save_narrow)
        return made


class MissingKeysIgnored(TorchTp):
    """A key that is missing, or not known, is passed over: areal-project/AReaL#1468."""

    def set_up(self, group: Group) -> None:
        def lenient(layer: Any, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
            return nn.Module.load_state_dict(layer, state, strict=False, assign=assign)

        linear.ShardedLinear.load_state_dict = lenient


def load_what_fits(module: Any, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Cut every tensor of a state dict to the size of the parameter, from the front."""
    for name, parameter in module.named_parameters(recurse=False):
        if f"{prefix}{name}" in state:
            state[f"{prefix}{name}"] = state[f"{prefix}{name}"][tuple(map(slice, parameter.shape))]


class LoadsWhatFits(TorchTp):
    """Of a tensor that is too large the first elements are loaded."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if isinstance(made, nn.Module):
            made.register_load_state_dict_pre_hook(load_what_fits)
        return made


class DeepcopyWithoutGroup(TorchTp):
    """A deep copy has no process group."""

    def set_up(self, group: Group) -> None:
        groups.Group.__deepcopy__ = lambda self, memo: groups.Group(self.rank, self.size)


class DeepcopyShares(TorchTp):
    """A deep copy has the very parameters of its original."""

    def set_up(self, group: Group) -> None:
        linear.ShardedLinear.__deepcopy__ = lambda layer, memo: copy.copy(layer)


class DeepcopyThaws(TorchTp):
    """All parameters of a deep copy are trainable, those too that were frozen."""

    def set_up(self, group: Group) -> None:
        def thawed(layer: Any, memo: dict[int, Any]) -> Any:
            made = memo[id(layer)] = type(layer).__new__(type(layer))
            made.__setstate__(copy.deepcopy(layer.__dict__, memo))
            return made.requires_grad_()

        linear.ShardedLinear.__deepcopy__ = thawed


class PickleOfRankZero(TorchTp):
    """All ranks read back the file of rank 0."""

    def set_up(self, group: Group) -> None:
        def of_first(layer: Any, state: dict[str, Any]) -> None:
            restore(layer, state)
            for parameter in layer.parameters() if layer.world_size > 1 else ():
                broadcast(parameter.data, 0, layer._resolved(), "unpickling")

        linear.ShardedLinear.__setstate__ = of_first


class ParametersHeld(TorchTp):
    """The column layer computes with the parameters it was built with, whatever stands in their place."""

    def set_up(self, group: Group) -> None:
        def with_held(layer: Any, x: Tensor, _: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            weight, own = layer.held
            y = column_product(*autocast(x, weight, None if bias is None else own), group)
            return gather_along(y, y.dim() - 1, group) if layer.gather_output else y

        column.ColumnParallelLinear._parallel = with_held

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "column":
            made.held = (made.weight, made.bias)
        return made
