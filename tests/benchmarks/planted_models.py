"""Models that are cut wrong on purpose, for ranks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

import torch_tp
from benchmarks.models import llama, ranks


def unreduced(model: nn.Module) -> nn.Module:
    """The input's gradient of every column layer is this rank's term alone."""
    model = llama.cut_by_torch_tp(model)
    for name, each in model.named_modules():
        if llama.HAND_PLAN.get(name.rpartition(".")[2]) == 0:
            each.forward = lambda x, layer=each: F.linear(x, layer.weight, layer.bias)
    return model


def raises(model: nn.Module) -> nn.Module:
    raise ArithmeticError("on purpose")


def half(model: nn.Module) -> nn.Module:
    """The attentions alone are cut: right, with fewer collectives and more weights."""
    plan = {f"*.{name}": ("column", "row")[dim] for name, dim in llama.HAND_PLAN.items() if name[0] in "qkvo"}
    return torch_tp.parallelize(model, plan=plan)


ranks.BUILDERS = {**llama.BUILDERS, "unreduced": unreduced, "raises": raises, "half": half}
models = ranks.models
