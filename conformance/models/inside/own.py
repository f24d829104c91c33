"""Small models of our own, of shapes that planners get wrong: residuals, branches, shared modules, gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conformance.models.gated import BLOCKS, WIDTH, WIDTH_WITHIN, parameters


class GatedBlock(nn.Module):
    """x + dropout(down(silu(gate(x)) * up(x)))."""

    def __init__(self, width: int, within: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, within), nn.Linear(width, within)
        self.down = nn.Linear(within, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class Gated(nn.Module):
    """A stack of gated blocks; `recompute` says how each is checkpointed: not at all, "reentrant" or "plain"."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GatedBlock(WIDTH, WIDTH_WITHIN, dropout) for _ in range(BLOCKS))
        self.recompute = ""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.recompute == "reentrant") if self.recompute else block(x)
        return x


def gated(dropout: float = 0.0) -> Gated:
    """The stack with the parameters that its JAX twin has."""
    made = Gated(dropout).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.from_numpy(np.asarray(parameters()[name])))
    return made


class Residual(nn.Module):
    """An MLP between norms, with residuals and a head that stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.into, self.out = (nn.ModuleList(nn.Linear(*sizes) for _ in range(2)) for sizes in ((8, 24), (24, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for norm, into, out in zip(self.norms, self.into, self.out, strict=True):
            x = x + out(F.gelu(into(norm(x))))
        return self.head(x)


class Branches(nn.Module):
    """Two branches from one value that meet in a sum, and one of them twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.left_in, self.left_out = nn.Linear(8, 8), nn.Linear(8, 4)
        self.right_in, self.right_out = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.left_out(torch.tanh(self.left_in(x))) + self.right_out(F.silu(self.right_in(x)))


class Shared(nn.Module):
    """One pair of linears that is called twice, and held under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.again = self.mlp
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.norm(x))
        return x + self.again(self.norm(x))


def encoder() -> Any:
    """torch's own encoder, without the nested tensors of its fast path."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
