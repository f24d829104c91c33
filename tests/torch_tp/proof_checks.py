"""Checks of what the proof of `parallelize` must see, on two ranks; `two_ranks` runs them.

Each model is the dense one in outputs and all gradients, in evaluation and in training mode, or stays replicated.
"""

from __future__ import annotations

import copy
import functools
import random
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_checks import P, refusal
from torch import Tensor, nn
from wrap_checks import own

import torch_tp
from torch_tp import ColumnParallelLinear, RowParallelLinear


class Model(nn.Module):
    """Modules, parameters and attributes by name, and a forward that is given."""

    def __init__(self, forward: Any, **held: Any) -> None:
        super().__init__()
        for name, each in held.items():
            setattr(self, name, each)
        self.function = forward

    def forward(self, x: Tensor, flag: bool = False, seen: Any = None) -> Any:
        return self.function(self, x) if seen is None and not flag else self.function(self, x, flag, seen)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linears(**sizes: tuple[int, int]) -> dict[str, nn.Linear]:
    torch.manual_seed(2)
    return {name: nn.Linear(*size, dtype=torch.float64) for name, size in sizes.items()}


def mlp() -> dict[str, nn.Linear]:
    return linears(up=(8, 16), down=(16, 8))


def right(rank: int, whole: nn.Module, *inputs: Tensor, sharded: bool | None = None, **options: Any) -> nn.Module:
    """The sharded copy of a model, once it was seen to be the dense one in both modes."""
    model = torch_tp.parallelize(copy.deepcopy(whole), example=inputs or (draw(3, 8),), **options)
    if sharded is not None:
        assert bool(model.tp_report.sharded_share) == sharded, str(model.tp_report)
    for training in (False, True):
        agree(rank, whole.train(training), model.train(training), *(inputs or (draw(3, 8),)))
    return model


def agree(rank: int, whole: nn.Module, model: nn.Module, *inputs: Tensor, out: Any = lambda y: y) -> None:
    """Outputs and all gradients are those of the dense model."""
    given = [[x.clone().requires_grad_(x.is_floating_point()) for x in inputs] for _ in range(2)]
    results = [out(each(*xs)) for each, xs in zip((whole, model), given, strict=True)]
    near(results[1], results[0], "output")
    if results[0].requires_grad:
        for each in results:
            each.backward(draw(*each.shape, seed=3))
    for mine, theirs in zip(*reversed(given), strict=True):
        near(mine.grad, theirs.grad, "gradient of an input")
    for name, parameter in model.named_parameters():
        gradient = whole.get_parameter(name).grad
        near(parameter.grad, None if gradient is None else own(gradient, parameter, rank), f"gradient of {name}")
        whole.get_parameter(name).grad = parameter.grad = None


def near(found: Tensor | None, expected: Tensor | None, what: str) -> None:
    assert (found is None) == (expected is None), what
    if found is not None and expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


# Other calls than the example.


