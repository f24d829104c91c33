"""What every contender is given, the same on all ranks: masters, input, upstream gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Of the masters: the dimension that is cut over the ranks, None where every rank holds the whole.
_CUT = {"w1": 0, "b1": 0, "w2": 1, "b2": None}


@dataclass(frozen=True, eq=False)
class Given:
    """`x [batch, features]`, `w1 [hidden, features]`, `b1 [hidden]`, `w2 [features, hidden]`, `b2 [features]`, and `g`
    like `x`, the gradient of the output."""

    features: int
    hidden: int
    batch: int
    x: Tensor
    g: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.x.device

    def own(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a master or of its gradient, contiguous and with storage of its own."""
        dim = _CUT[name]
        part = whole if dim is None else whole.chunk(dist.get_world_size(), dim)[dist.get_rank()]
        return part.detach().clone(memory_format=torch.contiguous_format)


def draw(features: int, hidden: int, batch: int, device: torch.device) -> Given:
    """Normal numbers, the weights scaled so that all activations are of the order of 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device)

    return Given(
        features,
        hidden,
        batch,
        x=normal(batch, features),
        g=normal(batch, features),
        w1=normal(hidden, features, scale=features**-0.5),
        b1=normal(hidden),
        w2=normal(features, hidden, scale=hidden**-0.5),
        b2=normal(features),
    )
