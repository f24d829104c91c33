"""Checks of models that `parallelize` cuts, on two ranks; `two_ranks` runs them.

Values are small whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

import copy
import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rank_checks import P, dense, integers, refusal, same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_tp
from torch_tp import ColumnParallelLinear, DistributedModelWrapper, RowParallelLinear


def own(whole: Tensor, parameter: Tensor, rank: int) -> Tensor:
    """What a rank holds of a whole parameter or gradient."""
    placement = getattr(parameter, "placement", None)
    if not isinstance(placement, torch_tp.Shard):
        return whole
    held = placement.ranges(whole.shape[placement.dim], P, rank)
    return torch.cat([whole.narrow(placement.dim, part.start, len(part)) for part in held], placement.dim)


def compared(rank: int, whole: nn.Module, *inputs: Tensor, expected: dict[str, str] | None = None) -> nn.Module:
    """The cut copy of a model, once its output and all gradients were seen to be the dense ones."""
    model = torch_tp.parallelize(copy.deepcopy(whole), example=inputs)
    if expected is not None:
        styles = {entry.name: entry.style for entry in model.tp_report.entries}
        assert styles == expected, f"{styles}\n{model.tp_report}"
    agree(rank, whole, model, *inputs)
    return model


def agree(rank: int, whole: nn.Module, model: nn.Module, *inputs: Tensor) -> None:
    mine, theirs = ([x.clone().requires_grad_(x.is_floating_point()) for x in inputs] for _ in range(2))
    y, expected = model(*mine), whole(*theirs)
    same(expected.detach(), y.detach())
    upstream = integers(*y.shape).to(y.dtype)
    y.backward(upstream)
    expected.backward(upstream)
    for a, b in zip(theirs, mine, strict=True):
        if a.grad is not None:
            same(a.grad, b.grad)
    for name, parameter in model.named_parameters():
        gradient = whole.get_parameter(name).grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            same(own(gradient, parameter, rank), parameter.grad)
        whole.get_parameter(name).grad = parameter.grad = None


class Block(nn.Module):
    """Attention without its softmax and a gated MLP, so that whole numbers stay whole, with residuals."""

    def __init__(self, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.first, self.second, self.third = dense(8, 8), dense(8, 2 * kv_heads), dense(8, 2 * kv_heads)
        self.fourth, self.both, self.last, self.score = dense(8, 8), dense(8, 16), dense(8, 8), dense(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.first, self.second, self.third))
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        x = x + self.fourth(((q @ k.mT) @ v).transpose(1, 2).flatten(2))
        gate, up = self.both(x).chunk(2, -1)
        return self.score(x + self.last(torch.relu(gate) * up))


def check_a_parallelized_model_is_the_dense_one(rank: int) -> None:
    whole = Block().double()
    model = torch_tp.parallelize(copy.deepcopy(whole))
    styles = {entry.name: entry.style for entry in model.tp_report.entries}
    assert styles == {
        **dict.fromkeys(("first", "second", "third"), "column"),
        **dict.fromkeys(("fourth", "last"), "row"),
        "both": "merged column",
        "score": "replicated",
    }, styles
    x, alike = (integers(2, 3, 8).double().requires_grad_() for _ in range(2))
    y, expected = model(x), whole(alike)
    same(expected.detach(), y.detach())
    y.backward(integers(2, 3, 3).double())
    expected.backward(integers(2, 3, 3).double())
    same(alike.grad, x.grad)
    for name, parameter in model.named_parameters():
        same(own(whole.get_parameter(name).grad, parameter, rank), parameter.grad)


def check_what_a_wrap_keeps(rank: int) -> None:
    called: list[str] = []
    twice, tied = dense(8, 8), dense(8, 8)
    model = nn.Sequential(
        twice, nn.ReLU(), tied, nn.ReLU(), twice, nn.ReLU(), tied, nn.LayerNorm(8), dense(8, 8)
    ).eval()
    twice.weight.requires_grad_(False)
    twice.register_forward_hook(lambda *_: called.append("twice"))
    torch_tp.parallelize(model)
    called.clear()  # hooks run while the model is followed, too
    assert isinstance(model[0], ColumnParallelLinear)
    assert model[0] is model[4]
    assert model[2] is model[6]
    assert (model[0].weight.requires_grad, model[0].bias.requires_grad, model[0].training) == (False, True, False)
    model(integers(3, 8))
    assert called == ["twice", "twice"]
    refusal(ValueError, "is parallel already", lambda: torch_tp.parallelize(nn.Sequential(model)))


def check_a_plan_is_taken_at_its_word(rank: int) -> None:
    model = nn.Sequential(dense(4, 6), nn.ReLU(), dense(6, 4), dense(4, 4))
    torch_tp.parallelize(model, plan={"0": "column", "2": "row", "[3]": "replicated"})
    assert [type(layer) for layer in model] == [ColumnParallelLinear, nn.ReLU, RowParallelLinear, nn.Linear]
    assert "the plan does not shard it" in str(model.tp_report)


def check_a_wrap_that_fails_leaves_the_model_as_it_was(rank: int) -> None:
    model = nn.Sequential(dense(4, 6), nn.ReLU(), dense(6, 4), dense(4, 3))
    held = {name: id(each) for name, each in [*model.named_modules(), *model.named_parameters()]}
    for plan, text in (
        ({"0": "column", "nothing*": "row"}, r"the pattern 'nothing\*' of the plan matches no nn\.Linear"),
        ({"0": "column", "*": "row"}, r"the patterns '0' and '\*' of the plan disagree about 0: column and row"),
        ({"0": "sideways"}, r"plan\['0'\] = 'sideways'; it must be one of column, colwise, row"),
        ({"0": "column", "3": "column"}, r"3 as column: out_features = 3 cannot be cut into P = 2 equal shards"),
    ):
        refusal(ValueError, text, lambda plan=plan: torch_tp.parallelize(model, plan=plan))
    torch.manual_seed(0)
    alone = nn.Conv1d(2, 2, 1)
    refusal(ValueError, "cannot be followed without data; give example=", lambda: torch_tp.parallelize(alone))
    refusal(ValueError, "cannot be followed", lambda: torch_tp.parallelize(model, example=integers(3, 5)))
    refusal(TypeError, "the module is a str", lambda: torch_tp.parallelize("model"))
    assert held == {name: id(each) for name, each in [*model.named_modules(), *model.named_parameters()]}
    assert not hasattr(model, "tp_report")


def check_tied_linears_stay_whole_where_one_cannot_be_cut(rank: int) -> None:
    tied = nn.Sequential(dense(4, 4), nn.ReLU(), dense(4, 4))
    tied[2].weight = tied[0].weight
    torch_tp.parallelize(tied)
    assert {entry.style for entry in tied.tp_report.entries} == {"replicated"}
    assert "a product sums over its shards" in str(tied.tp_report), str(tied.tp_report)


def check_a_wrapper_stands_for_its_model(rank: int) -> None:
    whole = Block().double()
    wrapped = DistributedModelWrapper(copy.deepcopy(whole), rank=rank, world_size=P)
    x = integers(2, 3, 8).double()
    same(whole(x).detach(), wrapped(x).detach())
    assert (wrapped.heads, wrapped.tp_report.world_size) == (4, P)
    assert list(wrapped.state_dict()) == list(whole.state_dict()) == [name for name, _ in wrapped.named_parameters()]
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    outer = nn.ModuleDict({"model": wrapped})
    outer.load_state_dict({f"model.{name}": value for name, value in state.items()})
    same(whole(x).detach(), wrapped(x).detach())
    assert list(outer.state_dict()) == [f"model.{name}" for name in state]
    wrong = {"rank": 1 - rank, "world_size": P}
    refusal(ValueError, f"this is rank {rank} of 2", lambda: DistributedModelWrapper(Block(), **wrong))


def check_a_number_of_heads_that_is_an_attribute_becomes_that_of_the_rank(rank: int) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.first, self.last = 4, dense(8, 8), dense(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.first(x).view(*x.shape[:-1], self.heads, 2).relu().flatten(2))

    whole, x = nn.Sequential(Heads(), Heads()), integers(2, 3, 8)
    model = torch_tp.parallelize(copy.deepcopy(whole))
    assert [each.heads for each in model] == [4 // P, 4 // P]
    assert "1.heads is 2 on a rank" in str(model.tp_report)
    same(whole(x).detach(), model(x).detach())


class Turned(nn.Module):
    """A linear with its weight the other way round, and its output's size written into it, as GPT-2's Conv1D is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.size = outputs
        self.weight = nn.Parameter(integers(inputs, outputs, seed=1).double())
        self.bias = nn.Parameter(integers(outputs, seed=2).double())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.size)


