"""What `verify=True` is seen to do on two ranks: what is right passes, each planted bug is caught and named."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import two_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_tp
from torch_tp import (
    ColumnParallelLinear,
    DistributedModelWrapper,
    RankMismatchError,
    RowParallelLinear,
    VerificationError,
    parallelize,
)
from torch_tp.group import find_group
from torch_tp.layers import column, products
from torch_tp.layers.shared_input import SharedInput
from torch_tp.models import verdict
from torch_tp.models.agreement import compare_models, together
from torch_tp.models.guard import Guard
from torch_tp.models.verification import verified

P = 2


class Mlp(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(features), nn.Linear(features, 16), nn.Linear(16, features)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(self.drop(F.gelu(self.up(self.norm(x))))))


class Attention(nn.Module):
    """Grouped queries: four heads of four features, two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (each.repeat_interleave(2, 1) for each in (k, v))
        return x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """Queries, keys and values in one linear, two heads of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (each.unflatten(-1, (-1, 4)).transpose(1, 2) for each in parts)
        return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Language(nn.Module):
    """Tied embeddings, a buffer, and a normalization with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(32, 8), nn.Linear(8, 32, bias=False)
        self.head.weight = self.tokens.weight
        self.attention, self.mlp, self.batch = Attention(), Mlp(), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        hidden = self.mlp(self.attention(self.tokens(tokens)))
        hidden = self.batch(hidden.transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(hidden), "hidden": hidden}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def state(module: nn.Module) -> dict[str, Any]:
    """Everything that a wrap or a run could change."""
    held: dict[str, Any] = {"random": torch.get_rng_state()}
    for name, each in module.named_modules():
        held[f"{name}: type"] = (id(each), type(each), each.training, sorted(vars(each)))
        held[f"{name}: hooks"] = (len(each._forward_hooks), len(each._forward_pre_hooks))
    for name, each in (*module.named_parameters(), *module.named_buffers()):
        held[name] = (id(each), each.detach().clone())
        held[f"{name}.grad"] = None if each.grad is None else each.grad.clone()
    return held


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.is_meta or torch.equal(one, other)
    if isinstance(one, tuple):
        return all(map(alike, one, other))
    return one == other


def refused(module: nn.Module, pattern: str, kind: type[Exception] = VerificationError, **options: Any) -> str:
    """Refused with a text that matches, and nothing of the module or the random state is changed."""
    before = state(module)
    try:
        parallelize(module, verify=True, **options)
    except kind as error:
        text = str(error)
    else:
        raise AssertionError(f"nothing was found: {module.tp_report}")
    after = state(module)
    changed = [name for name in before if not alike(before[name], after.get(name))]
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    assert not changed, changed
    assert re.search(pattern, text), text
    return text


@contextlib.contextmanager
def planted(owner: Any, name: str, wrong: Any) -> Iterator[None]:
    with mock.patch.object(owner, name, wrong):
        yield


