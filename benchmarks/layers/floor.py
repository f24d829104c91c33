"""The block in torch's own products and collectives: no autograd, no modules, forward and backward written out.

`Floor` puts every result into a buffer that was there before, which is the least that the mathematics costs. `ByHand`
makes new tensors for them, as autograd does: what it takes more, a layer that returns new gradients takes too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.layers.given import Given


class ByHand:
    """New tensors for all results. The reduction of the input's gradient runs under the first weight's gradient."""

    def __init__(self, given: Given) -> None:
        self._x, self._g = given.x.clone(), given.g
        self._w1, self._b1, self._w2, self._b2 = (given.own(n, getattr(given, n)) for n in ("w1", "b1", "w2", "b2"))
        self._alone = dist.get_world_size() == 1

    def forward(self) -> Tensor:
        return self._forward()[2]

    def both(self) -> Mapping[str, Tensor]:
        h, a, y = self._forward()
        g = self._g
        gh = torch.ops.aten.gelu_backward(torch.mm(g, self._w2), h)
        gw2, gb2 = torch.mm(g.t(), a), torch.sum(g, 0)
        gx = torch.mm(gh, self._w1)
        work = None if self._alone else dist.all_reduce(gx, async_op=True)
        gw1, gb1 = torch.mm(gh.t(), self._x), torch.sum(gh, 0)
        if work is not None:
            work.wait()
        return {"y": y, "x": gx, "w1": gw1, "b1": gb1, "w2": gw2, "b2": gb2}

    def _forward(self) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.addmm(self._b1, self._x, self._w1.t())
        a = torch.ops.aten.gelu(h)
        if self._alone:
            return h, a, torch.addmm(self._b2, a, self._w2.t())
        y = torch.mm(a, self._w2.t())
        dist.all_reduce(y)
        return h, a, y.add_(self._b2)


class Floor(ByHand):
    """The same into buffers that are there already."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        wide = given.x.new_empty(given.batch, self._w1.shape[0])
        self._h, self._a, self._ga, self._gh = (torch.empty_like(wide) for _ in range(4))
        self._y, self._gx = (torch.empty_like(given.x) for _ in range(2))
        like = (self._w1, self._b1, self._w2, self._b2)
        self._gw1, self._gb1, self._gw2, self._gb2 = (torch.empty_like(parameter) for parameter in like)

    def forward(self) -> Tensor:
        torch.addmm(self._b1, self._x, self._w1.t(), out=self._h)
        torch.ops.aten.gelu.out(self._h, out=self._a)
        if self._alone:
            return torch.addmm(self._b2, self._a, self._w2.t(), out=self._y)
        torch.mm(self._a, self._w2.t(), out=self._y)
        dist.all_reduce(self._y)
        return self._y.add_(self._b2)

    def both(self) -> Mapping[str, Tensor]:
        self.forward()
        torch.mm(self._g, self._w2, out=self._ga)
        torch.mm(self._g.t(), self._a, out=self._gw2)
        torch.sum(self._g, 0, out=self._gb2)
        torch.ops.aten.gelu_backward.grad_input(self._ga, self._h, grad_input=self._gh)
        torch.mm(self._gh, self._w1, out=self._gx)
        work = None if self._alone else dist.all_reduce(self._gx, async_op=True)
        torch.mm(self._gh.t(), self._x, out=self._gw1)
        torch.sum(self._gh, 0, out=self._gb1)
        if work is not None:
            work.wait()
        grads = {"x": self._gx, "w1": self._gw1, "b1": self._gb1, "w2": self._gw2, "b2": self._gb2}
        return {"y": self._y, **grads}
