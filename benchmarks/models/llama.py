"""Llama of transformers in some size: whole, cut by `parallelize`, and cut by DTensor with the plan written by hand.

A step is a forward, a backward and a step of SGD. Imported in the ranks, and where a model is wrapped without data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

import torch_tp
from benchmarks.models.sizes import Size
from conformance.adapters.watch import CollectiveLog

# How people write it, from the names of the linears: the last part of each to the dimension of its weight that is cut.
HAND_PLAN: Final = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0),
    **dict.fromkeys(("o_proj", "down_proj"), 1),
}
RATE: Final = 1e-3


def build(size: Size) -> nn.Module:
    """The whole model; under `torch.device("meta")` without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=size.layers,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            vocab_size=size.vocabulary,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def cut_by_torch_tp(model: nn.Module) -> nn.Module:
    return torch_tp.parallelize(model)


def cut_by_hand(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    styles = (ColwiseParallel, RowwiseParallel)
    plan = {
        name: styles[HAND_PLAN[name.rpartition(".")[2]]]()
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in HAND_PLAN
    }
    return parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)


BUILDERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "torch_tp": cut_by_torch_tp,
    "DTensor": cut_by_hand,
    "dense": lambda model: model,
}


@dataclass
class Contender:
    """A model in training; the tokens are the same on all ranks."""

    model: nn.Module
    tokens: Tensor

    def __post_init__(self) -> None:
        # One parameter after another, for all alike: torch's grouped update refuses DTensors beside plain tensors.
        self._optimizer = torch.optim.SGD(self.model.parameters(), RATE, foreach=False)

    def backward(self) -> Tensor:
        """Forward and backward; the logits."""
        self._optimizer.zero_grad()
        output = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False)
        output.loss.backward()
        return output.logits.detach()

    def step(self) -> None:
        self.backward()
        self._optimizer.step()

    def collectives(self) -> list[tuple[str, int]]:
        """Kind and bytes of each collective of a step, as the conformance suite records them."""
        with CollectiveLog(lambda _: None) as log:
            self.step()
        return [(each.kind, each.bytes) for each in log.take()]

    def weight_bytes(self) -> int:
        """Of this rank's parameters."""
        local = [p.to_local() if hasattr(p, "to_local") else p for p in self.model.parameters()]
        return sum(each.numel() * each.element_size() for each in local)


def expected_bytes(model: nn.Module, P: int) -> float:
    """Of a rank that holds a P-th of what the plan by hand cuts, and everything else."""
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    return sum(size / P if name.split(".")[-2] in HAND_PLAN else size for name, size in sizes.items())


def disagreement(contender: Contender, dense: Contender) -> str:
    """What of the logits and the gradients is not the dense model's; `""` if all are.

    A thousandth of a tensor's largest element is above what float32 rounds in a model of a few layers, and far below
    what a sum that is left out does.
    """
    logits, right = contender.backward(), dense.backward()
    found = {"logits": (logits, right)}
    wanted = {name: p.grad for name, p in dense.model.named_parameters()}
    for name, parameter in contender.model.named_parameters():
        gradient = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        found[f"gradient of {name}"] = (gradient, _own(wanted[name], getattr(parameter, "placement", None)))
    for name, (mine, whole) in found.items():
        if mine.shape != whole.shape or not (mine - whole).abs().max() <= 1e-3 * whole.abs().max():
            return f"gives a wrong {name}"
    return ""


def _own(whole: Tensor, placement: Any) -> Tensor:
    if not isinstance(placement, torch_tp.Shard):
        return whole
    held = placement.ranges(whole.shape[placement.dim], dist.get_world_size(), dist.get_rank())
    return torch.cat([whole.narrow(placement.dim, part.start, len(part)) for part in held], placement.dim)
