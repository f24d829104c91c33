"""What is checked on two ranks of layers that share the all-reduce of one input's gradient.

Every check runs the dense layers and the parallel ones on the same small integers: sums are exact, so gradients are
equal bit for bit. `all_reduces` counts what goes over the wire.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from rank_checks import P, debugging, dense, integers, refusal, same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from torch_tp import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RankMismatchError,
    RowParallelLinear,
)
from torch_tp.layers import share_input


class Three(nn.Module):
    """Three projections of one input, and a gradient for each of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = dense(4, 6), dense(4, 2), dense(4, 8)
        with torch.no_grad():
            self.k.weight.mul_(2)
            self.v.weight.neg_()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def sharded(model: Three, shared: bool = True) -> Three:
    """The same with column-parallel layers."""
    made = copy.deepcopy(model)
    for name in ("q", "k", "v"):
        setattr(made, name, ColumnParallelLinear.from_linear(getattr(model, name)))
    if shared:
        share_input([made.q, made.k, made.v])
    return made


def score(*outputs: Tensor, rank: int | None) -> Tensor:
    """A number in which every element of every output has another weight; on a rank its shard of the outputs."""
    total = torch.zeros(())
    for number, y in enumerate(outputs):
        width = y.shape[-1] * (1 if rank is None else P)
        weights = integers(y.shape[0], width, seed=10 + number)
        total = total + (y.float() * (weights if rank is None else weights.chunk(P, -1)[rank])).sum()
    return total


@contextlib.contextmanager
def all_reduces() -> Iterator[list[Tensor]]:
    """What is all-reduced meanwhile."""
    seen: list[Tensor] = []
    real = dist.all_reduce

    def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tensor)
        return real(tensor, *args, **kwargs)

    dist.all_reduce = recorded
    try:
        yield seen
    finally:
        dist.all_reduce = real


Run = Callable[[Three, Tensor], tuple[Tensor, ...]]


def compared(rank: int, run: Run, count: int, prepare: Callable[[Three], object] = lambda model: None) -> None:
    """The gradients of a run are the dense ones, its forward needs no all-reduce, and its backward this many."""
    model = Three()
    prepare(model)
    parallel, a, b = sharded(model), integers(5, 4).requires_grad_(), integers(5, 4).requires_grad_()
    score(*run(model, a), rank=None).backward()
    with all_reduces() as seen:
        outputs = run(parallel, b)
        forwards = len(seen)
        score(*outputs, rank=rank).backward()
    assert (forwards, len(seen)) == (0, count), seen
    same(a.grad, b.grad)
    alike(rank, model, parallel)


def alike(rank: int, model: Three, parallel: Three) -> None:
    for name, parameter in model.named_parameters():
        own = parallel.get_parameter(name).grad
        if parameter.grad is None:
            assert own is None
        else:
            same(parameter.grad.chunk(P)[rank], own)


def check_three_layers_reduce_their_inputs_gradient_once(rank: int) -> None:
    compared(rank, lambda model, x: model(x), 1)
    compared(rank, lambda model, x: model(x * 2), 1)
    apart, x = sharded(Three(), shared=False), integers(5, 4).requires_grad_()
    with all_reduces() as seen:
        score(*apart(x), rank=rank).backward()
    assert len(seen) == 3


def check_all_kinds_of_column_layers_share(rank: int) -> None:
    linears = [dense(4, 6), dense(4, 8), dense(4, 8)]
    layers = [
        ColumnParallelLinear.from_linear(linears[0], gather_output=True),
        MergedColumnParallelLinear.from_linear(linears[1], [4, 4]),
        QKVParallelLinear.from_linear(linears[2], 2, 2, 1),
    ]
    share_input(layers)
    x = integers(5, 4).requires_grad_()
    with all_reduces() as seen:
        ys = [layer(x) for layer in layers]
        torch.autograd.backward(ys, [torch.ones_like(y) for y in ys])
    assert sorted(list(each.shape) for each in seen) == [[4], [4, 4], [5, 4]]  # the copies' gradients, the input's
    assert layers[0].shared_input is layers[2].shared_input
    # The copies of a key and value head are used by both ranks.
    weights = [torch.ones(6), torch.ones(8), torch.tensor([1.0] * 4 + [2.0] * 4)]
    same(sum(w @ linear.weight.detach() for w, linear in zip(weights, linears, strict=True)).expand(5, 4), x.grad)