class Mine(nn.Linear):
    """A linear that computes in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Experts(nn.Module):
    """Two gated experts in two parameters, of whose results a token takes shares."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(integers(2, 8, 4, seed=3).double())
        self.down = nn.Parameter(integers(2, 4, 4, seed=4).double())
        self.offset = nn.Parameter(integers(2, 4, seed=5).double())

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        gate, up = torch.matmul(x, self.both.mT).chunk(2, -1)
        y = torch.bmm(torch.relu(gate) * up, self.down.mT) + self.offset[:, None]
        return (y * shares.t()[..., None]).sum(0)


class Function(nn.Module):
    """Modules and parameters by name, and a forward that is given."""

    def __init__(self, forward: Any, **held: Any) -> None:
        super().__init__()
        for name, each in held.items():
            setattr(self, name, each)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def doubles(*sizes: int) -> Tensor:
    return integers(*sizes).double()


def linear(inputs: int, outputs: int, kind: type = nn.Linear) -> nn.Module:
    return _filled(kind(inputs, outputs).double())


def _filled(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(integers(*parameter.shape, seed=seed))
    return module


def check_modules_that_are_no_linear_are_cut_as_they_are(rank: int) -> None:
    roles = {"0": "column", "2": "row"}
    for kind in (Turned, Mine):
        whole = nn.Sequential(linear(4, 6, kind), nn.ReLU(), linear(6, 4, kind))
        model = compared(rank, whole, doubles(3, 4), expected=roles)
        assert type(model[0]) is kind
        assert "all-reduce of the output" in str(model.tp_report)
        if kind is Turned:
            assert (model[0].size, model[2].size) == (3, 4)


def check_experts_are_cut_inside(rank: int) -> None:
    whole = Function(lambda m, x, s: m.experts(x, torch.relu(m.router(x)) + s), experts=Experts(), router=linear(4, 2))
    model = compared(rank, whole, doubles(3, 4), doubles(3, 2))
    styles = {entry.name: entry.style for entry in model.tp_report.entries}
    assert (styles["experts.both"], styles["experts.down"]) == ("merged column", "row"), str(model.tp_report)


def check_what_is_whole_but_used_on_slices_gets_the_sum_of_the_gradients(rank: int) -> None:
    def scaled(m: Any, x: Tensor) -> Tensor:
        heads = m.a(x).unflatten(-1, (-1, 2)) * m.scale.weight
        return m.b(m.each(heads).flatten(-2))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(integers(2, seed=7).double())

    class Scaled(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    used_outside = Function(scaled, a=linear(4, 8), b=linear(8, 4), each=linear(2, 2), scale=Scale())
    model = compared(rank, used_outside, doubles(3, 4))
    assert {entry.style for entry in model.tp_report.entries} == {"replicated"}, str(model.tp_report)
    used_inside = Function(
        lambda m, x: m.b(m.each(m.scale(m.a(x).unflatten(-1, (-1, 2)))).flatten(-2)),
        a=linear(4, 8),
        b=linear(8, 4),
        each=linear(2, 2),
        scale=Scaled(),
    )
    compared(
        rank,
        used_inside,
        doubles(3, 4),
        expected={"a": "column", "b": "row", "each": "summed", "scale.weight": "summed"},
    )


def check_a_whole_value_with_a_gradient_leaves_a_chain_whole(rank: int) -> None:
    gated = Function(lambda m, x: m.b(torch.relu(m.a(x)) * x[..., :1]), a=linear(4, 8), b=linear(8, 4))
    model = compared(rank, gated, doubles(3, 4))
    assert "a value that is not sharded, but has a gradient, meets its output" in str(model.tp_report), str(
        model.tp_report
    )


def check_two_dimensions_of_one_value_are_not_both_cut(rank: int) -> None:
    outer = Function(
        lambda m, x: m.c((m.a(x)[..., :, None] * m.b(x)[..., None, :]).flatten(-2)),
        a=linear(4, 4),
        b=linear(4, 4),
        c=linear(16, 4),
    )
    compared(rank, outer, doubles(3, 4))
    rows = Function(
        lambda m, x: m.d(m.c(m.a(x).mT @ m.b(x))), a=linear(4, 4), b=linear(4, 4), c=linear(4, 4), d=linear(4, 4)
    )
    compared(rank, rows, doubles(3, 4))


def check_what_is_added_to_slices_is_sliced_too(rank: int) -> None:
    table = _filled(nn.Embedding(3, 4).double())
    whole = Function(
        lambda m, x: m.b(m.a(x).unflatten(-1, (-1, 2)).add(m.table(torch.tensor([0, 2, 2]))[:, :, None]).flatten(-2)),
        a=linear(4, 8),
        b=linear(8, 4),
        table=table,
    )
    compared(rank, whole, doubles(3, 4), expected={"a": "column", "b": "row", "table.weight": "slice"})


def check_one_key_and_value_head_is_copied_and_its_gradient_summed(rank: int) -> None:
    def attention(m: Any, x: Tensor) -> Tensor:
        q = m.q(x).view(*x.shape[:-1], -1, 2).transpose(1, 2)
        k, v = (y.view(*x.shape[:-1], 1, 2).transpose(1, 2) for y in (m.k(x), m.v(input=x)))
        k, v = (t.expand(-1, q.shape[1], -1, -1) for t in (k, v))
        return m.o(((q @ k.mT) @ v).transpose(1, 2).flatten(2))

    whole = Function(attention, q=linear(4, 8), k=linear(4, 2), v=linear(4, 2), o=linear(8, 4))
    model = compared(rank, whole, doubles(2, 3, 4), expected={"q": "column", "k": "column", "v": "column", "o": "row"})
    assert model.k.weight.shape == (2, 4)
    assert "each slice is on up to 2 ranks" in str(model.tp_report)


def check_tied_weights_are_cut_as_one(rank: int) -> None:
    whole = nn.Sequential(linear(4, 8), nn.ReLU(), linear(8, 4), nn.ReLU(), linear(4, 8), nn.ReLU(), linear(8, 4))
    whole[4].weight, whole[6].weight = whole[0].weight, whole[2].weight
    model = compared(rank, whole, doubles(3, 4))
    assert model[0].weight is model[4].weight
    assert model[0].weight.shape == (4, 4)


def check_a_linear_whose_weight_others_use_stays_whole(rank: int) -> None:
    for used in (
        lambda m, x: F.linear(F.relu(F.linear(x, m.a.weight)), m.b.weight),
        lambda m, x: m.b(F.relu(m.a(x))) + m.a.bias.sum(),
        lambda m, x: m.b(F.relu(m.a(x))) @ m.b.weight,
    ):
        model = compared(rank, Function(used, a=linear(4, 8), b=linear(8, 4)), doubles(3, 4))
        assert {entry.style for entry in model.tp_report.entries} == {"replicated"}, str(model.tp_report)


def check_copies_and_pickles_of_a_cut_model_are_cut(rank: int) -> None:
    whole = Function(_experts, experts=Experts(), first=linear(4, 4, Turned), second=linear(4, 4, Turned))
    model = torch_tp.parallelize(copy.deepcopy(whole), example=(doubles(3, 4), doubles(3, 2)))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        agree(rank, whole, other, doubles(3, 4), doubles(3, 2))


def _experts(m: Any, x: Tensor, shares: Tensor) -> Tensor:
    return m.second(torch.relu(m.first(m.experts(x, shares))))


def check_norms_are_those_of_the_dense_gradient(rank: int) -> None:
    def attention(m: Any, x: Tensor) -> Tensor:
        q, k = m.q(x).unflatten(-1, (-1, 2)), m.k(x).unflatten(-1, (1, 2))
        return m.o((q * k).flatten(-2)) + m.tied(x)

    whole = Function(attention, q=linear(4, 8), k=linear(4, 2), o=linear(8, 4), tied=linear(4, 4), again=linear(4, 4))
    whole.again.weight = whole.tied.weight
    model = torch_tp.parallelize(copy.deepcopy(whole), example=(doubles(3, 4),))
    for norm_type in (2.0, 1.0, float("inf")):
        for each in (whole, model):
            each.zero_grad()
            each(doubles(3, 4)).sum().backward()
        wanted = nn.utils.clip_grad_norm_(whole.parameters(), 0.5, norm_type)
        found = torch_tp.clip_grad_norm_(model, 0.5, norm_type)
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected = own(whole.get_parameter(name).grad, parameter, rank)
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-14, atol=0)
    refusal(ValueError, "norm_type = 0; it must be positive", lambda: torch_tp.clip_grad_norm_(model, 1.0, 0))
    model.q.weight.grad.fill_(float("nan"))
    refusal(RuntimeError, "it must be finite", lambda: torch_tp.clip_grad_norm_(model, 1.0, error_if_nonfinite=True))


def check_attention_modules_are_cut_by_heads(rank: int) -> None:
    torch.manual_seed(0)
    L, S, N, H, E = 3, 5, 2, 4, 8
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    padding = torch.tensor([[False] * S, [False] * 3 + [True] * 2])
    by_head = torch.randn(N * H, L, S, dtype=torch.float64)
    for options, shapes, given in (
        ({}, ((L, N, E), (S, N, E)), {}),
        ({"batch_first": True}, ((N, L, E), (N, S, E)), {"key_padding_mask": padding, "need_weights": False}),
        ({"batch_first": True, "bias": False}, ((N, L, E), (N, S, E)), {"attn_mask": by_head}),
        ({"kdim": 6, "vdim": 6}, ((L, N, E), (S, N, 6)), {"average_attn_weights": False}),
        ({}, ((L, E), (S, E)), {"attn_mask": torch.zeros(L, S).bool(), "key_padding_mask": padding[1]}),
        ({}, ((L, N, E),), {"attn_mask": causal, "is_causal": True, "need_weights": False}),
    ):
        whole = nn.MultiheadAttention(E, H, dtype=torch.float64, **options)
        for parameter in whole.parameters():
            nn.init.normal_(parameter)
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        call = {"query": inputs[0], "key": inputs[-1], "value": inputs[-1], **given}
        model = torch_tp.parallelize(copy.deepcopy(whole), example=call)
        assert [entry.style for entry in model.tp_report.entries] == ["attention by heads"], str(model.tp_report)
        for each in (model, copy.deepcopy(model)):
            near(rank, whole, each, call)


def near(rank: int, whole: nn.Module, model: nn.Module, call: dict[str, Any]) -> None:
    """As `agree`, of values that are rounded."""
    gradients = []
    for module in (whole, model):
        given = {name: each.clone() if isinstance(each, Tensor) else each for name, each in call.items()}
        for name in ("query", "key"):
            given[name] = given[name].requires_grad_()
        given["value"] = given["key"]
        if call["query"] is call["key"]:
            given["key"] = given["value"] = given["query"]
        y, weights = module(**given)
        (y.square().sum() + (0 if weights is None else weights.pow(3).sum())).backward()
        gradients.append([y.detach(), weights, given["query"].grad, given["key"].grad])
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, parameter in model.named_parameters():
        expected = own(whole.get_parameter(name).grad, parameter, rank)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-12)
    whole.zero_grad()


def check_attention_that_adds_keys_stays_whole(rank: int) -> None:
    whole = nn.MultiheadAttention(8, 4, add_bias_kv=True, dtype=torch.float64)
    x = torch.ones(3, 2, 8, dtype=torch.float64)
    model = torch_tp.parallelize(whole, example=(x, x, x))
    assert all(entry.style == "replicated" for entry in model.tp_report.entries), str(model.tp_report)


def check_torchs_encoder_keeps_to_its_modules(rank: int) -> None:
    torch.manual_seed(0)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    for heads, features in ((4, 8), (3, 6)):
        x = torch.randn(2, 4, features, dtype=torch.float64)
        layer = nn.TransformerEncoderLayer(features, heads, 8, batch_first=True, dtype=torch.float64)
        whole = nn.TransformerEncoder(layer, 2).eval()
        model = torch_tp.parallelize(copy.deepcopy(whole), example=x)
        attention = "attention by heads" if heads == 4 else "replicated"
        assert model.tp_report.entries[0].style == attention, str(model.tp_report)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                torch.testing.assert_close(model(x), whole(x), rtol=1e-12, atol=1e-12)
                expected, found = (each(x, src_key_padding_mask=padding)[~padding] for each in (whole, model))
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Applied(torch.autograd.Function):
    """A backward that is not linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * grad.abs().sum()


class Doubled(torch.autograd.Function):
    """A backward that leaves slices what they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2 * ctx.saved_tensors[0]


def whole_or_equal(rank: int, forward: Any, *inputs: Tensor, cut: bool = False, **held: Any) -> nn.Module:
    """The model is the dense one, and all of it is whole unless something must be cut."""
    model = compared(rank, Function(forward, **held), *(inputs or (doubles(3, 4),)))
    assert bool(model.tp_report.sharded_share) == cut, str(model.tp_report)
    return model


def inner(forward: Any, **held: Any) -> nn.Module:
    """A module with two weights of its own, or with others."""
    weights = {"first": nn.Parameter(doubles(4, 8)), "last": nn.Parameter(doubles(8, 4))}
    return Function(forward, **(held or weights))


def check_a_rank_computes_with_the_numbers_of_the_whole(rank: int) -> None:
    for scaled in (
        lambda m, x: m.b(m.a(x) * m.a(x).shape[-1]),
        lambda m, x: m.b(m.a(x) * torch.tensor(float(m.a(x).shape[-1]))),
        lambda m, x: m.b(m.a(x) * torch.full((m.a(x).shape[-1],), m.a(x).shape[-1])),
    ):
        whole_or_equal(rank, scaled, a=linear(4, 8), b=linear(8, 4))


def check_parts_are_cut_where_blocks_of_the_whole_end(rank: int) -> None:
    def grouped(m: Any, x: Tensor, size: int) -> Tensor:
        blocks = m.both(x).unflatten(-1, (-1, size))
        gate, up = (blocks - blocks.amax(-1, keepdim=True)).flatten(-2).chunk(2, -1)
        return m.down(gate * up)

    for size, cut in ((6, False), (4, False), (3, True)):
        held = {"both": linear(4, 12), "down": linear(6, 4)}
        whole_or_equal(rank, lambda m, x, size=size: grouped(m, x, size), cut=cut, **held)


def check_what_a_sum_that_is_to_come_does_not_allow(rank: int) -> None:
    def buffered(m: Any, x: Tensor) -> Tensor:
        return torch.addmm(torch.arange(4.0).double(), x @ m.first, m.last)

    def rounded(m: Any, x: Tensor) -> Tensor:
        return torch.div((x @ m.first) @ m.last, 2, rounding_mode="floor")

    def whole(m: Any, x: Tensor) -> Tensor:
        return ((x @ m.first) @ m.last / 2).long()

    def divided(m: Any, x: Tensor) -> Tensor:
        return torch.zeros(()) / (1 + ((x @ m.first) @ m.last).abs())

    for forward in (buffered, rounded, whole, divided):
        whole_or_equal(rank, lambda m, x: m.inner(x) * x, inner=inner(forward))


def check_what_a_module_keeps_of_its_result_is_a_term_still(rank: int) -> None:
    def kept(m: Any, x: Tensor) -> Tensor:
        m.kept = (x @ m.first) @ m.last
        return m.kept

    whole_or_equal(rank, lambda m, x: m.inner(x) + m.inner.kept.relu(), inner=inner(kept))


def check_what_is_written_into_a_view_is_in_the_whole(rank: int) -> None:
    def gated(m: Any, x: Tensor) -> Tensor:
        gate = torch.zeros(3, 2, dtype=x.dtype)
        gate[:, :1] = x[:, :1]
        return m.b(m.a(x) * gate[:, :1])

    def scaled(m: Any, x: Tensor) -> Tensor:
        scale = torch.zeros(3, 3, dtype=x.dtype)
        scale[:1] += m.scale
        return x * scale.sum()

    whole_or_equal(rank, gated, a=linear(4, 8), b=linear(8, 4))
    whole_or_equal(
        rank,
        lambda m, x: m.b(m.inner(m.a(x))),
        cut=True,
        a=linear(4, 8),
        b=linear(8, 4),
        inner=inner(scaled, scale=nn.Parameter(doubles(3))),
    )


def check_what_is_changed_where_a_module_is_called_is_used_there(rank: int) -> None:
    ends = {"a": linear(4, 8), "b": linear(8, 4)}
    key = nn.Parameter(doubles(1, 2))
    for cut, forward, held in (
        # a parameter with copies that others use, and one with a sum of gradients that is an argument
        (False, lambda m, x: m.b((m.a(x).unflatten(-1, (-1, 2)) * m.each.weight).flatten(-2)), {"weight": key}),
        (True, lambda m, x: m.b(m.each(m.a(x), m.each.scale)), {"scale": nn.Parameter(doubles(3))}),
        # and one that a hook uses, behind the module
        (False, lambda m, x: m.b(m.each(m.a(x))), {"scale": nn.Parameter(doubles(3)), "hooked": True}),
    ):
        held, hooked = dict(held), "hooked" in held
        held.pop("hooked", None)
        each = inner(lambda m, x, *scale: x * (scale or (m.scale,))[0].sum(), **held)
        if hooked:
            each.register_forward_hook(lambda m, _, out: out * m.scale.sum())
        whole_or_equal(rank, forward, cut=cut, each=each, **ends)
    biased = inner(lambda m, x, bias: (x @ m.first) @ m.last + bias)
    whole_or_equal(rank, lambda m, x: m.inner(x, m.bias), inner=biased, bias=nn.Parameter(doubles(4)))


def check_a_module_inside_of_itself(rank: int) -> None:
    def again(m: Any, x: Tensor, more: Tensor | None = None) -> Tensor:
        return (x if more is not None else m(x, x)) * m.scale.sum()

    each = inner(again, scale=nn.Parameter(doubles(3)))
    whole_or_equal(rank, lambda m, x: m.b(m.each(m.a(x))), cut=True, a=linear(4, 8), b=linear(8, 4), each=each)


def check_a_backward_that_cannot_be_seen_leaves_a_chain_whole(rank: int) -> None:
    whole_or_equal(rank, lambda m, x: m.b(Applied.apply(m.a(x))), a=linear(4, 8), b=linear(8, 4))
    whole_or_equal(rank, lambda m, x: m.b(Doubled.apply(m.a(x))), cut=True, a=linear(4, 8), b=linear(8, 4))
    whole_or_equal(rank, lambda m, x: m.b(m.a(Applied.apply(x))), cut=True, a=linear(4, 8), b=linear(8, 4))
    whole_or_equal(rank, lambda m, x: m.i(x), i=inner(lambda m, x: (Applied.apply(x) @ m.first) @ m.last))


def check_what_runs_again_in_the_backward(rank: int) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return ((x @ m.first) @ m.last + m.bias) * m.scale.sum()

    held = {name: nn.Parameter(doubles(*size)) for name, size in (("bias", (4,)), ("scale", (3,)))}
    weights = {"first": nn.Parameter(doubles(4, 8)), "last": nn.Parameter(doubles(8, 4))}
    again = inner(lambda m, x: checkpoint(partial(body, m), x, use_reentrant=False), **held, **weights)
    whole_or_equal(rank, lambda m, x: m.again(x), again=again)
    once = inner(body, **held, **weights)
    whole_or_equal(rank, lambda m, x: checkpoint(m.once, x, use_reentrant=False), cut=True, once=once)


def check_slices_in_an_object_of_the_output(rank: int) -> None:
    def told(m: Any, x: Tensor) -> Any:
        hidden = m.a(x)
        return SimpleNamespace(y=m.b(hidden), hidden=hidden)

    model = Function(told, a=linear(4, 8), b=linear(8, 4))
    assert not torch_tp.parallelize(model, example=doubles(3, 4)).tp_report.sharded_share


def check_a_linear_whose_weight_is_no_parameter(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(linear(4, 8)), nn.ReLU(), linear(8, 4)).eval()
    assert torch_tp.parallelize(model, example=doubles(3, 4)).tp_report.sharded_share == 0
