"""What a forward writes anywhere is restored: in place, by identity, in order, bit for bit."""

from __future__ import annotations

import functools
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_tp.models import restoring
from torch_tp.models.caches import clear_caches_of
from torch_tp.models.snapshot import Snapshot

TABLE: dict[str, Any] = {"first": [1]}
CALLS = 0
LAST: Tensor | None = None


@dataclass
class Memory:
    size: int = 0
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    parts: list[Any]


class Memories:
    entries: dict[str, int] = {}  # noqa: RUF012 - a cache as small repositories write it


SHARED = Memory()


class Base(nn.Module):
    count = 0
    seen: list[Any] = []  # noqa: RUF012


class Model(Base):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros(2))
        self.items: Any = [1, [2], {"three": [3]}]
        self.config: Any = SimpleNamespace(size=1, inner=Memory(1, [deque([1], maxlen=2), {4, 5}]))


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_attributes_children_hooks_and_modes_are_restored() -> None:
    m = model()
    up, bias, steps, names = m.up, m.up.bias, m.steps, list(vars(m))
    order = list(m._modules), list(m.up._parameters)
    hook = m.register_forward_hook(lambda *_: None)
    m.down.eval()
    snapshot = Snapshot(m, values=False)

    m.hidden = torch.ones(1)
    del m.items
    hook.remove()
    m.down.register_forward_pre_hook(lambda *_: None)
    m.eval()
    m.up = nn.Linear(1, 1)
    del m.down
    m.down = nn.Linear(1, 1)
    up.bias = None
    m.steps = None
    m.extra = nn.Parameter(torch.ones(1))
    snapshot.restore()

    assert list(vars(m)) == names
    assert (m.up, m.up.bias, m.steps) == (up, bias, steps)
    assert (list(m._modules), list(m.up._parameters)) == order
    assert len(m._forward_hooks) == 1
    assert not m.down._forward_pre_hooks
    assert (m.training, m.up.training, m.down.training) == (True, True, False)
    assert [name for name, _ in m.named_parameters()] == ["up.weight", "up.bias", "down.weight", "down.bias"]


def test_a_lazy_module_is_lazy_again() -> None:
    m = nn.Sequential(nn.Linear(2, 3))
    snapshot = Snapshot(m, values=False)
    m[0].__class__ = type("Other", (nn.Linear,), {})

    snapshot.restore()

    assert type(m[0]) is nn.Linear


def containers() -> list[tuple[Any, Callable[[Any], Any]]]:
    inner: list[int] = [1]
    return [
        ([1, 2], lambda x: x.append(3)),
        ([inner, (inner, {"a": inner})], lambda x: x[1][1]["a"].clear()),
        ({"a": 1, "b": 2}, lambda x: (x.pop("a"), x.update(a=1))),
        (OrderedDict(a=1, b=2), lambda x: x.move_to_end("a")),
        (defaultdict(list, a=[1]), lambda x: x["b"].append(1)),
        ({1, 2}, lambda x: (x.add(3), x.discard(1))),
        (deque([1, 2], maxlen=2), lambda x: x.append(3)),
        (SimpleNamespace(a=1), lambda x: setattr(x, "b", 2)),
        (Memory(1, [1]), lambda x: (x.parts.append(2), setattr(x, "size", 2))),
        (Memory(1, [Memory(2, [{}])]), lambda x: x.parts[0].parts[0].update(a=1)),
        (Slotted([1]), lambda x: x.parts.append(2)),
        (Slotted([1]), lambda x: object.__setattr__(x, "parts", [1])),
        (SimpleNamespace(a=1), lambda x: vars(x).clear()),
        (Memory(1), lambda x: object.__setattr__(x, "__dict__", {"size": 1, "parts": []})),
    ]


def inside(each: Any) -> Any:
    """The items of a container, nested, with the identity of each."""
    if isinstance(each, dict):
        return id(each), [(key, inside(value)) for key, value in each.items()]
    if isinstance(each, (list, tuple, deque, set)):
        return id(each), [inside(value) for value in each]
    if isinstance(each, Slotted):
        return id(each), inside(each.parts)
    return id(each), inside(vars(each)) if hasattr(each, "__dict__") else each


@pytest.mark.parametrize("number", range(len(containers())))
def test_containers_are_restored_in_place(number: int) -> None:
    held, change = containers()[number]
    m = model()
    m.config.inner.parts = [held]
    before = inside(held)
    snapshot = Snapshot(m, values=False)

    change(held)
    assert inside(held) != before
    m.config.inner.parts = []
    snapshot.restore()

    assert m.config.inner.parts[0] is held
    assert inside(held) == before


def test_equal_items_of_other_identity_are_replaced() -> None:
    m, one, other = model(), [1], [1]
    m.items, m.config = [one], {"a": one}
    snapshot = Snapshot(m, values=False)
    m.items[0], m.config["a"] = other, other

    snapshot.restore()

    assert m.items[0] is one
    assert m.config["a"] is one


