"""The derived bound: wide enough for every right order of summation, and far too narrow for anything else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conformance.models.inside.bench import dense, once
from conformance.models.inside.rounding import Disturbed, Wide, bounds, distance, gamma, largest, plainly
from conformance.models.inside.training import RECIPES, trained


def cut_in_terms(x: Tensor, w: Tensor, order: Tensor, P: int) -> Tensor:
    """A linear whose sum is taken in another order, in P terms."""
    terms = [F.linear(x[..., each], w[:, each]) for each in order.chunk(P)]
    return sum(terms[1:], terms[0])


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), n=st.integers(4, 64), P=st.sampled_from([2, 4]))
def test_any_order_of_a_sum_lies_within_the_bound(seed: int, n: int, P: int) -> None:
    source = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(5, n, generator=source, dtype=torch.float64) for _ in range(2))
    v = torch.randn(3, 5, generator=source, dtype=torch.float64)
    order = torch.randperm(n, generator=source)

    exact, bound = bounds(lambda: {"y": F.linear(torch.tanh(F.linear(x, w)), v)}, P)
    found = F.linear(torch.tanh(cut_in_terms(x, w, order, P)), v)

    assert distance(found, exact["y"]) <= bound["y"]
    assert bound["y"] < 1e-8 * largest(exact["y"])


@pytest.mark.parametrize("name", ["gated", "residual", "branches", "shared", "encoder"])
def test_bounds_of_models_are_narrow_and_none_is_nought(name: str) -> None:
    exact, bound = bounds(lambda: once(dense(name)), 4)
    most = max(map(largest, exact.values()))

    assert len(exact) > 3
    for key, value in exact.items():
        assert 0 < bound[key] < 1e-11 * max(largest(value), 1e-6 * most), key


def test_bounds_hold_through_training() -> None:
    recipe = RECIPES["adamw"][0]
    exact, bound = bounds(lambda: trained(dense("gated"), recipe), 2)

    assert all(0 < bound[key] < 1e-11 for key in exact)
    assert "the loss in step 3" in exact


def test_the_dense_run_is_the_same_every_time() -> None:
    first, second = (plainly(lambda: once(dense("residual"))) for _ in range(2))

    assert all(torch.equal(first[key], second[key]) for key in first)


class Products(nn.Module):
    """Every way to write a product."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4).double()), nn.Parameter(torch.randn(4).double())

    def forward(self, x: Tensor, how: str) -> Tensor:
        rows = x.flatten(0, 1)
        many = self.w.expand(2, 4, 4)
        return {
            "linear": lambda: F.linear(x, self.w, self.b),
            "addmm": lambda: torch.addmm(self.b, rows, self.w),
            "bmm": lambda: torch.bmm(x, many),
            "matmul": lambda: torch.matmul(x, self.w),
            "operator": lambda: x @ self.w,
        }[how]()


@pytest.mark.parametrize("how", ["linear", "addmm", "bmm", "matmul", "operator"])
def test_every_way_to_write_a_product_is_disturbed_with_its_gradients(how: str) -> None:
    model, x = Products(), torch.randn(2, 3, 4).double().requires_grad_()
    plain = model(x, how)
    (gradient,) = torch.autograd.grad(plain.square().sum(), model.w)
    with Disturbed(0, 2):
        y = model(x, how)
    assert 0 < distance(y, plain) < gamma(20, 2.0**-53) * 100

    y.square().sum().backward()
    assert 0 < distance(model.w.grad, gradient) < 1e-12
    assert model.w.grad.shape == gradient.shape
    assert x.grad.shape == x.shape


def test_a_product_is_moved_by_its_bound_and_no_more() -> None:
    x, w = torch.ones(1, 10).double(), torch.ones(1, 10).double()
    with Disturbed(0, 2):
        y = F.linear(x, w)

    assert abs(float(y) - 10) == pytest.approx(10 * gamma(14, 2.0**-53), rel=0.2)


def test_rounding_on_the_way_is_left_out() -> None:
    x = torch.full((2,), 1 / 3, dtype=torch.float64)
    with Wide():
        assert x.float().dtype == x.to(torch.float32).dtype == x.to(dtype=torch.float32).dtype == torch.float64
        assert F.softmax(x, dim=0, dtype=torch.float32).dtype == torch.float64
        assert x.half().dtype == torch.float16
    with Wide(False):
        assert x.float().dtype == torch.float32


def test_under_autocast_the_bound_is_that_of_bfloat16() -> None:
    x, w = torch.rand(3, 8), torch.rand(5, 8)

    def run() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return {"y": F.linear(x, w)}

    exact, bound = bounds(run, 2, wide=False)
    assert exact["y"].dtype == torch.bfloat16
    assert 2.0**-8 < bound["y"] / largest(exact["y"]) < 0.2