def check_a_branch_on_the_mode_is_followed_on_both_sides(rank: int) -> None:
    def centred(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        return m.down(h - h.mean(-1, keepdim=True) if m.training else h.relu())

    def clamped(m: Any, x: Tensor) -> Tensor:
        return F.linear(m.up(x).relu(), m.down.weight.clamp(-0.1, 0.1)) if m.training else m.down(m.up(x).relu())

    def auxiliary(m: Any, x: Tensor) -> Any:
        h = m.up(x).relu()
        return (m.down(h) + m.head(h)) if m.training else m.down(h)

    right(rank, Model(centred, **mlp()), sharded=False)
    right(rank, Model(clamped, **mlp()), sharded=False)
    right(rank, Model(auxiliary, **linears(up=(8, 16), down=(16, 8), head=(16, 8))), sharded=True)


def check_a_call_of_another_kind_is_told_once(rank: int) -> None:
    def optional(m: Any, x: Tensor, flag: bool = False, seen: Any = None) -> Tensor:
        h = m.up(x)
        return m.down(h.softmax(-1) if flag else h.relu())

    whole = Model(optional, **mlp())
    model = torch_tp.parallelize(copy.deepcopy(whole), example=draw(3, 8).requires_grad_())
    assert "proven for (x) in evaluation mode, and for (x) in training mode" in str(model.tp_report)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            model(draw(3, 8))
            model(draw(4, 8))
        assert not said, str(said[0].message)
        for _ in range(2):
            model(draw(3, 8), flag=True)
    assert [each.category for each in said] == [torch_tp.UnprovenCallWarning]
    assert "the argument flag was not given" in str(said[0].message)
    strict = torch_tp.parallelize(copy.deepcopy(whole), example=draw(3, 8), strict=True)
    refusal(torch_tp.UnprovenCallError, "the argument flag was not given", lambda: strict(draw(3, 8), flag=True))
    both = torch_tp.parallelize(copy.deepcopy(whole), example=[draw(3, 8), {"x": draw(3, 8), "flag": True}])
    assert not both.tp_report.sharded_share, str(both.tp_report)
    near(both(draw(3, 8), flag=True), whole(draw(3, 8), flag=True), "output")


def check_other_sizes_are_told_where_the_code_decides_by_them(rank: int) -> None:
    def long(m: Any, x: Tensor) -> Tensor:
        return m.down(m.up(x).softmax(-1) if x.shape[0] > 4 else m.up(x).relu())

    model = torch_tp.parallelize(Model(long, **mlp()), example=draw(3, 8))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model(draw(3, 8))
        assert not said
        model(draw(5, 8))
        model(draw(6, 8))
    assert len(said) == 1
    assert "the argument x has other sizes, [5, 8], and the code decides by sizes (proof_checks.py:" in str(
        said[0].message
    )


def check_arguments_are_bound_by_their_names(rank: int) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(draw(8, 16)), nn.Parameter(draw(16, 8))

        def forward(self, value: Tensor) -> Tensor:
            return (value @ self.a).relu() @ self.b

    def call(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.inner(value=x) if m.by_name else m.inner(x)

    whole = Model(call, inner=Inner(), by_name=False, **linears(first=(8, 8)))
    model = right(rank, whole, sharded=True)
    whole.by_name = model.by_name = True
    agree(rank, whole, model, draw(3, 8))


# What sees a value from outside.


class Result:
    def __init__(self, y: Tensor, hidden: Tensor) -> None:
        self.y, self.hidden = y, hidden


def check_what_others_can_see_is_the_dense_value(rank: int) -> None:
    def attribute(m: Any, x: Tensor) -> Tensor:
        m.hidden = m.up(x)
        return m.down(m.hidden.relu())

    def container(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        m.seen.append({"h": [h]})
        return m.down(h.relu())

    def elsewhere(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        SEEN["h"] = h
        return m.down(h.relu())

    for forward, what in (
        (attribute, "attribute hidden of the model"),
        (container, "attribute seen of the model"),
        (elsewhere, "something outside of the model"),
    ):
        model = right(rank, Model(forward, seen=[], **mlp()), sharded=False)
        assert what in str(model.tp_report), str(model.tp_report)
    whole = Model(lambda m, x: Result(m.down(h := m.up(x)), h), **mlp())
    model = torch_tp.parallelize(copy.deepcopy(whole), example=draw(3, 8))
    near(model(draw(3, 8)).hidden, whole(draw(3, 8)).hidden, "hidden")
    SEEN.clear()


SEEN: dict[str, Any] = {}


def check_a_list_that_the_caller_gives(rank: int) -> None:
    def fills(m: Any, x: Tensor, flag: bool, seen: list[Tensor]) -> Tensor:
        seen.append(m.up(x))
        return m.down(seen[-1].relu())

    whole = Model(fills, **mlp())
    model = torch_tp.parallelize(copy.deepcopy(whole), example={"x": draw(3, 8), "seen": []})
    found: list[list[Tensor]] = [[], []]
    for each, seen in zip((model, whole), found, strict=True):
        each(draw(3, 8), seen=seen)
    near(found[0][0], found[1][0], "what a list was filled with")


def check_a_penalty_that_a_module_keeps_counts_once(rank: int) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route, self.a, self.b = (nn.Parameter(draw(*s) / 4) for s in ((16, 4), (16, 32), (32, 16)))

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.softmax(x @ self.route, -1)
            self.penalty = gate.mean(0).square().sum()
            return (torch.relu(x @ self.a) * gate[..., :1]) @ self.b

    routed = Model(lambda m, x: m.last(m.routed(m.first(x))), routed=Routed(), **linears(first=(8, 16), last=(16, 4)))
    model = torch_tp.parallelize(copy.deepcopy(routed), example=draw(3, 8))
    for training in (False, True):
        pair = [each.train(training) for each in (routed, model)]
        agree(rank, *pair, draw(3, 8))
        for each in pair:
            each(draw(3, 8))
            each.routed.penalty.backward()
        near(model.first.weight.grad, own(routed.first.weight.grad, model.first.weight, rank), "gradient of a penalty")
        for each in pair:
            each.zero_grad()


def check_statistics_of_a_shard_in_a_buffer(rank: int) -> None:
    def quantised(m: Any, x: Tensor) -> Tensor:
        h = m.up(x).relu()
        if m.training:
            m.top.copy_(h.detach().max())
        return m.down(h / (1 + m.top))

    whole = Model(quantised, **mlp())
    whole.register_buffer("top", torch.ones((), dtype=torch.float64))
    right(rank, whole, sharded=False)


def check_hooks_see_dense_values_or_keep_a_chain_replicated(rank: int) -> None:
    seen: list[torch.Size] = []

    def backward(whole: nn.Module) -> Any:
        return whole.up.register_full_backward_hook(lambda m, gi, go: seen.append(go[0].shape))

    def forward(whole: nn.Module) -> Any:
        return whole.up.register_forward_hook(lambda m, args, y: setattr(m, "last", y))

    def parameter(whole: nn.Module) -> Any:
        return whole.up.weight.register_hook(lambda g: seen.append(g.shape))

    def accumulated(whole: nn.Module) -> Any:
        return whole.up.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))

    for register in (backward, forward, parameter, accumulated):
        seen.clear()
        whole = Model(lambda m, x: m.down(m.up(x).relu()), **mlp())
        handle = register(whole)
        model = torch_tp.parallelize(whole, example=draw(3, 8))
        assert not model.tp_report.sharded_share, f"{register.__name__}\n{model.tp_report}"
        model(draw(3, 8)).sum().backward()
        assert all(shape[-1] in (8, 16) and shape[0] in (3, 16) for shape in seen)
        count = len(seen)
        handle.remove()
        model(draw(3, 8)).sum().backward()
        assert len(seen) == count

    def on_a_value(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * g.abs().sum())
        return m.down(h.relu())

    right(rank, Model(on_a_value, **mlp()), sharded=False)


# What a run computes with.


def check_offsets_and_sizes_are_compared(rank: int) -> None:
    class Offset(nn.Module):
        """The number of heads is also where the positions start."""

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.positions = 4, nn.Parameter(draw(20, 8))
            for name, each in linears(q=(8, 8), k=(8, 8), v=(8, 8), o=(8, 8)).items():
                setattr(self, name, each)

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            x = x + self.positions[self.heads : self.heads + t]
            q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    right(rank, Offset(), draw(2, 5, 8))

    def padded(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        return m.down(h.relu()) + F.pad(x, (h.shape[-1] // 16, 0))[..., :8]

    def strided(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        return m.down(h.relu()) + x.flatten().as_strided((3, 8), (8, 1), 0 * h.shape[-1] + h.shape[-1] // 32)

    right(rank, Model(padded, **mlp()))
    right(rank, Model(strided, **mlp()))


# Nothing of a run without data stays.


@functools.lru_cache
def steps(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


class Remembers(nn.Module):
    by_class: dict[str, Tensor] = {}  # noqa: RUF012 - a cache of the class is what is looked at

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = mlp().values()
        self.values: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu())
        self.values.append(y.sum())
        SEEN["y"] = y
        if "scale" not in self.by_class:
            self.by_class["scale"] = torch.full((8,), 2.0, dtype=torch.float64)
        return y * self.by_class["scale"] + steps(8) + random.random() * 0


def check_nothing_of_a_run_without_data_stays(rank: int) -> None:
    Remembers.by_class.clear()
    SEEN.clear()
    steps.cache_clear()
    random.seed(3)
    state = random.getstate()
    model = torch_tp.parallelize(Remembers(), example=draw(3, 8))
    assert random.getstate() == state
    assert not model.values
    assert not SEEN
    assert not Remembers.by_class
    fresh = Remembers()
    assert type(fresh(draw(3, 8))) is Tensor
    assert type(model(draw(3, 8))) is Tensor
    assert all(type(each) is Tensor for each in (*Remembers.by_class.values(), steps(8)))
    SEEN.clear()


def check_the_root_is_replaced_in_place(rank: int) -> None:
    attention = nn.MultiheadAttention(8, 4, dtype=torch.float64)
    x = draw(5, 1, 8)
    torch.manual_seed(0)
    attention._reset_parameters()
    expected = attention(x, x, x)[0].detach()
    twin = torch_tp.parallelize(attention, example=(x, x, x))
    assert twin is attention
    assert sum(p.numel() for p in twin.parameters()) < 288
    near(twin(x, x, x)[0].detach(), expected, "output")
    torch.manual_seed(0)
    linear = torch_tp.parallelize(nn.Linear(8, 16), plan={"*": "colwise_gather_output"})
    assert type(linear) is ColumnParallelLinear
    assert linear.weight.shape == (8, 8)


# What needs not be replicated.


class Headed(nn.Module):
    """Attention as small repositories write it: the width comes from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = linears(qkv=(16, 48), out=(16, 16)).values()
        self.n_head, self.n_embd = 4, 16

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(self.n_embd, 2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(B, T, C))


class Fused(nn.Module):
    """One projection for query, key and value, `[..., 3, heads, size]`."""

    def __init__(self, unbinds: bool) -> None:
        super().__init__()
        self.qkv, self.out = linears(qkv=(16, 48), out=(16, 16)).values()
        self.heads, self.unbinds = 4, unbinds

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, -1)
        q, k, v = qkv.transpose(1, 3).unbind(2) if self.unbinds else qkv.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two key and value heads for four query heads, in the call that repeats them itself."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        sizes = {"q": (16, 16), "k": (16, 4 * kv_heads), "v": (16, 4 * kv_heads), "o": (16, 16)}
        self.q, self.k, self.v, self.o = linears(**sizes).values()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


def check_attention_as_people_write_it_is_sharded(rank: int) -> None:
    for whole in (Headed(), Fused(True), Fused(False), Grouped(2), Grouped(1)):
        model = right(rank, whole, draw(2, 5, 16), sharded=True)
        assert model.tp_report.sharded_share > 0.9, f"{whole}\n{model.tp_report}"
        agree(rank, whole, model, draw(3, 7, 16))


def check_images_are_sharded_by_channels(rank: int) -> None:
    torch.manual_seed(4)
    whole = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(2)
    ).double()
    model = torch_tp.parallelize(copy.deepcopy(whole), example=draw(2, 4, 6, 6))
    agree(rank, whole.eval(), model.eval(), draw(2, 4, 6, 6))
    assert model.tp_report.sharded_share > 0.5, str(model.tp_report)


def check_a_forward_in_inference_mode_is_followed(rank: int) -> None:
    class Serves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = mlp().values()

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu())

    model = torch_tp.parallelize(copy.deepcopy(Serves()), example=draw(3, 8))
    assert type(model.up) is ColumnParallelLinear
    assert type(model.down) is RowParallelLinear
    near(model(draw(3, 8)), Serves()(draw(3, 8)), "output")


def check_linears_of_one_input_share_an_all_reduce(rank: int) -> None:
    calls: list[int] = []
    was = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return was(*args, **kwargs)

    def gated(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.down(m.up(x).relu() * m.gate(x))

    whole = Model(gated, **linears(first=(8, 8), up=(8, 16), gate=(8, 16), down=(16, 8)))
    model = right(rank, whole, sharded=True)
    assert "all-reduce of the input's gradient, with gate" in str(model.tp_report), str(model.tp_report)
    assert model.up.shared_input is model.gate.shared_input is not None
    assert P == 2
    dist.all_reduce = counted
    try:
        model(draw(3, 8)).sum().backward()
    finally:
        dist.all_reduce = was
    assert len(calls) == 2, len(calls)  # of the output, and of the input's gradient


def check_a_model_is_exported_with_gradients(rank: int) -> None:
    whole = Model(lambda m, x: m.down(m.up(x).relu()), **mlp())
    model = torch_tp.parallelize(copy.deepcopy(whole), example=draw(3, 8))
    program = torch.export.export(model, (draw(3, 8),))
    near(program.module()(draw(3, 8)), whole(draw(3, 8)), "output")


def check_transforms_of_torch_func_are_refused_by_name(rank: int) -> None:
    model = torch_tp.parallelize(Model(lambda m, x: m.down(m.up(x).relu()), **mlp()), example=draw(3, 8))
    for transform in (torch.func.grad, torch.func.vmap):
        of = transform(lambda x: model(x).sum())
        refusal(RuntimeError, r"ColumnParallelLinear: a transform of torch\.func", lambda of=of: of(draw(3, 8)))


# What an adversary found.


class Raw(nn.Module):
    """Two weights of its own, and a forward that is given."""

    def __init__(self, forward: Any, **held: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(draw(8, 16)), nn.Parameter(draw(16, 8))
        for name, each in held.items():
            setattr(self, name, each)
        self.register_buffer("offset", draw(8, seed=5))
        self.function = forward

    def forward(self, *values: Tensor) -> Any:
        return self.function(self, *values)


def check_what_is_added_to_a_partial_sum_is_added_once(rank: int) -> None:
    right(rank, Raw(lambda m, x: (x @ m.a).relu() @ m.b + m.offset))
    vector = nn.Parameter(draw(8, seed=6))
    right(rank, Raw(lambda m, x: ((x * (m.c > 0)) @ m.a).relu() @ m.b + m.c, c=vector))
    right(rank, Raw(lambda m, x: (x @ m.a).relu() @ m.b + m.c, c=vector), sharded=True)
    whole = Model(
        lambda m, x: m.norm(m.down(m.up(x).relu())),
        norm=nn.LayerNorm(8, dtype=torch.float64),
        up=Turned(8, 16),
        down=Turned(16, 8),
    )
    whole.down.bias = whole.norm.bias
    right(rank, whole)


class Turned(nn.Module):
    """A linear with its weight the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(draw(inputs, outputs)), nn.Parameter(draw(outputs, seed=7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def check_one_tensor_under_two_names_and_in_two_results(rank: int) -> None:
    first = linears(first=(8, 8))
    same = Raw(lambda m, q, kv: ((q @ m.a) * (kv @ m.a)) @ m.b)
    right(rank, Model(lambda m, x: m.raw(m.first(x), m.first(x)), raw=same, **first), sharded=True)
    right(rank, Model(lambda m, x: (lambda h: m.raw(h, h))(m.first(x)), raw=same, **first), sharded=True)
    twice = Raw(lambda m, x: (lambda y: (y, y))((x @ m.a).relu() @ m.b))
    right(rank, Model(lambda m, x: m.raw(x)[0] + m.raw(x)[1].relu(), raw=twice), sharded=True)


def check_masks_and_parameters_of_attention(rank: int) -> None:
    def masked(m: Any, x: Tensor) -> Tensor:
        return m.attention(x, x, x, attn_mask=m.mask)[0]

    for shape in ((3, 3), (8, 3, 3)):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)
        mask = nn.Parameter(draw(*shape))
        right(rank, Model(masked, attention=attention, mask=mask), draw(2, 3, 8), sharded=True)
    outside = Model(
        lambda m, x: m.attention(x, x, x)[0] + x @ m.attention.in_proj_weight[:8].t(),
        attention=nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64),
    )
    torch.manual_seed(0)
    outside.attention._reset_parameters()
    right(rank, outside, draw(2, 3, 8), sharded=False)


def check_parameters_and_modules_that_others_hold(rank: int) -> None:
    def steps(m: Any, x: Tensor) -> Tensor:
        return m.steps[1](m.steps[0](x).relu())

    whole = Model(steps, **mlp())
    whole.steps = [whole.up, whole.down]
    right(rank, whole)
    penalty = Model(lambda m, x: m.down(m.up(x).relu()) + m.held[0].square().sum(), **mlp())
    penalty.held = [penalty.up.weight]
    right(rank, penalty, sharded=False)
    closed = Model(lambda m, x: m.down(m.up(x).relu()), **mlp())
    weight = closed.up.weight
    closed.function = lambda m, x: m.down(m.up(x).relu()) + (x @ weight.t()).sum()
    model = torch_tp.parallelize(closed, example=draw(3, 8))
    assert not model.tp_report.sharded_share
    returned = torch_tp.parallelize(Model(lambda m, x: (m.down(m.up(x)), m.up.weight), **mlp()), example=draw(3, 8))
    assert returned(draw(3, 8))[1].shape == (16, 8)


def check_numbers_that_leave_the_model(rank: int) -> None:
    def attribute(m: Any, x: Tensor) -> Tensor:
        h = m.up(x)
        m.width = h.shape[-1]
        return m.down(h.relu())

    model = torch_tp.parallelize(Model(attribute, **mlp()), example=draw(3, 8))
    model(draw(3, 8))
    assert model.width == 16
    model = torch_tp.parallelize(Model(lambda m, x: (m.down(h := m.up(x)), h.shape[-1]), **mlp()), example=draw(3, 8))
    assert model(draw(3, 8))[1] == 16
    many = Raw(lambda m, x: (h := x @ m.a) @ m.b * torch.tensor([1.0 / h.shape[-1]] * 70000).double()[0])
    right(rank, many)


def check_batches_that_are_folded_into_heads(rank: int) -> None:
    def folded(m: Any, x: Tensor) -> Tensor:
        B = x.shape[0]
        return (x @ m.a).reshape(B * 4, -1).softmax(-1).reshape(B, -1) @ m.b

    whole = Raw(folded)
    model = right(rank, whole)
    agree(rank, whole, model, draw(5, 8))
    narrow = linears(up=(8, 32), down=(16, 8))
    right(rank, Model(lambda m, x: m.down((h := m.up(x)).narrow(1, 0, 16) * h.narrow(1, 16, 16)), **narrow))


def check_complex_parameters_and_roundings(rank: int) -> None:
    whole = Raw(lambda m, x: (x.to(torch.complex128) @ m.z).abs() @ m.b)
    whole.z = nn.Parameter(torch.complex(draw(8, 16), draw(8, 16, seed=9)))
    right(rank, whole)
    right(rank, Raw(lambda m, x: ((x @ m.a).relu() @ m.b).half().double()))