def example(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def check_right_wraps_pass(rank: int) -> None:
    for make, dtype, given in (
        (Mlp, torch.float32, None),
        (Mlp, torch.float64, example(3, 5, 8).double()),
        (Mlp, torch.bfloat16, example(3, 5, 8).bfloat16()),
        (Attention, torch.float32, None),
        (Attention, torch.bfloat16, None),
        (Fused, torch.float32, example(2, 6, 8)),
        (Language, torch.float32, None),
    ):
        whole = seeded(make).to(dtype)
        model = parallelize(copy.deepcopy(whole), example=given, verify=True)
        styles = {entry.style for entry in model.tp_report.entries}
        assert "row" in styles, styles
        said = re.fullmatch(
            r"outputs and (\d+) gradients lie within their bounds in evaluation mode and training mode"
            r"(| \(with dropout off\)); the largest deviation is (\S+) of its bound;"
            r" the widest bound of an output is (\S+) of its largest element",
            model.tp_report.verified,
        )
        assert said, model.tp_report.verified
        assert int(said[1]) == len(list(whole.parameters())) + (make is not Language)
        assert bool(said[2]) == (make in (Mlp, Language))
        assert 0 <= float(said[3]) <= 1
        assert 0 < float(said[4]) < 0.2
        assert f"verified: {model.tp_report.verified}" in str(model.tp_report)
    assert parallelize(seeded(Mlp)).tp_report.verified == ""


def check_a_verified_model_is_the_one_that_is_not(rank: int) -> None:
    plain, given = parallelize(seeded(Language)), torch.arange(10).view(2, 5)
    model = seeded(Language)
    model.mlp.up.bias.requires_grad_(False)
    model.tokens.weight.grad = torch.ones_like(model.tokens.weight)
    model.attention.eval()
    random = torch.get_rng_state()
    parallelize(model, verify=True)
    assert torch.equal(random, torch.get_rng_state())
    assert (model.training, model.attention.training, model.attention.q.training) == (True, False, False)
    assert torch.equal(model.tokens.weight.grad, torch.ones_like(model.tokens.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "tokens.weight")
    assert all(torch.equal(mine, other) for mine, other in zip(model.buffers(), plain.buffers(), strict=True))
    (guard,) = model._forward_pre_hooks.values()  # of the calls that were not proven
    assert isinstance(guard.__self__, Guard)
    inner = [each for each in model.modules() if each is not model]
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in inner)
    assert torch.equal(plain.eval()(given)["logits"], model.eval()(given)["logits"])


def check_a_wrapper_is_verified(rank: int) -> None:
    assert DistributedModelWrapper(seeded(Mlp), verify=True).tp_report.verified
    with planted(RowParallelLinear, "_parallel", bias_on_every_rank), contextlib.suppress(VerificationError):
        DistributedModelWrapper(seeded(Mlp), verify=True)
        raise AssertionError("nothing was found")


def check_what_a_model_draws_or_writes_is_no_difference(rank: int) -> None:
    class Noisy(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x.add_(torch.randn_like(x))
            return F.relu(super().forward(x), inplace=True)

    torch.manual_seed(rank)  # the random state may differ between ranks, and stays what it is
    given = example(2, 8)
    before = given.clone()
    model = Noisy()
    for parameter in model.parameters():
        parameter.data = torch_tp.broadcast_tensor(parameter.data, 0)
    parallelize(model, plan={"up": "column", "down": "row"}, example=given, verify=True)
    assert torch.equal(before, given)
    assert "last" not in vars(model)


def check_a_frozen_model_is_compared_by_its_outputs(rank: int) -> None:
    model = seeded(Language).requires_grad_(False)
    with torch.no_grad():
        parallelize(model, verify=True)
        assert model.tp_report.verified.startswith("outputs and 0 gradients")
        assert parallelize(seeded(Mlp), verify=True).tp_report.verified.startswith("outputs and 7 gradients")


def check_an_example_without_data_is_filled(rank: int) -> None:
    plan = {"up": "column", "down": "row"}
    for given in (torch.empty(2, 3, 8, device="meta"), {"x": torch.empty(2, 3, 8, device="meta")}):
        assert parallelize(seeded(Mlp), plan=plan, example=given, verify=True).tp_report.verified


def bias_on_every_rank(self: RowParallelLinear, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
    return products.row_product(x, weight, None, group) + (0 if bias is None else P * bias)


def check_a_bias_that_every_rank_adds_is_found(rank: int) -> None:
    with planted(RowParallelLinear, "_parallel", bias_on_every_rank):
        text = refused(seeded(Mlp), r"it goes wrong at down \(RowParallelLinear\), whose output is off by")
    assert "output 0 is off by" in text
    assert "(found on ranks 0, 1)" in text


def check_an_input_gradient_that_is_not_summed_is_found(rank: int) -> None:
    def alone(x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return F.linear(x, weight, bias)

    with planted(column, "column_product", alone):
        refused(seeded(Mlp), r"at up \(ColumnParallelLinear\), whose input has a gradient that is off by")
    with planted(SharedInput, "copy", lambda self, x, group, layer: x):
        refused(seeded(Attention), r"at [qkv] \(ColumnParallelLinear\), whose input has a gradient")


def check_slices_of_the_other_rank_are_found(rank: int) -> None:
    own = ColumnParallelLinear._own_shard

    def other(self: Any, whole: Tensor, placement: Any) -> Tensor:
        held = placement.ranges(whole.shape[0], P, 1 - self.rank)
        return torch.cat([whole[part.start : part.stop] for part in held])

    with planted(ColumnParallelLinear, "_own_shard", other):
        refused(seeded(Mlp), r"at up \(ColumnParallelLinear\), whose output is off by")
    assert ColumnParallelLinear._own_shard is own


def check_a_plan_that_cuts_fused_parts_as_one_is_found(rank: int) -> None:
    right = parallelize(seeded(Fused), example=example(2, 6, 8), verify=True)
    assert right.tp_report.entries[0].style == "merged column"
    refused(
        seeded(Fused),
        r"at o \(RowParallelLinear\), whose input is off",
        plan={"qkv": "column", "o": "row"},
        example=example(2, 6, 8),
    )


def check_a_plan_whose_slices_meet_a_norm_is_found(rank: int) -> None:
    def shapes() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))

    def numbers() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 8))

    refused(seeded(shapes), r"at 1 \(LayerNorm\); it raises RuntimeError", plan={"0": "column", "2": "row"})
    refused(seeded(numbers), r"at 2 \(RowParallelLinear\), whose input is off by", plan={"0": "column", "2": "row"})
    refused(seeded(numbers), r"at 2 \(Linear\); it raises RuntimeError", plan={"0": "column"})
    refused(
        seeded(lambda: nn.Sequential(nn.Linear(8, 8))),
        r"output 0 is \[2, 8, 4\] float32 in place of \[2, 8, 8\] float32",
        plan={"0": "column"},
    )

    def wide(self: Any, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return products.row_product(x, weight, bias, group).float()

    with planted(RowParallelLinear, "_parallel", wide):
        refused(
            seeded(Mlp).bfloat16(),
            r"output 0 is \[2, 8\] float32 in place of \[2, 8\] bfloat16",
            example=example(2, 8).bfloat16(),
        )


def check_a_lost_gradient_is_found(rank: int) -> None:
    def lost(self: Any, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return products.column_product(x.detach(), weight, bias, group)

    with planted(ColumnParallelLinear, "_parallel", lost):
        refused(seeded(Mlp), r"gradient of norm\.weight is off by \S+, where rounding explains")

    def without_bias(self: Any, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return products.row_product(x, weight, None if bias is None else bias.detach(), group)

    with planted(RowParallelLinear, "_parallel", without_bias):
        refused(seeded(Mlp), r"at down \(RowParallelLinear\); gradient of down\.bias is off by")


def check_a_bug_of_one_rank_is_raised_on_both(rank: int) -> None:
    scale = 1.001 if rank == 1 else 1.0

    def slightly_off(self: Any, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return products.column_product(x, weight * scale, bias, group)

    with planted(ColumnParallelLinear, "_parallel", slightly_off):
        refused(seeded(Mlp), r"found on ranks 0, 1")
    model = seeded(Mlp)
    grads = products._weight_grad
    with planted(products, "_weight_grad", lambda grad, x: grads(grad, x) * scale):
        refused(model, r"at (up|down) .* gradient of up\.weight is off by .*\(found on rank 1\)")


def check_a_rank_that_raises_alone_ends_both(rank: int) -> None:
    group = torch.distributed.new_group(timeout=timedelta(seconds=3))

    def fails(self: Any, x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        if rank == 1:
            raise ArithmeticError("on purpose")
        return products.row_product(x, weight, bias, group)

    with planted(RowParallelLinear, "_parallel", fails):
        text = refused(seeded(Mlp), r"at down \(RowParallelLinear\); it raises", group=group)
    assert rank == 0 or "ArithmeticError: on purpose" in text


def check_ranks_that_cannot_agree_leave_the_model_as_it_was(rank: int) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the network is gone")

    with planted(verdict, "agreed", broken):
        refused(seeded(Mlp), "^the network is gone$", RuntimeError)


def check_ranks_that_hold_different_models_are_found(rank: int) -> None:
    text = refused(seeded(Mlp, rank), "the models of the ranks differ", RankMismatchError)
    assert text.endswith("parameter up.weight has different values on rank 0 and rank 1; 3 more parts differ, too")


def differ(rank: int, pattern: str, change: Callable[[nn.Module], Any], **options: Any) -> None:
    """Ranks of which the last has changed its model are refused, with the same text on both."""
    model = seeded(Language)
    if rank == P - 1:
        change(model)
    before = state(model)
    try:
        compare_models("test", model, find_group("test"), **options)
    except RankMismatchError as error:
        text = str(error)
    else:
        raise AssertionError(f"nothing was found: {pattern}")
    assert re.fullmatch(f"test: the models of the ranks differ: {pattern}", text), text
    assert all(alike(each, state(model)[name]) for name, each in before.items())


def check_models_that_differ_anywhere_are_refused(rank: int) -> None:
    def zeroed(model: nn.Module) -> None:
        with torch.no_grad():
            model.mlp.down.bias[3] = 0

    def swapped(model: nn.Module) -> None:
        with torch.no_grad():
            model.mlp.down.bias[:2] = model.mlp.down.bias[:2].flip(0)

    def signs(model: nn.Module) -> None:
        with torch.no_grad():
            model.mlp.up.weight[0, ::4] *= -1

    for change in (zeroed, swapped):
        differ(rank, "parameter mlp.down.bias has different values on rank 0 and rank 1", change)
    differ(rank, "parameter mlp.up.weight has different values on rank 0 and rank 1", signs)
    differ(rank, "buffer calls has different values on rank 0 and rank 1", lambda m: m.calls.add_(1))
    differ(rank, "module mlp: mode training on rank 0 and evaluation on rank 1;.*", lambda m: m.mlp.eval())
    differ(
        rank,
        "module mlp.drop: class Dropout on rank 0 and Identity .*",
        lambda m: setattr(m.mlp, "drop", nn.Identity()),
    )
    differ(
        rank,
        "module extra: class absent on rank 0 and Module on rank 1",
        lambda m: m.add_module("extra", nn.Module()),
    )
    differ(
        rank,
        "parameter mlp.up.bias: requires_grad True on rank 0 and False on rank 1",
        lambda m: m.mlp.up.bias.requires_grad_(False),
    )
    differ(rank, "parameter tokens.weight: dtype float32 on rank 0 and float64 on rank 1;.*", lambda m: m.double())
    untied = r"parameter head.weight: the same as parameter tokens.weight on rank 0 and absent on rank 1"
    differ(rank, untied, lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight.detach().clone())))
    compare_models("test", seeded(Language), find_group("test"), plan="the same")


def check_examples_and_plans_that_differ_are_refused(rank: int) -> None:
    def call(value: Any) -> list[Any]:
        return [((example(2, 3),), {}), ((), {"x": [value]})]

    def nothing(model: nn.Module) -> None:
        pass

    start = r"example 1, argument \['x'\]\[0\]"
    differ(
        rank,
        f"{start}: shape \\[1\\] on rank 0 and \\[2\\] on rank 1;?.*",
        nothing,
        examples=call(torch.ones(1 + rank)),
    )
    other = f"{start} has different values on rank 0 and rank 1"
    differ(rank, other, nothing, examples=call(torch.full((1,), float(rank))))
    differ(rank, f"{start}: value 0 on rank 0 and 1 on rank 1", nothing, examples=call(rank))
    differ(rank, "the plan: a on rank 0 and b on rank 1", nothing, plan="ab"[rank])
    group = find_group("test")
    compare_models("test", seeded(Mlp), group, call(torch.full((1,), float(rank))), example_values=False)
    text = refused(
        seeded(Mlp), "the models of the ranks differ: example 0", RankMismatchError, example=example(2, 8) + rank
    )
    assert "has different values" in text


def check_ranks_leave_together(rank: int) -> None:
    group = find_group("test")
    kind = ArithmeticError if rank == 1 else RankMismatchError
    try:
        with together("test", group):
            if rank == 1:
                raise ArithmeticError("on purpose")
    except kind as error:
        text = str(error)
    assert text == ("on purpose" if rank == 1 else "test: the ranks differ: rank 1 raised ArithmeticError: on purpose")
    with together("test", group):
        pass

    class FailsOnOne(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            if rank == 1:
                raise ArithmeticError("on purpose")
            return super().forward(x)

    fitting = {"plan": {"up": "column", "down": "row"}, "example": example(2, 8)}
    if rank == 1:
        refused(seeded(FailsOnOne), "the dense model cannot run.*on purpose", ValueError, **fitting)
    else:
        refused(seeded(FailsOnOne), "rank 1 raised ValueError.*on purpose", RankMismatchError, **fitting)


class InTraining(Mlp):
    """Normalises over its hidden features in training mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(hidden - hidden.mean(-1, keepdim=True) if self.training else hidden.relu())


PLAN = {"plan": {"up": "column", "down": "row"}, "example": example(2, 8)}


def check_a_fault_in_training_mode_alone_is_found(rank: int) -> None:
    refused(seeded(InTraining), r"what it did in training mode: it goes wrong at down \(RowParallelLinear\)", **PLAN)


def check_dropout_of_every_kind_is_off(rank: int) -> None:
    class Dropping(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.kinds = nn.ModuleList([nn.Dropout(0.2), nn.AlphaDropout(0.2), nn.Dropout1d(0.2)])

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            for kind in self.kinds:
                y = kind(y)
            y = F.dropout(torch.dropout(y, 0.2, self.training), 0.2, self.training)
            y = y.unflatten(-1, (-1, 1, 4))
            y = F.scaled_dot_product_attention(y, y, y, dropout_p=0.2 * self.training).flatten(-3)
            return self.down(y)

    text = parallelize(seeded(Dropping), verify=True, **PLAN).tp_report.verified
    assert "in evaluation mode and training mode (with dropout off);" in text, text


def check_draws_for_shards_are_said(rank: int) -> None:
    class Own(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x)
            return self.down(hidden * torch.rand_like(hidden) if self.training else hidden)

    text = parallelize(seeded(Own), verify=True, **PLAN).tp_report.verified
    assert "lie within their bounds in evaluation mode; " in text, text
    assert text.endswith("; training mode was not compared: random numbers are drawn for sharded values"), text


def check_a_dense_model_that_cannot_train_is_compared_in_evaluation_mode(rank: int) -> None:
    class Never(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise NotImplementedError("no training")
            return Mlp.forward(self, x)

    source = torch.Generator().manual_seed(0)

    class Unsteady(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + torch.randn(y.shape, generator=source) * self.training

    class NeverOnOne(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return Never.forward(self, x) if rank == 1 else super().forward(x)

    text = parallelize(seeded(NeverOnOne), verify=True, **PLAN).tp_report.verified
    assert "in evaluation mode; " in text, text
    where = "the dense model raises" if rank == 1 else "the dense model cannot run in it on another rank"
    assert f"training mode was not compared: {where}" in text, text
    text = parallelize(seeded(Never), verify=True, **PLAN).tp_report.verified
    assert text.endswith("training mode was not compared: the dense model raises NotImplementedError: no training")
    text = parallelize(seeded(Unsteady), verify=True, **PLAN).tp_report.verified
    assert "training mode was not compared: the output 0 of the dense model differs between two runs" in text, text

    class Always(Unsteady):
        def forward(self, x: Tensor) -> Tensor:
            y = Mlp.forward(self, x)
            return y + torch.randn(y.shape, generator=source)

    refused(seeded(Always), "output 0 of the dense model differs between two runs", ValueError, **PLAN)


class Writes(Mlp):
    """Writes wherever a model can."""

    seen: list[Any] = []  # noqa: RUF012
    fails_on: type[BaseException] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.cache: dict[str, Any] = {"steps": [0]}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.add_(1)
        y = super().forward(x) * self.scale
        self.losses.append(y.mean())
        self.cache["steps"][0] += 1
        Writes.seen.append(y)
        random.random()
        self.up.bias.requires_grad_(False)
        if self.fails_on is not None and not isinstance(self.up, nn.Linear):
            raise self.fails_on
        return y


def check_whatever_a_model_writes_is_restored(rank: int) -> None:
    for fails_on in (None, ArithmeticError, KeyboardInterrupt):
        model = seeded(Writes)
        model.fails_on = fails_on
        model.scale.grad = torch.full((), 3.0)
        gradient, losses, drawn = model.scale.grad, model.losses, random.getstate()
        if fails_on is None:
            assert parallelize(model, verify=True, **PLAN).tp_report.verified
            assert isinstance(model.up, ColumnParallelLinear)
        else:
            kind = VerificationError if fails_on is ArithmeticError else fails_on
            refused(model, "", kind, **PLAN)
        assert (model.losses, model.cache, Writes.seen) == ([], {"steps": [0]}, [])
        assert model.losses is losses
        assert model.scale.grad is gradient
        assert (model.scale.item(), gradient.item()) == (1, 3)
        assert model.up.bias.requires_grad
        assert random.getstate() == drawn


def check_reentrant_checkpoints_are_verified(rank: int) -> None:
    class Checkpointed(Mlp):
        nested = True

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=True)

        def inner(self, x: Tensor) -> Tensor:
            return x + checkpoint(super().forward, x, use_reentrant=self.nested)

    assert (
        "training mode (with dropout off)" in parallelize(seeded(Checkpointed), verify=True, **PLAN).tp_report.verified
    )
    Checkpointed.nested = False
    assert parallelize(seeded(Checkpointed), verify=True, **PLAN).tp_report.verified

    def alone(x: Tensor, weight: Tensor, bias: Any, group: Any) -> Tensor:
        return F.linear(x, weight, bias)

    with planted(column, "column_product", alone):
        refused(seeded(Checkpointed), "has a gradient that is off|gradient of .* is off", **PLAN)


def check_hooks_that_optimize_do_not_run(rank: int) -> None:
    model, calls = seeded(Mlp), list[int]()
    model.norm.weight.register_post_accumulate_grad_hook(lambda _: calls.append(1))
    parallelize(model, verify=True, **PLAN)
    assert not calls
    model(example(2, 8)).sum().backward()
    assert calls == [1]


def check_every_call_is_compared(rank: int) -> None:
    class Long(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x)
            return self.down(hidden.softmax(-1) if len(x) > 4 else hidden.relu())

    def text_of(*sizes: int) -> str:
        model, group = seeded(Long), find_group("test")

        def change() -> None:
            model.up, model.down = ColumnParallelLinear.from_linear(model.up), RowParallelLinear.from_linear(model.down)

        calls = [((example(size, 8),), {}) for size in sizes]
        before = state(model)
        try:
            return verified("test", model, group, ["up", "down"], calls, change)
        except VerificationError as error:
            assert all(alike(each, state(model)[name]) for name, each in before.items())
            return str(error)

    assert "in evaluation mode and training mode, for each of 2 calls;" in text_of(2, 3)
    assert "what it did in evaluation mode, call 2: it goes wrong at down" in text_of(2, 5)


def check_what_cannot_be_verified_is_refused_at_once(rank: int) -> None:
    class Silent(Mlp):
        def forward(self, x: Tensor) -> tuple[int]:
            super().forward(x)
            return (1,)

    with torch.device("meta"):
        empty = Mlp()
    refused(empty, "norm.weight is on the meta device and holds no values", ValueError)
    refused(seeded(Silent), "output holds no floating-point tensor", ValueError, plan={"up": "column", "down": "row"})
    fitting = {"plan": {"up": "column", "down": "row"}, "example": example(2, 9)}
    refused(seeded(Mlp), "the dense model cannot run; give example=.*RuntimeError", ValueError, **fitting)
    infinite = {"plan": {"up": "column", "down": "row"}, "example": example(2, 8).clamp(max=1) / 0}
    infinite["example"][0] = 0
    parallelize(seeded(Mlp), verify=True, **infinite)  # what is no number stays none
    torch.distributed.destroy_process_group()
    detached = {"rank": rank, "world_size": P}
    refused(seeded(Mlp), f"rank = {rank}, world_size = 2 came without a process group", ValueError, **detached)
    second_world(rank)


def second_world(rank: int) -> None:
    """The test's own world must be there again when it ends."""
    two_ranks.open_world(rank, os.environ["TP_TEST_STORE"])