def test_cycles_and_other_modules_end_the_walk() -> None:
    m, other = model(), model()
    m.items = [other]
    m.items.append(m.items)
    m.config.inner.parent = m.config
    snapshot = Snapshot(m, values=False)
    m.items.append(1)
    other.items.append(1)

    snapshot.restore()

    assert len(m.items) == 2
    assert other.items[-1] == 1


def test_class_attributes_and_globals_are_restored() -> None:
    global CALLS, LAST
    m = model()
    snapshot = Snapshot(m, values=True)
    Base.seen.append(1)
    Model.count = 3
    Model.later = torch.ones(1)
    Memories.entries["a"] = 1
    TABLE["first"].append(2)
    TABLE["second"] = torch.ones(1)
    SHARED.parts.append(1)
    CALLS, LAST = 1, torch.ones(1)
    globals()["NEW"] = 1
    globals()["imported_by_a_forward"] = functools

    snapshot.restore()

    assert (Base.seen, Base.count, "count" in vars(Model), hasattr(Model, "later")) == ([], 0, False, False)
    assert (Memories.entries, TABLE, SHARED, CALLS, LAST) == ({}, {"first": [1]}, Memory(), 0, None)
    assert "NEW" not in globals()
    assert globals().pop("imported_by_a_forward") is functools


def test_classes_that_no_global_names_are_restored() -> None:
    class Local(nn.Module):
        cache: dict[str, int] = {}  # noqa: RUF012

    snapshot = Snapshot(Local(), values=False)
    Local.cache["a"] = 1
    Local.size = 1

    snapshot.restore()

    assert (Local.cache, hasattr(Local, "size")) == ({}, False)


def test_values_of_global_tensors_are_not_copied() -> None:
    """They may be a data set; the names of globals are restored all the same."""
    TABLE["data"] = torch.zeros(2)
    snapshot = Snapshot(model(), values=True)
    TABLE["data"].fill_(1)

    snapshot.restore()

    assert TABLE.pop("data").tolist() == [1, 1]


def test_random_states_are_restored() -> None:
    m = model()
    m.generator = torch.Generator().manual_seed(3)
    m.config.python = random.Random(3)

    def draw() -> list[float]:
        drawn = [random.random(), np.random.rand(), m.config.python.random()]
        return [*drawn, torch.rand(()).item(), torch.rand((), generator=m.generator).item()]

    snapshot = Snapshot(m, values=False)
    first = draw()
    snapshot.restore()

    assert draw() == first


def test_values_gradients_and_requires_grad_are_restored() -> None:
    m = model()
    m.up.bias.requires_grad_(False)
    m.up.weight.grad = torch.full((4, 3), 2.0)
    m.cache = torch.zeros(2)
    gradient, data, ran = m.up.weight.grad, m.down.weight.data_ptr(), list[int]()
    m.steps.fill_(torch.nan)
    values = {name: each.clone() for name, each in m.state_dict().items()}
    snapshot = Snapshot(m, values=True)

    m.down.weight.register_hook(lambda gradient: gradient)
    m.down.weight.register_post_accumulate_grad_hook(lambda _: ran.append(1))
    m.down(m.up(torch.ones(2, 3))).sum().backward()
    m.steps.copy_(m.up.weight[0, :2])
    assert not m.steps.is_leaf
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.add_(1)
            parameter.requires_grad_(not parameter.requires_grad)
    m.up.weight.grad.zero_()
    m.down.bias.grad = None
    m.down.weight.data = torch.zeros(4, 4)
    m.cache.fill_(1)
    m.up.weight.placement = 1
    snapshot.restore()

    for name, each in m.state_dict().items():
        assert torch.equal(each.view(torch.int32), values[name].view(torch.int32)), name
    assert m.up.weight.grad is gradient
    assert torch.equal(gradient, torch.full((4, 3), 2.0))
    assert m.down.weight.data_ptr() == data
    assert [p.requires_grad for p in m.parameters()] == [True, False, True, True]
    assert [p.grad is None for p in m.parameters()] == [False, True, True, True]
    assert (m.steps.requires_grad, m.steps.is_leaf) == (False, True)
    assert torch.equal(m.cache, torch.zeros(2))
    assert not hasattr(m.up.weight, "placement")
    assert not m.down.weight._backward_hooks
    assert len(ran) == 1
    m.down(torch.ones(2, 4)).sum().backward()
    assert len(ran) == 1


def test_without_values_the_memory_of_tensors_is_left_alone() -> None:
    m = model()
    snapshot = Snapshot(m, values=False)
    with torch.no_grad():
        m.steps.fill_(1)

    snapshot.restore()

    assert torch.equal(m.steps, torch.ones(2))


