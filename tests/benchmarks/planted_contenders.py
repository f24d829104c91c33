"""Contenders that are wrong on purpose, for ranks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

import torch_tp
from benchmarks.layers import contenders, ranks
from benchmarks.layers.contenders import Block, Contender, build_torch_tp
from benchmarks.layers.given import Given


def bias_twice(given: Given) -> Contender:
    block = build_torch_tp(given)
    assert isinstance(block, Block)
    call, bias = block.call, block.leaves["b2"]
    block.call = lambda x: call(x) + bias
    return block


def unreduced(given: Given) -> Contender:
    """The column layer's input gradient is this rank's term alone."""
    up = nn.Linear(1, 1)
    up.weight, up.bias = (nn.Parameter(given.own(name, getattr(given, name))) for name in ("w1", "b1"))
    down = torch_tp.RowParallelLinear(given.hidden, given.features, True, given.w2, master_bias=given.b2)
    leaves = {"x": given.x.clone().requires_grad_(), "w1": up.weight, "b1": up.bias, "w2": down.weight, "b2": down.bias}
    return Block(given, lambda x: down(F.gelu(up(x))), leaves)


def raises(given: Given) -> Contender:
    raise ArithmeticError("on purpose")


contenders.BUILDERS = {**contenders.BUILDERS, "bias twice": bias_twice, "unreduced": unreduced, "raises": raises}
ranks.BUILDERS = contenders.BUILDERS
layers = ranks.layers