def check_layers_that_are_called_otherwise_stay_right(rank: int) -> None:
    """With another tensor, twice, not at all, again after all, and after a backward."""
    compared(rank, lambda m, x: (m.q(x), m.k(x * 2), m.v(x)), 3)
    compared(rank, lambda m, x: (m.q(x), m.k(x), m.v(x.clone())), 2)
    compared(rank, lambda m, x: (m.q(x), m.q(x), m.k(x), m.v(x)), 1)
    compared(rank, lambda m, x: (m.v(x), m.q(x)), 1)
    compared(rank, lambda m, x: (*m(x), m.k(x)), 2)
    compared(rank, lambda m, x: (*m(x), *m(x)), 2)

    def with_a_backward_between(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        own = rank if isinstance(model.q, ColumnParallelLinear) else None
        y, z = model.q(x), model.k(x)
        with all_reduces():
            score(y, rank=own).backward(retain_graph=True)
        return z, model.v(x)

    model, a, b = Three(), integers(5, 4).requires_grad_(), integers(5, 4).requires_grad_()
    parallel = sharded(model)
    score(*with_a_backward_between(model, a), rank=None).backward()
    score(*with_a_backward_between(parallel, b), rank=rank).backward()
    same(a.grad, b.grad)
    alike(rank, model, parallel)


def check_frozen_weights(rank: int) -> None:
    compared(rank, lambda model, x: model(x), 1, lambda model: model.requires_grad_(False))
    compared(rank, lambda model, x: model(x), 1, lambda model: model.k.requires_grad_(False))
    model = sharded(Three())
    with all_reduces() as seen:
        score(*model(integers(5, 4)), rank=rank).backward()
    assert not seen


def check_calls_without_gradients_make_no_copy(rank: int) -> None:
    model, x = sharded(Three()), integers(5, 4).requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = model.q(x)
        assert model.q.shared_input._current is None
        assert y.grad_fn is None

    def between(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        y = model.q(x)
        with torch.no_grad():
            model.k(x)
        return y, model.k(x), model.v(x)

    compared(rank, between, 1)


def check_an_input_that_changes_in_place(rank: int) -> None:
    def changed(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        x = x * 2
        y = model.q(x)
        x.mul_(3)
        return y, model.k(x), model.v(x)

    compared(rank, changed, 2, lambda model: model.q.requires_grad_(False))
    model = sharded(Three())
    y = changed(model, integers(5, 4).requires_grad_())[0]
    refusal(RuntimeError, "modified by an inplace operation", lambda: y.sum().backward())


def check_autocast(rank: int) -> None:
    def narrow(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    def mixed(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            y = model.q(x)
        return y, model.k(x), model.v(x)

    model, x = sharded(Three()), integers(5, 4).requires_grad_()
    with all_reduces() as seen:
        y = narrow(model, x)
        score(*y, rank=rank).backward()
    assert [each.dtype for each in (y[0], *seen, x.grad)] == [torch.bfloat16, torch.bfloat16, torch.float32]
    compared(rank, narrow, 1)
    compared(rank, mixed, 2)


def check_activation_checkpoints(rank: int) -> None:
    for reentrant in (True, False):
        compared(rank, lambda m, x, r=reentrant: checkpoint(m, x * 2, use_reentrant=r), 1)
        compared(rank, lambda m, x, r=reentrant: (*checkpoint(m, x, use_reentrant=r), *m(x)), 2)
        # An input that stays the same object; each checkpoint of the reentrant kind has an input of its own.
        compared(
            rank,
            lambda m, x, r=reentrant: tuple(checkpoint(one, x, use_reentrant=r) for one in (m.q, m.k, m.v)),
            3 if reentrant else 1,
        )
        compared(rank, lambda m, x, r=reentrant: (m.q(x), checkpoint(m.k, x, use_reentrant=r)), 1 + reentrant)
    with set_checkpoint_early_stop(False):
        compared(rank, lambda model, x: checkpoint(model, x * 2, use_reentrant=False), 1)


def check_a_recomputation_that_stops_early_leaves_nothing(rank: int) -> None:
    """The recomputed copy is one that no backward reaches."""
    model = sharded(Three())
    model.k.requires_grad_(False)
    for x in (integers(5, 4).requires_grad_(), integers(5, 4).requires_grad_() * 2):
        y, z = checkpoint(lambda x: (model.q(x), model.k(x)), x, use_reentrant=False)
        alive, total = weakref.ref(x), y.sum() + z.sum()
        del x, y, z
        with all_reduces() as seen:
            total.backward()
        assert len(seen) == 1
        assert model.q.shared_input._current is None
        del total
    gc.collect()
    assert alive() is None


def check_compiled_layers_reduce_by_themselves(rank: int) -> None:
    torch._dynamo.reset()
    model = Three()
    parallel, a, b = sharded(model), integers(5, 4).requires_grad_(), integers(5, 4).requires_grad_()
    score(*model(a), rank=None).backward()
    score(*torch.compile(parallel, fullgraph=True, backend="aot_eager")(b), rank=rank).backward()
    same(a.grad, b.grad)
    alike(rank, model, parallel)
    assert parallel.q.shared_input._current is None


def check_copies_and_pickles_share_among_themselves(rank: int) -> None:
    model, x = sharded(Three()), integers(5, 4).requires_grad_()
    y = model.q(x)
    assert model.q.shared_input._current is not None
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.q.shared_input is twin.v.shared_input is not model.q.shared_input
        assert twin.q.shared_input._current is None
        z = integers(5, 4).requires_grad_()
        with all_reduces() as seen:
            score(*twin(z), rank=rank).backward()
        assert len(seen) == 1
    score(y, model.k(x), model.v(x), rank=rank).backward()
    same(z.grad, x.grad)
    alone, w = copy.deepcopy(model.q), integers(5, 4).requires_grad_()
    score(alone(w), rank=rank).backward()
    score(model.q(x), rank=rank).backward()
    same(z.grad + w.grad, x.grad)


def check_second_derivatives(rank: int) -> None:
    model = Three()
    found: list[list[Tensor]] = []
    for each, own in ((model, None), (sharded(model), rank)):
        x = integers(5, 4).requires_grad_()
        outputs = [y * y for y in each(x)]
        first, of_weight = torch.autograd.grad(
            score(*outputs, rank=own), (x, each.k.weight), create_graph=True, materialize_grads=True
        )
        v = integers(2, 4, seed=7)
        by_x = torch.autograd.grad(first, x, integers(5, 4, seed=5), retain_graph=True)[0]
        by_weight = torch.autograd.grad(of_weight, x, v if own is None else v.chunk(P)[rank])[0]
        found.append([first.detach(), by_x, by_weight])
    for expected, actual in zip(*found, strict=True):
        same(expected, actual)


def check_hooks_see_what_they_see_of_dense_layers(rank: int) -> None:
    def prepare(model: Three) -> None:
        model.k.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def hooked(model: Three, x: Tensor) -> tuple[Tensor, ...]:
        """Each of the layers has the inputs' gradient of itself alone, which is whole before a hook sees it."""
        for name in ("q", "v"):
            getattr(model, name).register_full_backward_hook(lambda _, grads, __: seen.append(grads[0].clone()))
        return model(x)

    model, seen = Three(), []
    prepare(model)
    parallel = sharded(model)
    parallel.k.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    for each, own in ((model, None), (parallel, rank)):
        score(*hooked(each, integers(5, 4).requires_grad_()), rank=own).backward()
    for expected, actual in zip(seen[:2], seen[2:], strict=True):
        same(expected, actual)
    alike(rank, model, parallel)


def check_no_input_is_kept_alive(rank: int) -> None:
    def lives(use: Callable[[Tensor], object]) -> bool:
        x = integers(5, 4).requires_grad_() * 2
        alive = weakref.ref(x)
        outputs = use(x)
        del x, outputs
        gc.collect()
        return alive() is not None or model.q.shared_input._current is not None

    model = sharded(Three())
    assert not lives(lambda x: score(*model(x), rank=rank).backward())
    assert not lives(lambda x: score(model.q(x), rank=rank).backward())
    assert not lives(model)
    assert not lives(model.q)
    leaf = integers(5, 4).requires_grad_()
    alive = weakref.ref(leaf)
    score(model.q(leaf), rank=rank).backward()
    assert model.q.shared_input._current is None
    del leaf
    assert alive() is None
    x = integers(5, 4).requires_grad_()
    ys = model(x)
    assert model.q.shared_input._current is None  # all have used it, and the backward is still to come
    del ys


def check_a_copy_goes_with_its_layers(rank: int) -> None:
    """At once, without the help of a garbage collector."""
    x = integers(5, 4).requires_grad_()
    for used in ("q", "k"):
        model = sharded(Three())
        y = model.get_submodule(used)(x)
        assert model.q.shared_input._current is not None
        shared = weakref.ref(model.q.shared_input)
        del model, y
        assert shared() is None


def check_ranks_are_compared(rank: int) -> None:
    with debugging("check"):
        compared(rank, lambda model, x: model(x), 1)
        model, x = sharded(Three(), shared=rank == 0), integers(5, 4).requires_grad_()
        outputs = model(x)
        text = r"the ranks of the group disagree: operation is .*copy.* on rank 0, ColumnParallelLinear backward"
        refusal(RankMismatchError, text, lambda: score(*outputs, rank=rank).backward())


def check_what_cannot_share_is_refused(rank: int) -> None:
    layers = [ColumnParallelLinear(4, 6), ColumnParallelLinear(4, 2)]
    refusal(TypeError, "share_input: got a RowParallelLinear", lambda: share_input([*layers, RowParallelLinear(4, 2)]))
    text = r"share_input: the layers differ in in_features: \[4, 6\]"
    refusal(ValueError, text, lambda: share_input([layers[0], ColumnParallelLinear(6, 2)]))
    alone = ColumnParallelLinear(4, 6, rank=rank, world_size=P)
    refusal(
        ValueError, r"share_input: the layers differ in ranks: \[\(0, 1\), ", lambda: share_input([layers[0], alone])
    )
    assert all(layer.shared_input is None for layer in layers)


def check_a_lone_layer_reduces_by_itself(rank: int) -> None:
    layer, x = ColumnParallelLinear.from_linear(dense()), integers(5, 4).requires_grad_()
    share_input([layer])
    share_input([layer, layer])
    assert layer.shared_input is None
    share_input([layer, ColumnParallelLinear(4, 6)])
    share_input([layer])
    assert layer.shared_input is None
    assert layer(x).grad_fn.name() == "_ColumnProductBackward"
    assert layer(x).grad_fn.next_functions[0][0].name().endswith("AccumulateGrad")