def test_tied_parameters_views_and_expanded_buffers_are_restored() -> None:
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[1].weight = m[0].weight
    m.register_buffer("flat", torch.arange(6.0))
    m.register_buffer("part", m.flat[2:].view(2, 2).t())
    m.register_buffer("wide", torch.zeros(1).expand(3))
    before = {name: each.clone() for name, each in m.state_dict().items()}
    strides = m.part.stride()
    snapshot = Snapshot(m, values=True)
    with torch.no_grad():
        m[1].weight.zero_()
        m.part.zero_()
        m.wide[0] = 1
    m[1].weight = nn.Parameter(torch.zeros(3, 3))

    snapshot.restore()

    assert m[1].weight is m[0].weight
    assert m.part.stride() == strides
    assert all(torch.equal(each, before[name]) for name, each in m.state_dict().items())


def test_memory_that_a_run_frees_is_there_again() -> None:
    m = model()
    values = m.up.weight.tolist()
    snapshot = Snapshot(m, values=True)
    m.up.weight.untyped_storage().resize_(0)

    snapshot.restore()

    assert m.up.weight.tolist() == values


def test_arguments_are_covered_on_request() -> None:
    m, cache = model(), Memory(0, [torch.zeros(2)])
    snapshot = Snapshot(m, values=True, also=((cache,), {}))
    cache.parts[0].fill_(1)
    cache.parts.append(1)

    snapshot.restore()

    assert len(cache.parts) == 1
    assert torch.equal(cache.parts[0], torch.zeros(2))


def changed(m: Model) -> None:
    m.items.append(1)
    m.config.inner.parts.clear()
    m.extra = 1
    with torch.no_grad():
        m.up.weight.zero_()
    TABLE["second"] = 2
    Model.count = 4
    torch.rand(3)


def state(m: Model) -> list[Any]:
    return [
        inside(m.items),
        inside(m.config),
        list(vars(m)),
        m.up.weight.tolist(),
        inside(TABLE),
        Model.count,
        torch.get_rng_state().tolist(),
    ]


def test_restoring_twice_is_restoring_once() -> None:
    m = model()
    before = state(m)
    snapshot = Snapshot(m, values=True)
    for _ in range(2):
        changed(m)
        snapshot.restore()
        snapshot.restore()
        assert state(m) == before


def test_an_interrupt_at_any_moment_leaves_nothing_half_restored() -> None:
    """Interrupts at every line of the module, one after the other."""
    m = model()
    before = state(m)
    snapshot = Snapshot(m, values=True)
    files, lines = {sys.modules[Snapshot.__module__].__file__, restoring.__file__}, 1
    while True:
        changed(m)
        left = [lines]

        def trace(frame: Any, event: str, _: Any, left: list[int] = left) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            snapshot.restore()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        if state(m) != before:  # it came before or after everything that restores
            snapshot.restore()
        assert state(m) == before, lines
        if left[0] > 0:
            break
        lines += 1 if lines < 60 else 37
    assert lines > 200


def test_an_object_that_refuses_does_not_stop_the_rest() -> None:
    m = model()
    m.config = Slotted([1])
    generator = random.Random(1)
    m.generator = generator
    before = state_without_config(m)
    snapshot = Snapshot(m, values=True)
    generator.setstate = None  # type: ignore[method-assign, assignment]
    m.items.append(1)
    snapshot._undo.insert(0, lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        snapshot.restore()

    assert state_without_config(m) == before


def state_without_config(m: Model) -> list[Any]:
    return [inside(m.items), m.up.weight.tolist()]


# -- caches of functools


@functools.lru_cache
def positions(size: int) -> Tensor:
    return torch.arange(size)


@functools.cache
def nested(size: int) -> dict[str, Any]:
    return {"a": [torch.zeros(size), (torch.ones(size),)]}


@functools.lru_cache
def untouched(size: int) -> Tensor:
    return torch.arange(size)


def test_caches_that_hold_the_tensors_are_emptied() -> None:
    untouched(3)
    with FakeTensorMode():
        fakes = [positions(3), nested(2)["a"][1][0]]
    positions(4)

    assert clear_caches_of(fakes) == []
    assert (positions.cache_info().currsize, nested.cache_info().currsize) == (0, 0)
    assert untouched.cache_info().currsize == 1
    assert type(positions(3)) is Tensor


def test_other_holders_are_described() -> None:
    def fakes() -> list[Tensor]:
        with FakeTensorMode():
            made = [torch.zeros(1) for _ in range(4)]
        TABLE["fake"] = {"deep": [made[0]]}
        Model.count = made[1]  # type: ignore[assignment]
        m.hidden = made[2]
        globals()["LAST"] = made[3]
        return made

    m = model()
    snapshot = Snapshot(m, values=False)
    found = clear_caches_of(fakes())
    snapshot.restore()

    assert sorted(found) == [
        "item 0 of a list, key 'deep' of a dict, key 'fake' of a dict, the global TABLE of test_snapshot",
        "the attribute hidden of a Model",
        "the class attribute count of Model",
        "the global LAST of test_snapshot",
    ]


def test_nothing_to_do_costs_nothing() -> None:
    assert clear_caches_of([]) == []
