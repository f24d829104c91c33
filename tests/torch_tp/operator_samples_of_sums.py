"""Calls of operators that sum, order, choose and multiply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.torch_tp.operator_samples import Source, default, of
from tests.torch_tp.operator_shards import Rank, Sample

aten = torch.ops.aten


@of("_softmax _log_softmax _safe_softmax")
def _softmax(s: Source, name: str) -> Sample:
    x = s.whole()
    return Sample(default(name), (x, s.dim(x.shape), *([] if name == "_safe_softmax" else [False])))


@of("topk kthvalue sort argsort mode")
def _ordered(s: Source, name: str) -> Sample:
    x = s.distinct(s.shape())
    dim, keep = s.dim(x.shape), s.pick(False, True)
    if name == "topk":
        return Sample(aten.topk.default, (x, 1, dim))
    if name in ("kthvalue", "mode"):
        return Sample(default(name), (x, *([1] if name == "kthvalue" else []), dim, keep))
    if s.pick(False, True):
        return Sample(getattr(aten, name).stable, (x,), {"stable": True, "dim": dim})
    return Sample(default(name), (x, dim))


@of("cumsum cumprod logcumsumexp cummax cummin flip")
def _running(s: Source, name: str) -> Sample:
    x = s.distinct(s.shape()) if name in ("cummax", "cummin") else s.whole()
    dim = s.dim(x.shape)
    return Sample(default(name), (x, [dim] if name == "flip" else dim))


@of("roll")
def _rolled(s: Source, name: str) -> Sample:
    x = s.whole()
    return Sample(aten.roll.default, (x, [1], [s.dim(x.shape)]) if s.pick(True, True, False) else (x, [1]))


# Sums, means and norms over lists of dimensions.
_LISTS = "amax amin sum mean var std var_mean std_mean logsumexp linalg_vector_norm nansum count_nonzero"


@of(_LISTS)
def _reduced(s: Source, name: str) -> Sample:
    x = s.distinct(s.shape())
    dims = [s.dim(x.shape)] if s.pick(True, True, False) else []
    keep = s.pick(False, True)
    if name in ("var", "std", "var_mean", "std_mean"):
        return Sample(getattr(aten, name).correction, (x, dims or None), {"correction": 0, "keepdim": keep})
    if name == "count_nonzero":
        return Sample(aten.count_nonzero.dim_IntList, (x, dims or [0]))
    func = getattr(aten, name)
    func = getattr(func, {"sum": "dim_IntList", "mean": "dim"}.get(name, "default"))
    if name == "logsumexp":
        dims = dims or [0]
    return Sample(func, (x, *([2] if name == "linalg_vector_norm" else []), dims, keep))


@of("max min any all prod argmax argmin median nanmedian aminmax")
def _reduced_by_one(s: Source, name: str) -> Sample:
    x = s.distinct(s.shape())
    x = x > 0 if name in ("any", "all") else x
    dim, keep = s.dim(x.shape), s.pick(False, True)
    if name == "aminmax":
        return Sample(aten.aminmax.default, (x,), {"dim": dim, "keepdim": keep})
    if s.pick(True, True, False):
        kinds = {"prod": "dim_int", "argmax": "default", "argmin": "default"}
        return Sample(getattr(getattr(aten, name), kinds.get(name, "dim")), (x, dim, keep))
    return Sample(getattr(aten, name).default, (x,))


@of("max min")
def _larger(s: Source, name: str) -> Sample:
    x = s.distinct(s.shape())
    return Sample(getattr(aten, name).other, (x, s.broadcast(x.shape) + 0.5))


@of("log_sigmoid_forward hardswish hardswish_ zero_")
def _each(s: Source, name: str) -> Sample:
    return Sample(default(name), (s.whole(),))


@of("bernoulli_ copysign_ floor_divide rsub")
def _of_two(s: Source, name: str) -> Sample:
    x = s.whole()
    y = s.broadcast(x.shape)
    if name == "bernoulli_":
        return Sample(aten.bernoulli_.Tensor, (x, (y > 0).double()))
    if name == "floor_divide":
        return Sample(aten.floor_divide.default, (x, y.abs() + 1), still=frozenset([0, 1]))
    return Sample(getattr(aten, name).Tensor, (x, y.abs() + 1))


@of("masked_fill masked_fill_ fill fill_")
def _filled(s: Source, name: str) -> Sample:
    x = s.whole()
    number = s.tensor()
    if name.startswith("fill"):
        return Sample(getattr(aten, name).Tensor, (x, number))
    return Sample(getattr(aten, name).Tensor, (x, s.broadcast(x.shape) > 0, number))


@of("randint_like")
def _whole_numbers(s: Source, name: str) -> Sample:
    return Sample(aten.randint_like.default, (s.whole(), 5), shapes=True)


@of("diagonal unfold")
def _windows(s: Source, name: str) -> Sample:
    x = s.whole(2)
    dim = s.dim(x.shape)
    if name == "unfold":
        return Sample(aten.unfold.default, (x, dim, 1, 1))
    return Sample(aten.diagonal.default, (x, 0, dim, (dim + s.draw_int(1, x.dim() - 1)) % x.dim()))


@of("linalg_cross")
def _cross(s: Source, name: str) -> Sample:
    shape = s.shape(1, 3)
    dim = s.dim(shape)
    shape[dim] = 3
    other = [size if k == dim % len(shape) else s.pick(size, size, 1) for k, size in enumerate(shape)]
    return Sample(aten.linalg_cross.default, (s.tensor(*shape), s.tensor(*other)), {"dim": dim})


@of("bucketize")
def _bucketed(s: Source, name: str) -> Sample:
    return Sample(aten.bucketize.Tensor, (s.whole(), torch.arange(-3.0, 4.0, 1.0, dtype=torch.float64)[: s.pick(4, 2)]))


@of("norm")
def _plain_norm(s: Source, name: str) -> Sample:
    x = s.whole()
    if s.pick(True, True, False):
        return Sample(aten.norm.ScalarOpt_dim, (x, 2, [s.dim(x.shape)], s.pick(True, False)))
    return Sample(aten.norm.Scalar, (x, 2))


@of("_fft_r2c _fft_c2c _fft_c2r")
def _fourier(s: Source, name: str) -> Sample:
    x = s.tensor(*s.shape(1, 3, (4, 8)))
    dim = s.dim(x.shape) % x.dim()
    if name == "_fft_r2c":
        return Sample(default(name), (x, [dim], 0, s.pick(True, False)))
    z = torch.complex(x, s.tensor(*x.shape))
    return Sample(default(name), (z, [dim], 0, True) if name == "_fft_c2c" else (z, [dim], 0, 2 * x.shape[dim] - 2))


@of("mm bmm addmm baddbmm mv dot vdot addmv addr addbmm")
def _product(s: Source, name: str) -> Sample:
    b, i, j, k = (s.size() for _ in range(4))
    lead = [b] if "b" in name.removeprefix("add") or name == "baddbmm" else []
    left, right, out = {
        "mv": ([i, k], [k], [i]),
        "dot": ([k], [k], []),
        "vdot": ([k], [k], []),
        "addmv": ([i, k], [k], [i]),
        "addr": ([i], [j], [i, j]),
    }.get(name, ([*lead, i, k], [*lead, k, j], [i, j] if name == "addbmm" else [*lead, i, j]))
    factors = (s.tensor(*left), s.tensor(*right))
    if "add" not in name:
        return Sample(default(name), factors)
    return Sample(default(name), (s.broadcast(out), *factors), s.pick({}, {"beta": 2, "alpha": 3}))


@of("embedding")
def _embedding(s: Source, name: str) -> Sample:
    weight = s.tensor(s.size(), s.size())
    return Sample(aten.embedding.default, (weight, s.index(weight.shape[0], *s.shape(1, 2))))


@of("index _unsafe_index")
def _index(s: Source, name: str) -> Sample:
    x = s.whole(1, 4)
    func = getattr(aten, name).Tensor
    return Sample(func, (x, _indices(s, x, masks=not name.startswith("_unsafe"))))


def _indices(s: Source, x: Tensor, masks: bool) -> list[Any]:
    """Indices of some dimensions: vectors, tensors of more dimensions, single ones, or masks."""
    first = s.draw_int(0, x.dim() - 1)
    if masks and s.pick(False, False, True):
        covered = x.shape[first : first + s.pick(1, 2, 2)]
        return [None] * first + [s.tensor(*covered) > -2]
    listed: list[Any] = [None] * first
    shape = s.pick([4], [2, 4], [], [8], [x.shape[first]])
    for size in x.shape[first : first + s.pick(1, 1, 2, 3)]:
        listed.append(s.pick(True, True, False) and s.index(size, *shape))
    return [None if each is False else each for each in listed] if listed[-1] is not False else _indices(s, x, masks)


@of("index")
def _index_of_the_code(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.draw_int(0, x.dim() - 1)
    size = x.shape[dim]
    start = s.pick(0, size // 2)
    run = torch.arange(start, s.pick(size, max(size // 2, start + 1)))

    def local(args: list[Any], rank: Rank) -> None:
        if dim in rank.held:
            args[1] = [None] * dim + [torch.tensor([k for k, e in enumerate(rank.held[dim]) if e in run.tolist()])]

    return Sample(aten.index.Tensor, (x, [None] * dim + [run]), local=local, written=frozenset([1]))


@of("index_put index_put_ _index_put_impl_ _unsafe_index_put")
def _index_put(s: Source, name: str) -> Sample:
    x = s.whole(1, 4)
    indices = _indices(s, x, masks=not name.startswith("_unsafe"))
    shape = list(x[tuple(slice(None) if each is None else each for each in indices)].shape)
    return Sample(default(name), (x, indices, s.broadcast(shape), True))


@of("gather scatter scatter_ scatter_add scatter_add_ scatter_reduce")
def _gather(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.dim(x.shape) % x.dim()
    own = [size if s.pick(True, True, False) else max(1, size // 2) for size in x.shape]
    index = s.below(x.shape[dim], own, dim)
    if name == "gather":
        return Sample(aten.gather.default, (x, s.pick(dim, dim - x.dim()), index))
    source = s.tensor(*own)
    if name == "scatter_reduce":
        return Sample(aten.scatter_reduce.two, (x, dim, index, source, s.pick("sum", "amax")))
    if name in ("scatter", "scatter_") and s.pick(False, True):
        return Sample(getattr(aten, name).value, (x, dim, index, 2.0))
    kind = "default" if "add" in name else "src"
    return Sample(getattr(getattr(aten, name), kind), (x, dim, index, source))


@of("index_select index_add index_add_ index_copy index_copy_ index_fill index_fill_")
def _by_vector(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.dim(x.shape) % x.dim()
    count = max(1, x.shape[dim] // s.pick(1, 2))
    index = torch.randperm(x.shape[dim], generator=s.generator)[:count]
    if name == "index_select":
        return Sample(aten.index_select.default, (x, dim, index))
    if "fill" in name:
        return Sample(getattr(aten, name).int_Scalar, (x, dim, index, 2.0))
    return Sample(default(name), (x, dim, index, s.tensor(*x.shape[:dim], count, *x.shape[dim + 1 :])))
