"""How far rounding may move each result of a model, by Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997).

The dense model runs once as it is, and a few times with perturbed matrix products and sums, forward and backward. A
perturbed result `a b + c` of n terms differs by the worst-case error of its rounding, with random signs:

    ((1 + gamma(n, u_acc)) (1 + gamma(P + 2, u)) - 1) * (|a| |b| + |c|),      gamma(k, u) = k u / (1 - k u)

u is the roundoff of its dtype and u_acc that of the accumulator (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1; P + 2 covers the sum over the ranks, the bias and a cast). The bound of a tensor is
twice the largest deviation of any of its elements over these runs, and four roundoff units of its largest element.

Only the operations of `PERTURBED` are perturbed: matrix products and `sum`. The products inside of a fused attention
kernel, a convolution, a norm, a mean or a softmax are not. Their rounding is covered only as far as it is no larger
than that of the perturbed operations around them; where it is larger, the bound is too narrow and not too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_tp.internals import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot, _aten._grouped_mm}
PERTURBED = _PRODUCTS | {_aten.sum}
_OPERAND_ROUNDOFF = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}  # of float32, by matmul precision


class Rounding(TorchDispatchMode):
    """While it is active, matrix products and sums are perturbed by as much as rounding may change them.

    It works below autograd, so it perturbs the operations of the backward, too. Sums without products matter where a
    gradient is zero up to rounding, such as that of a bias that is added to all keys of an attention.

    Args:
        P: the number of ranks.
        seed: of the random signs.
    """

    def __init__(self, P: int, seed: int) -> None:
        super().__init__()
        self._P = P
        self._source = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in PERTURBED or not is_float(out):
            return out
        operands = [each for each in args if isinstance(each, Tensor)]
        if func.overloadpacket is _aten.sum:
            terms = operands[0].numel() // max(1, out.numel())
        elif func.overloadpacket is _aten._grouped_mm:
            terms = operands[0].shape[-1]
        else:
            terms = operands[-2].shape[-1] + len(operands) - 2
        magnitude = func(*(each.abs() if isinstance(each, Tensor) else each for each in args), **(kwargs or {}))
        signs = torch.randint(0, 2, out.shape, generator=self._source).mul_(2).sub_(1).to(out.device)
        error = magnitude.to(_wide(out.dtype)) * relative_error(terms, self._P, out.dtype) * signs
        return (out + error).to(out.dtype)


def relative_error(terms: int, P: int, dtype: torch.dtype) -> float:
    """The worst-case error of a sum of `terms` products, divided by the sum of their absolute values."""
    u = _roundoff(dtype)
    accumulated, after = _gamma(terms, min(u, 2.0**-24)), _gamma(P + 2, u)
    operands = 2 * _OPERAND_ROUNDOFF[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 0.0
    return (1 + accumulated) * (1 + after) * (1 + operands) - 1


def widen(found: dict[Any, float], dense: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> None:
    """Raise each deviation in `found` to that of another run, if it is larger there."""
    for key in dense.keys() & other.keys():
        found[key] = max(found[key], deviation(other[key], dense[key]))


def bounds(found: Mapping[Any, float], dense: Mapping[Any, Tensor]) -> dict[Any, float]:
    """The bound of each tensor, from the largest deviation of any of its elements in perturbed runs."""
    return {key: 2 * worst + 4 * _roundoff(dense[key].dtype) * largest(dense[key]) for key, worst in found.items()}


def is_float(value: Any) -> bool:
    """True of a tensor of real or complex floating-point numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of any element.

    It is 0 where both are the same infinity, or both are no number; it is infinite where only one of them is.
    """
    a, b = actual.detach().to(_wide(actual.dtype)), expected.detach().to(_wide(expected.dtype))
    off = (a - b).abs().masked_fill_((a == b) | (a.isnan() & b.isnan()), 0)
    return float(off.nan_to_num_(nan=math.inf, posinf=math.inf).max()) if off.numel() else 0.0


def largest(tensor: Tensor) -> float:
    """The largest absolute value of the finite elements."""
    finite = tensor.detach().abs().nan_to_num_(nan=0, posinf=0)
    return float(finite.max()) if finite.numel() else 0.0


def _gamma(k: int, u: float) -> float:
    return k * u / (1 - k * u) if k * u < 0.5 else 1.0


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of comparisons: narrower ones are compared in float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype
