"""What is checked on two ranks; each function runs on both, in a world of its own.

Values are small integers, so every sum is exact in float32 and equality is the only comparison.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import two_ranks
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

import torch_tp
from torch_tp import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    NoProcessGroupError,
    QKVParallelLinear,
    RankMismatchError,
    RowParallelLinear,
    debug,
)

P = 2


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Nonzero integers of -3 to 3, the same on both ranks."""
    source = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=source) * 2 - 1
    return (torch.randint(1, 4, shape, generator=source) * sign).float()


def dense(inputs: int = 4, outputs: int = 6) -> nn.Linear:
    """A linear layer of small integers."""
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(integers(outputs, inputs, seed=1))
        linear.bias.copy_(integers(outputs, seed=2))
    return linear


def same(expected: Tensor, actual: Tensor | None) -> None:
    assert actual is not None
    assert expected.dtype == actual.dtype
    assert torch.equal(expected, actual), (expected, actual)


@contextlib.contextmanager
def debugging(mode: str) -> Iterator[None]:
    os.environ["TP_DEBUG"] = mode
    debug.modes.cache_clear()
    try:
        yield
    finally:
        del os.environ["TP_DEBUG"]
        debug.modes.cache_clear()


def refusal(kind: type[Exception], text: str, attempt) -> None:
    """Exactly this type, with text that matches the pattern."""
    raised: Exception | None = None
    try:
        attempt()
    except Exception as error:
        raised = error
    assert type(raised) is kind, repr(raised)
    assert re.search(text, str(raised)), str(raised)


def second_world(rank: int) -> None:
    """One more world in the same check."""
    two_ranks.open_world(rank, os.environ["TP_TEST_STORE"])


def fails_on_rank_one(rank: int) -> None:
    """No check: it shows that a failure is reported."""
    assert rank == 0, "on purpose"


def check_column_is_the_dense_layer(rank: int) -> None:
    linear, x, g = dense(), integers(3, 4).requires_grad_(), integers(3, 6, seed=3)
    whole = linear(x)
    whole.backward(g)
    layer, own = ColumnParallelLinear.from_linear(linear), x.detach().clone().requires_grad_()
    y = layer(own)
    y.backward(g.chunk(P, -1)[rank])

    same(whole.chunk(P, -1)[rank], y)
    same(x.grad, own.grad)
    same(linear.weight.grad.chunk(P, 0)[rank], layer.weight.grad)
    same(linear.bias.grad.chunk(P, 0)[rank], layer.bias.grad)


def check_row_is_the_dense_layer(rank: int) -> None:
    linear, x, g = dense(), integers(3, 4).requires_grad_(), integers(3, 6, seed=3)
    whole = linear(x)
    whole.backward(g)
    layer, own = RowParallelLinear.from_linear(linear), x.detach().chunk(P, -1)[rank].clone().requires_grad_()
    y = layer(own)
    y.backward(g)

    same(whole, y)
    same(x.grad.chunk(P, -1)[rank], own.grad)
    same(linear.weight.grad.chunk(P, 1)[rank], layer.weight.grad)
    same(linear.bias.grad, layer.bias.grad)


def check_second_derivatives_are_the_dense_ones(rank: int) -> None:
    for kind, options in (
        (ColumnParallelLinear, {"gather_output": True}),
        (RowParallelLinear, {"input_is_parallel": False}),
    ):
        linear, g = dense(), integers(3, 6, seed=3)
        found = []
        for layer in (linear, kind.from_linear(linear, **options)):
            x = integers(3, 4).requires_grad_()
            (first,) = torch.autograd.grad(layer(x) ** 2, x, g, create_graph=True)
            found.append(torch.autograd.grad(first, x, integers(3, 4, seed=5))[0])
        same(*found)


def check_derivatives_of_the_weights_gradient_are_the_dense_ones(rank: int) -> None:
    for kind, options, dim in (
        (ColumnParallelLinear, {"gather_output": True}, 0),
        (RowParallelLinear, {"input_is_parallel": False}, 1),
    ):
        linear, g, v = dense(), integers(3, 6, seed=3), integers(6, 4, seed=5)
        found = []
        for layer, own in ((linear, v), (kind.from_linear(linear, **options), v.chunk(P, dim)[rank])):
            x = integers(3, 4).requires_grad_()
            (first,) = torch.autograd.grad(layer(x) ** 2, layer.weight, g, create_graph=True)
            found.append(torch.autograd.grad(first, (x, layer.weight), own))
        (whole_x, whole_weight), (own_x, own_weight) = found
        same(whole_x, own_x)
        same(whole_weight.chunk(P, dim)[rank], own_weight)


def check_functions_keep_what_they_are_given(rank: int) -> None:
    base, up = integers(4, 2, seed=rank), integers(4, 1, seed=7 + rank)
    for function in (torch_tp.copy, torch_tp.reduce, torch_tp.gather, lambda t: torch_tp.scatter(t, 0)):
        x = base.t().contiguous().t().requires_grad_()
        y = function(x)
        g = up[:1].expand(y.shape)
        before = (x.detach().clone(), g.clone(), x._version, g._version)
        y.backward(g)

        same(before[0], x.detach())
        same(before[1], g)
        assert before[2:] == (x._version, g._version)


def check_functions_cut_and_join_the_last_dimension(rank: int) -> None:
    """Unless another is named."""
    x = integers(2, 4, 6, seed=rank)
    same(torch_tp.gather(x, 2), torch_tp.gather(x))
    same(torch_tp.scatter(x, 2), torch_tp.scatter(x))
    assert (torch_tp.gather(x).shape, torch_tp.scatter(x).shape) == ((2, 4, 12), (2, 4, 3))


def check_what_functions_return_is_the_callers_own(rank: int) -> None:
    x, g = integers(4, 2, seed=rank).requires_grad_(), integers(4, 2, seed=7)
    (gradient,) = torch.autograd.grad(torch_tp.reduce(x), x, g)

    same(g, gradient)
    assert g.untyped_storage().data_ptr() != gradient.untyped_storage().data_ptr()
    gathered = torch_tp.gather(torch.ones(3, 1), 1)
    assert gathered.is_contiguous()
    assert gathered.stride() == (2, 1)


def check_copies_and_pickles_keep_the_group(rank: int) -> None:
    layer = ColumnParallelLinear.from_linear(dense(), gather_output=True)
    expected = layer(integers(3, 4))
    twin = copy.deepcopy(layer)
    assert twin._group is layer._group
    assert (torch_tp.Shard(0), torch_tp.Shard(0)) == (twin.weight.placement, twin.bias.placement)
    same(expected, twin(integers(3, 4)))
    data = pickle.dumps(layer)
    assert b"ProcessGroup" not in data
    same(expected, pickle.loads(data)(integers(3, 4)))


def check_an_unpickled_layer_finds_its_group_on_first_use(rank: int) -> None:
    data = pickle.dumps(ColumnParallelLinear.from_linear(dense(), gather_output=True))
    dist.destroy_process_group()
    layer = pickle.loads(data)
    assert "rank=?" in repr(layer)
    refusal(NoProcessGroupError, r"global ranks \[0, 1\].*no process group", lambda: layer(integers(3, 4)))
    second_world(rank)
    same(dense()(integers(3, 4)), layer(integers(3, 4)))
    assert rank == layer.rank


def check_an_unpickled_layer_of_a_missing_group_is_refused(rank: int) -> None:
    data = pickle.dumps(ColumnParallelLinear(4, 6)).replace(b"K\x00K\x01\x86", b"K\x00K\x07\x86")
    refusal(NoProcessGroupError, r"global ranks \[0, 7\].*new_group", lambda: pickle.loads(data)(integers(3, 4)))


def check_init_makes_groups_of_neighbours(rank: int) -> None:
    whole = torch_tp.init_tensor_parallel()
    assert (rank, P, rank, P, "gloo") == (whole.rank, whole.world_size, whole.tp_rank, whole.tp_size, whole.backend)
    assert ColumnParallelLinear(4, 6).world_size == P
    single = torch_tp.init_tensor_parallel(tp_size=1)
    assert (rank, 0, 1) == (single.rank, single.tp_rank, single.tp_size)
    layer = ColumnParallelLinear(4, 6)
    assert (layer.rank, layer.world_size) == (0, 1)
    assert (rank,) == layer._group.global_ranks
    refusal(ValueError, "tp_size = 3 with 2 processes", lambda: torch_tp.init_tensor_parallel(tp_size=3))
    refusal(ValueError, "backend = 'nccl', but .*'gloo'", lambda: torch_tp.init_tensor_parallel("nccl"))


def check_the_same_group_is_made_once(rank: int) -> None:
    groups = []
    for _ in range(2):
        torch_tp.init_tensor_parallel(tp_size=1)
        groups.append(ColumnParallelLinear(4, 6)._group.process_group)
    assert groups[0] is groups[1]


def check_synchronizing_waits_for_the_last(rank: int) -> None:
    mark = Path(os.environ["TP_TEST_STORE"] + "-mark")
    if rank == 1:
        time.sleep(0.5)
        mark.touch()
    torch_tp.synchronize_across_ranks()
    assert mark.exists()


def check_a_default_group_does_not_outlive_its_world(rank: int) -> None:
    torch_tp.init_tensor_parallel(tp_size=1)
    dist.destroy_process_group()
    refusal(NoProcessGroupError, "there is no process group", lambda: ColumnParallelLinear(4, 6))
    second_world(rank)
    assert ColumnParallelLinear(4, 6).world_size == P


def check_meshes_are_groups(rank: int) -> None:
    mesh = init_device_mesh("cpu", (P,), mesh_dim_names=("tp",))
    layer = ColumnParallelLinear.from_linear(dense(), group=mesh, gather_output=True)
    same(dense()(integers(3, 4)), layer(integers(3, 4)))
    flat = init_device_mesh("cpu", (1, P), mesh_dim_names=("dp", "tp"))
    assert ColumnParallelLinear(4, 6, group=flat["tp"]).world_size == P
    refusal(RuntimeError, "mesh of 2 dimensions.*mesh\\['tp'\\]", lambda: ColumnParallelLinear(4, 6, group=flat))


def check_a_rank_outside_the_group_is_refused(rank: int) -> None:
    first = dist.new_group([0])
    if rank == 0:
        assert ColumnParallelLinear(4, 6, group=first).world_size == 1
    else:
        text = r"ColumnParallelLinear: .*global rank 1\) is not in the group"
        refusal(RuntimeError, text, lambda: ColumnParallelLinear(4, 6, group=first))


def check_utilities(rank: int) -> None:
    mine = torch.tensor([1.0, 10.0]) * (rank + 1)
    same(torch.tensor([3.0, 30.0]), torch_tp.all_reduce_sum(mine))
    same(torch.tensor([2.0, 20.0]), torch_tp.broadcast_tensor(mine, src_rank=1))
    same(torch.tensor([1.0, 10.0]) * (rank + 1), mine)
    torch_tp.synchronize_across_ranks()
    refusal(ValueError, "src_rank = 2; .* 0 to 1", lambda: torch_tp.broadcast_tensor(mine, 2))


def check_log_has_rank_operation_shape_dtype_time(rank: int) -> None:
    layer, sink = RowParallelLinear.from_linear(dense()), io.StringIO()
    handler = logging.StreamHandler(sink)
    logging.getLogger("torch_tp").addHandler(handler)
    with debugging("1"):
        layer(integers(3, 2))
    logging.getLogger("torch_tp").removeHandler(handler)

    line = rf"rank {rank} of 2: all_reduce of \[3, 6\] float32 for RowParallelLinear forward: "
    assert re.fullmatch(rf"{line}entered\n{line}left after \d+\.\d\d\d ms\n", sink.getvalue()), sink.getvalue()


def check_log_goes_to_stderr_only_where_nothing_listens(rank: int) -> None:
    logger = logging.getLogger("torch_tp")
    assert not logger.handlers
    logging.getLogger().addHandler(logging.NullHandler())
    with debugging("1"):
        torch_tp.reduce(torch.ones(1))
    assert not logger.handlers
    logging.getLogger().handlers.clear()
    captured = io.StringIO()
    with debugging("1"), contextlib.redirect_stderr(captured):
        torch_tp.reduce(torch.ones(1))
    assert "all_reduce of [1] float32" in captured.getvalue()
    logger.handlers.clear()


def check_agreement_passes_the_check(rank: int) -> None:
    with debugging("check"):
        check_column_is_the_dense_layer(rank)
        check_row_is_the_dense_layer(rank)
        check_functions_on_empty_tensors(rank)
        # Terms and slices are the ranks' own.
        torch_tp.reduce(integers(2, 3) + rank)
        torch_tp.gather(integers(2, 3) + rank)


def check_functions_on_empty_tensors(rank: int) -> None:
    for shape in ((0, 2), (2, 0, 2)):
        for function in (torch_tp.copy, torch_tp.reduce, torch_tp.gather, torch_tp.scatter):
            x = torch.ones(shape).requires_grad_()
            y = function(x)
            y.backward(torch.ones(y.shape))
            assert x.shape == x.grad.shape


def check_disagreements_are_named_on_every_rank(rank: int) -> None:
    other = rank == 1
    x = integers(3, 4)
    column, row = ColumnParallelLinear.from_linear(dense()), RowParallelLinear.from_linear(dense())
    wide = ColumnParallelLinear(4, 6, gather_output=other)
    frozen = ColumnParallelLinear.from_linear(dense())
    frozen.weight.requires_grad_(not other)
    drifted = RowParallelLinear.from_linear(dense())
    with torch.no_grad():
        drifted.bias += rank
    cases = {
        r"shape is \[3, 4\] on rank 0, \[2, 4\] on rank 1": lambda: column(x[: 3 - rank]),
        r"dtype is float32 on rank 0, float64 on rank 1": lambda: column(x.double() if other else x),
        r"requires_grad of the input is False on rank 0, True on rank 1": lambda: column(x.requires_grad_(other)),
        r"checksum of the replicated input is \w+ on rank 0, \w+ on rank 1": lambda: column(x.detach() + rank),
        r"gather_output is False on rank 0, True on rank 1": lambda: wide(x.detach()),
        r"requires_grad of weight is True on rank 0, False on rank 1": lambda: frozen(x.detach()),
        r"checksum of the replicated bias is \w+ on rank 0": lambda: drifted(x.detach()[:, :2]),
        r"operation is ColumnParallelLinear forward on rank 0, RowParallelLinear forward on rank 1": lambda: (
            row(x.detach()[:, :2]) if other else column(x.detach())
        ),
        r"dim is 0 on rank 0, 1 on rank 1": lambda: torch_tp.gather(x.detach(), rank),
        r"requires_grad is False on rank 0, True on rank 1": lambda: torch_tp.copy(x.detach().requires_grad_(other)),
        r"checksum of the replicated input is \w+ on rank 0": lambda: torch_tp.copy(x.detach() + rank),
        r"checksum of the replicated input is": lambda: torch_tp.scatter(x.detach() + rank),
        r"src_rank is 0 on rank 0, 1 on rank 1": lambda: torch_tp.broadcast_tensor(x.detach(), rank),
        # What one rank alone would refuse, while the other waited for it.
        r"src_rank is 0 on rank 0, 9 on rank 1": lambda: torch_tp.broadcast_tensor(x.detach(), 9 * rank),
        r"type is absent on rank 0, NoneType on rank 1": lambda: column(None if other else x.detach()),
        r"type is absent on rank 0, list on rank 1": lambda: torch_tp.reduce([1.0] if other else x.detach()),
        r"device is cpu on rank 0, meta on rank 1": lambda: column(x.detach().to("meta") if other else x.detach()),
    }
    with debugging("check"):
        for text, attempt in cases.items():
            refusal(RankMismatchError, f"the ranks of the group disagree: .*{text}", attempt)


def check_a_backward_that_disagrees_is_named(rank: int) -> None:
    # Each forward is alike on both ranks; only the order of the backwards is not.
    with debugging("check"):
        x, z = integers(3, 4).requires_grad_(), integers(5, 4).requires_grad_()
        layer = ColumnParallelLinear.from_linear(dense())
        outputs = [layer(x), layer(z)]
        y = outputs[rank]
        refusal(
            RankMismatchError, r"backward.*shape is \[3, 4\] on rank 0, \[5, 4\] on rank 1", lambda: y.sum().backward()
        )


def check_a_refusal_all_ranks_share_leaves_the_group_usable(rank: int) -> None:
    layer = RowParallelLinear.from_linear(dense())
    text = r"RowParallelLinear: the input has shape \[3, 4\]; its last dimension must be in_features / P = 2 \(P = 2\)"
    refusal(ValueError, text, lambda: layer(integers(3, 4)))
    refusal(ValueError, "out_features = 5 cannot be cut into P = 2", lambda: ColumnParallelLinear(4, 5))
    refusal(ValueError, "dimension 0 .* has size 3, which P = 2", lambda: torch_tp.scatter(integers(3, 4), 0))
    check_row_is_the_dense_layer(rank)


def check_checkpointing(rank: int) -> None:
    linear, g = dense(), integers(3, 6, seed=3)
    for reentrant in (True, False):
        layer = ColumnParallelLinear.from_linear(linear, gather_output=True)
        plain, again = integers(3, 4).requires_grad_(), integers(3, 4).requires_grad_()
        layer(plain).backward(g)
        expected = layer.weight.grad.clone()
        layer.zero_grad()
        checkpoint(layer, again, use_reentrant=reentrant).backward(g)
        same(plain.grad, again.grad)
        same(expected, layer.weight.grad)


def check_compiled_is_eager(rank: int) -> None:
    for kind, options in (
        (ColumnParallelLinear, {"gather_output": True}),
        (RowParallelLinear, {"input_is_parallel": False}),
    ):
        torch._dynamo.reset()
        layer, g = kind.from_linear(dense(), **options), integers(3, 6, seed=3)
        found = []
        for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            x = integers(3, 4).requires_grad_()
            layer.zero_grad()
            y = run(x)
            y.backward(g)
            found.append([y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
        for expected, actual in zip(*found, strict=True):
            same(expected, actual)


def check_forward_mode_gradients_of_a_sum_are_refused_not_wrong(rank: int) -> None:
    layer = RowParallelLinear(4, 3, bias=False)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode(), forward_ad.dual_level():
            x = forward_ad.make_dual(integers(2, 2), integers(2, 2, seed=5))
            refusal(NotImplementedError, "jvp|forward mode", lambda x=x: layer(x))


def check_merged_parts_are_those_of_separate_layers(rank: int) -> None:
    linears = [dense(3, 4), dense(3, 8)]
    with torch.no_grad():
        linears[1].weight.neg_()
    for gathers in (False, True):
        layer = MergedColumnParallelLinear.from_linears(linears, gather_output=gathers)
        x, alike = (integers(5, 3).requires_grad_() for _ in range(2))
        parts, whole = layer.split(layer(x)), [linear(alike) for linear in linears]
        upstream = [integers(5, size, seed=size) for size in (4, 8)]
        torch.autograd.backward(whole, upstream)
        own = upstream if gathers else [g.chunk(P, -1)[rank] for g in upstream]
        torch.autograd.backward(parts, own)
        for part, expected in zip(parts, whole, strict=True):
            same(expected.detach() if gathers else expected.detach().chunk(P, -1)[rank], part.detach())
        same(alike.grad, x.grad)
        for name in ("weight", "bias"):
            gradients = [linear.get_parameter(name).grad for linear in linears]
            same(torch.cat([grad.chunk(P)[rank] for grad in gradients]), layer.get_parameter(name).grad)
        for linear in linears:
            linear.zero_grad()


def check_copies_of_a_key_and_value_head_get_one_gradient(rank: int) -> None:
    D = 2
    for heads, kv_heads, E in ((4, 4, 2), (4, 2, 2), (4, 1, 2), (4, 2, 3), (4, 1, 1)):
        linear = dense(3, (heads + kv_heads) * D + kv_heads * E)
        layer = QKVParallelLinear.from_linear(linear, D, heads, kv_heads, v_head_size=E)
        x, alike = (integers(5, 3).requires_grad_() for _ in range(2))
        for _ in range(2):  # gradients accumulate
            whole = linear(alike).split([heads * D, kv_heads * D, kv_heads * E], -1)
            scored(whole, heads, kv_heads, (D, E), slice(0, heads)).backward()
            mine = slice(rank * heads // P, (rank + 1) * heads // P)
            scored(layer.split(layer(x)), heads // P, layer.num_kv_heads, (D, E), mine).backward()
            same(alike.grad, x.grad)
            for name in ("weight", "bias"):
                parameter, expected = layer.get_parameter(name), linear.get_parameter(name).grad
                held = [row for part in layer.placements[name].ranges(len(expected), P, rank) for row in part]
                same(expected[held], parameter.grad)


def scored(parts, heads: int, kv_heads: int, sizes: tuple[int, int], mine: slice) -> Tensor:
    """A number that every head enters differently, as in grouped-query attention."""
    q, k, v = (part.unflatten(-1, (-1, size)) for part, size in zip(parts, (*sizes[:1], *sizes), strict=True))
    k, v = (part.repeat_interleave(heads // kv_heads, -2) for part in (k, v))
    weights = torch.arange(1.0, 9.0)[mine].view(-1, 1)
    return ((q * k).sum(-1, keepdim=True) * weights + v * weights).sum()


def check_blocks_of_ranks_are_made_once(rank: int) -> None:
    group = torch_tp.group.find_group("test")
    assert torch_tp.group.neighbours(group, P) is group
    assert torch_tp.group.neighbours(group, 1).size == 1
