"""The names of torch that it does not promise are there, each by its name."""

from __future__ import annotations

import logging

import pytest
import torch

from torch_tp import internals


@pytest.mark.parametrize("name", internals.__all__)
def test_a_name_that_torch_does_not_promise_is_there(name: str) -> None:
    assert getattr(internals, name) is not None


def test_what_the_names_are_for() -> None:
    x = torch.zeros(2, 3)

    assert internals.memory_of(x) == internals.memory_of(x.view(6)) != internals.memory_of(x.clone())
    assert internals.LINEAR(x, torch.ones(1, 3)).shape == (2, 1)
    assert internals.FAKE_TENSOR_LOGGER in logging.root.manager.loggerDict
    assert not internals.transforms_active()
    seen: list[bool] = []
    torch.func.grad(lambda y: (seen.append(internals.transforms_active()), y.sum())[1])(x)
    assert seen == [True]
    with internals.FakeTensorMode(), internals.without_modes():
        assert type(torch.zeros(2)) is torch.Tensor


def test_nothing_else_of_torch_that_is_private_is_used() -> None:
    from pathlib import Path

    folder = Path(internals.__file__).parent
    private = ("torch._C", "torch._subclasses", "torch.utils._", "_cdata", "torch._dynamo", "torch._functorch")
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if path.name != "internals.py" and any(name in path.read_text() for name in private)
    }

    assert not found
