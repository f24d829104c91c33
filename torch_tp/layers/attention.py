"""torch's own attention module, sharded by heads."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.functions import copy_in, gather_along, sum_over
from torch_tp.group import Group
from torch_tp.layers.row import RowParallelLinear
from torch_tp.placements import Shard, own_slice

_NAMES = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class ParallelMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` of which a rank has `num_heads / P` heads.

    Attributes, arguments, results and names of parameters are those of the unsharded module. Query, key and value
    projections are sharded by heads, each by itself; `out_proj` is a `RowParallelLinear`.

    | collectives at P > 1 | |
    | --- | --- |
    | forward | one all-reduce of the output; with `need_weights=True` one more, or an all-gather, of the weights |
    | backward | one all-reduce of the gradient of each tensor among query, key and value that needs one |

    Made by `from_module` alone. Source: Megatron-LM (arXiv:1909.08053), section 3.
    """

    @classmethod
    def from_module(cls, module: nn.MultiheadAttention, **where: Any) -> ParallelMultiheadAttention:
        """This rank's part of a module that is the same on all ranks; `where` is `group`, or `rank` and `world_size`.

        Raises:
            ValueError: P does not divide `num_heads`, or `unfit` has a reason.
        """
        out = RowParallelLinear.from_linear(module.out_proj, **where)
        checks.refuse(cls.__name__, unfit(module, out.world_size))
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        vars(made).update({k: value for k, value in vars(module).items() if k not in ("_parameters", "_modules")})
        made._parameters, made._modules = dict(module._parameters), {"out_proj": out}
        made._group = out._group
        for name, placement in made._placements().items():
            dense = module.get_parameter(name)
            own = own_slice(dense.detach(), placement, out.world_size, out.rank).clone()
            made._parameters[name] = nn.Parameter(own, requires_grad=dense.requires_grad)
        made._qkv_same_embed_dim = False  # torch's fused kernels are right for unsharded modules alone
        made._mark()
        return made

    _group: Group

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`; everything that goes in and comes out is replicated."""
        if is_causal and attn_mask is None:
            raise RuntimeError(f"{type(self).__name__}: is_causal=True is a hint about attn_mask; give that too")
        group = self._group = self._group.resolved()
        batched = query.dim() == 3
        inputs = {id(x): x for x in (query, key, value)}  # one all-reduce for a tensor that is several of them
        copied = {k: self._batched(self._copied(x, group), batched) for k, x in inputs.items()}
        q, k, v = (self._heads(n, copied[id(x)]) for n, x in enumerate((query, key, value)))
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            own = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            weights, heads = self._weights(own, average_attn_weights, group), own @ v
        else:
            causal = is_causal and key_padding_mask is None
            heads = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        y = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _copied(self, x: Tensor, group: Group) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            group.require(type(self).__name__, "the gradient of an input that requires one needs an all-reduce")
        return copy_in(x, group)

    def _batched(self, x: Tensor, batched: bool) -> Tensor:
        """`[N, length, features]`."""
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, which: int, x: Tensor) -> Tensor:
        """This rank's heads of query (0), key (1) or value (2): `[N, heads / P, length, head_dim]`."""
        if self.in_proj_weight is not None:
            weight = self.in_proj_weight.chunk(3)[which]
        else:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[which]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[which]
        y: Tensor = F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))
        return y.transpose(1, 2)

    def _mask_in(self, mask: Tensor | None) -> Tensor | None:
        return mask if mask is None or not mask.requires_grad else self._copied(mask, self._group)

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Any:
        """The sum of the masks, to be added to this rank's scores: `[1 or N, 1 or heads / P, L, S]`."""
        # Each rank's gradient of a mask is partial: its own heads have used it.
        mask, padding = (self._mask_in(_added(each, q)) for each in (attn_mask, padding))
        if mask is not None and mask.dim() == 3:
            by_head = mask.view(-1, self.num_heads, *mask.shape[1:])
            mask = own_slice(by_head, Shard(1), self._group.size, self._group.rank)
        if padding is None:
            return mask
        padding = padding.view(-1, 1, 1, k.shape[2])
        return padding if mask is None else mask + padding

    def _weights(self, own: Tensor, average: bool, group: Group) -> Tensor:
        if group.size == 1:
            return own.mean(1) if average else own
        return sum_over(own.sum(1), group).div(self.num_heads) if average else gather_along(own, 1, group)

    def _placements(self) -> dict[str, Shard]:
        E, there = self.embed_dim, [name for name in _NAMES if self._parameters.get(name) is not None]
        return {name: Shard(0, (E, E, E)) if name.startswith("in_proj") else Shard(0) for name in there}

    def _mark(self) -> None:
        for name, placement in self._placements().items():
            setattr(self._parameters[name], "placement", placement)  # noqa: B010 - Parameter declares no such field

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, fn: Any, recurse: bool = True) -> ParallelMultiheadAttention:
        super()._apply(fn, recurse)
        self._mark()
        return self


def unfit(module: nn.MultiheadAttention, P: int) -> str:
    """Why a module cannot be sharded by heads, or an empty string."""
    if type(module) is not nn.MultiheadAttention or type(module.out_proj).__mro__[1] is not nn.Linear:
        return f"it is a {type(module).__name__}, not an nn.MultiheadAttention itself"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys and values of its own (add_bias_kv, add_zero_attn)"
    return checks.divisibility("num_heads", module.num_heads, P)


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask in the form that is added to scores. A boolean mask is True where nothing may be attended to."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    added: Tensor = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
    return added
