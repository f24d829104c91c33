"""How far two right ways to compute a model may lie apart: the dense model again, each sum off by as much as it may be.

A sum of n products, computed in any order and cut over ranks in any way, errs by at most gamma_n times the sum of their
absolute values, gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So the
dense model is run several times with each element of each linear's results, and of their gradients, moved by that much
up or down at random (Monte Carlo arithmetic: Parker, 1997), and the farthest that a value of the run gets away from the
undisturbed one is what its rounding may amount to. The same goes through optimizers: steps of the disturbed run bound
the parameters after these steps. Nothing is chosen by hand, and a wrong model lies ten orders of magnitude outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

RUNS: Final = 4
# Elementwise kernels may differ by a few units, where they walk over a slice in another width of vectors.
ELEMENTWISE: Final = 8
# Both sides round.
SIDES: Final = 2

Values = dict[str, Tensor]


def gamma(n: int, u: float) -> float:
    """The relative error of a sum of n terms, at most."""
    return n * u / (1 - n * u)


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff."""
    return torch.finfo(dtype).eps / 2


class Wide(TorchFunctionMode):
    """While it lasts, what would be rounded from float64 to float32 on the way, as some norms do, stays as it is.

    Rounding is no continuous function: of two values as close as can be, one may be rounded up and the other down. With
    `wide` False it does nothing, as for models that are in float32 anyway.
    """

    def __init__(self, wide: bool = True) -> None:
        super().__init__()
        self.wide = wide

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.wide and args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float or (func is Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype"))):
                return args[0]
            if func in _SOFTMAX and kwargs.get("dtype") == torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


_SOFTMAX: Final = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)


class Disturbed(Wide):
    """While it lasts, linears and matrix products err as much as they may, up or down at random.

    Under autocast their operands are cast first, as autocast would; then the products are summed in float32, and what
    each of P ranks holds is rounded to the narrow dtype, as are the P - 1 sums of the reduction.
    """

    def __init__(self, seed: int, P: int, wide: bool = True) -> None:
        super().__init__(wide)
        self.source, self.P = torch.Generator().manual_seed(seed), P

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return super().__torch_function__(func, types, args, kwargs)
        a, b, c = _PRODUCTS[func](*args, **kwargs)
        if min(a.dim(), b.dim()) < 2 or not a.is_floating_point():
            return func(*args, **kwargs)
        if torch.is_autocast_enabled(a.device.type):
            narrow = torch.get_autocast_dtype(a.device.type)
            a, b, c = a.to(narrow), b.to(narrow), None if c is None else c.to(narrow)
        with torch.autocast(a.device.type, enabled=False):
            y = _Product.apply(a, b, self)
            return y if c is None else y + _Sum.apply(c, self, y.shape)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, off by its bound."""
        wide = torch.promote_types(a.dtype, torch.float32)
        u, u_wide = unit(a.dtype), unit(wide)
        n = a.shape[-1] + self.P + 2
        relative = gamma(n, u_wide) + (gamma(self.P + 2, u) if wide != a.dtype else 0.0)
        return self._moved(a.to(wide) @ b.to(wide), relative * (a.to(wide).abs() @ b.to(wide).abs())).to(a.dtype)

    def sum_to(self, g: Tensor, shape: torch.Size) -> Tensor:
        """g summed to a shape that broadcasts to its own, off by its bound."""
        n = g.numel() // max(1, shape.numel())
        wide = torch.promote_types(g.dtype, torch.float32)
        relative = gamma(n + self.P + 2, unit(wide)) + (gamma(self.P + 2, unit(g.dtype)) if wide != g.dtype else 0.0)
        whole = g.to(wide)
        return self._moved(whole.sum_to_size(shape), relative * whole.abs().sum_to_size(shape)).to(g.dtype)

    def _moved(self, value: Tensor, by: Tensor) -> Tensor:
        signs = torch.randint(0, 2, value.shape, generator=self.source, dtype=torch.int8) * 2 - 1
        return value + signs.to(value.dtype).to(value.device) * by


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, mode: Disturbed) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.mode = mode
        return mode.product(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (a, b), (g,) = ctx.saved_tensors, grads
        mode: Disturbed = ctx.mode
        with torch._C.DisableTorchFunction():  # or the products of this backward were disturbed again
            if a.dim() > 2 and b.dim() == 2:  # one sum over all rows
                of_b = mode.product(a.flatten(0, -2).mT, g.flatten(0, -2))
            else:
                of_b = mode.product(a.mT, g)
            of_a = mode.product(g, b.mT)
        return _to(of_a, a.shape), _to(of_b, b.shape), None


def _to(gradient: Tensor, shape: torch.Size) -> Tensor:
    return gradient if gradient.shape == shape else gradient.sum_to_size(shape)


class _Sum(torch.autograd.Function):
    """A bias, whose gradient is a sum."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, mode: Disturbed, shape: torch.Size) -> Tensor:
        ctx.mode, ctx.shape = mode, c.shape
        return c.expand(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.mode.sum_to(grads[0], ctx.shape), None, None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: A002  torch's names
    return input, weight.mT, bias


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Any:  # noqa: A002
    return mat1, mat2, input


def _matmul(a: Tensor, b: Tensor) -> Any:
    return a, b, None


_PRODUCTS: Final[Mapping[Any, Callable[..., Any]]] = {
    torch._C._nn.linear: _linear,
    torch.addmm: _addmm,
    torch.bmm: _matmul,
    Tensor.bmm: _matmul,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}


def bounds(run: Callable[[], Values], P: int, wide: bool = True) -> tuple[Values, dict[str, float]]:
    """The values of an undisturbed run, and by how much each may differ from those of a right implementation.

    `run` gives tensors by name, the same names every time, of a model that it makes anew; P is the number of ranks.
    """
    exact = plainly(run, wide)
    farthest = dict.fromkeys(exact, 0.0)
    for seed in range(RUNS):
        with Disturbed(seed, P, wide):
            values = run()
        for name, value in values.items():
            farthest[name] = max(farthest[name], distance(value, exact[name]))
    return exact, {
        name: SIDES * (farthest[name] + ELEMENTWISE * unit(value.dtype) * largest(value))
        for name, value in exact.items()
    }


def plainly(run: Callable[[], Values], wide: bool = True) -> Values:
    """The values of a run that is not disturbed."""
    with Wide(wide):
        return run()


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of one shape; NaN where either has one."""
    return largest(a.double() - b.double())


def largest(value: Tensor) -> float:
    """The largest absolute value; 0 of an empty tensor."""
    return float(value.detach().double().abs().max()) if value.numel() else 0.0
