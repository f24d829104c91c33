"""The checks of `verify_checks`, each an item of its own, the ranks started once; and how bounds are derived."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import two_ranks
import verify_checks

from torch_tp.models import verification
from torch_tp.models.verification import deviation

CHECKS = sorted(name for name in vars(verify_checks) if name.startswith("check_"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return two_ranks.run(CHECKS, tmp_path_factory.mktemp("ranks"), "verify_checks")


@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(name: str, told: dict[str, list[str]]) -> None:
    failed = {f"rank {rank}": text for rank, text in enumerate(told[name]) if text}

    assert not failed, "\n".join(f"{rank}\n{text}" for rank, text in failed.items())


def test_a_deviation_is_that_of_the_worst_element() -> None:
    inf, nan = math.inf, math.nan

    assert deviation(torch.tensor([1.0, 5.0]), torch.tensor([1.5, 3.0])) == 2.0
    assert deviation(torch.tensor([inf, -inf, nan]), torch.tensor([inf, -inf, nan])) == 0.0
    assert deviation(torch.tensor([inf]), torch.tensor([-inf])) == inf
    assert deviation(torch.tensor([nan]), torch.tensor([0.0])) == inf
    assert deviation(torch.empty(0), torch.empty(0)) == 0.0
    # In bfloat16 itself the difference would round to 256.
    assert deviation(torch.tensor([257.0]).bfloat16(), torch.tensor([-1.0]).bfloat16()) == 257.0


@pytest.mark.parametrize(
    ("dtype", "terms", "expected"),
    [
        (torch.float64, 100, (100 + 4) * 2.0**-53),
        (torch.float32, 100, (100 + 4) * 2.0**-24),
        (torch.bfloat16, 100, 100 * 2.0**-24 + 4 * 2.0**-8),
        (torch.float16, 100, 100 * 2.0**-24 + 4 * 2.0**-11),
    ],
)
def test_narrow_dtypes_accumulate_in_float32(dtype: torch.dtype, terms: int, expected: float) -> None:
    found = verification._relative_error(terms, 2, dtype)

    assert expected <= found <= expected * 1.02


def test_every_sum_of_products_is_off_by_its_error_and_nothing_else_is() -> None:
    linear, x = nn.Linear(3, 5), torch.randn(2, 3, requires_grad=True)
    y = linear(x)
    wanted = torch.autograd.grad(y, [x, linear.weight, linear.bias], torch.ones_like(y))
    with verification._Rounding(2, 0):
        other = linear(x)
        found = torch.autograd.grad(other, [x, linear.weight, linear.bias], torch.ones_like(y))
        assert torch.equal(torch.relu(x), x.relu())

    magnitude = x.abs() @ linear.weight.abs().T + linear.bias.abs()
    error = magnitude.double() * verification._relative_error(4, 2, torch.float32)
    off = (other.double() - y.double()).abs()
    # Twice the exact and the perturbed value are rounded to float32.
    assert ((off - error).abs() <= 2 * 2.0**-24 * y.abs().double() + 1e-12).all()
    assert (off > 0).all()
    for one, another in zip(found, wanted, strict=True):
        assert (one != another).all()


def test_a_bound_that_is_infinite_is_refused() -> None:
    dense = verification._Run({"output 0": torch.ones(1), "gradient of a": torch.ones(1)})

    assert verification._senseless(dense, verification._Bounds({"output 0": 1.0, "gradient of a": 1.0}, {})) == ""
    reason = verification._senseless(dense, verification._Bounds({"output 0": 1.0, "gradient of a": math.inf}, {}))
    assert reason == "the gradient of a of the dense model is not finite; give another example="
