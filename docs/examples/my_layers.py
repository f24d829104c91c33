"""A column and a row layer as a project may have them: it is these that the suite is to check."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class CopyToRanks(torch.autograd.Function):
    """Forward: nothing. Backward: the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return summed(grad, ctx.group), None


class SumOverRanks(torch.autograd.Function):
    """Forward: the sum of all ranks' terms. Backward: nothing."""

    @staticmethod
    def forward(ctx, x, group):
        return summed(x, group)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def summed(x, group):
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class MyColumnLinear(nn.Module):
    """Rank r of P holds rows r O/P to (r+1) O/P of the weight, and that slice of the bias."""

    def __init__(self, in_features, out_features, bias=True, process_group=None, device=None, dtype=None):
        super().__init__()
        self.group, self.size = process_group, dist.get_world_size(process_group)
        if out_features < 1 or out_features % self.size:
            raise ValueError(f"out_features={out_features} must be a positive multiple of {self.size} ranks")
        self.weight = nn.Parameter(torch.empty(out_features // self.size, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features // self.size, device=device, dtype=dtype)) if bias else None

    @torch.no_grad()
    def load_full(self, weight, bias=None):
        rank = dist.get_rank(self.group)
        self.weight.copy_(weight.chunk(self.size, 0)[rank])
        if self.bias is not None:
            self.bias.copy_(bias.chunk(self.size, 0)[rank])

    def forward(self, x):
        if self.size > 1:
            x = CopyToRanks.apply(x, self.group)
        return F.linear(x, self.weight, self.bias)


class MyRowLinear(nn.Module):
    """Rank r of P holds columns r I/P to (r+1) I/P of the weight, and the whole bias."""

    def __init__(self, in_features, out_features, bias=True, process_group=None, device=None, dtype=None):
        super().__init__()
        self.group, self.size = process_group, dist.get_world_size(process_group)
        if in_features < 1 or in_features % self.size:
            raise ValueError(f"in_features={in_features} must be a positive multiple of {self.size} ranks")
        self.weight = nn.Parameter(torch.empty(out_features, in_features // self.size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @torch.no_grad()
    def load_full(self, weight, bias=None):
        self.weight.copy_(weight.chunk(self.size, 1)[dist.get_rank(self.group)])
        if self.bias is not None:
            self.bias.copy_(bias)

    def forward(self, x):
        if self.size == 1:
            return F.linear(x, self.weight, self.bias)
        y = SumOverRanks.apply(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias
