"""The table of operators: where each dimension goes, in which arguments an operator is linear, and what it starts.

An operator that has no row proves nothing: whatever is sharded on its way in is replicated, and the report names the
operator. Operators that torch itself tags as pointwise, with one result, have the row of all pointwise ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_tp.models import choices as c
from torch_tp.models import neural as n
from torch_tp.models import specials as s
from torch_tp.models.cuts import Cuts
from torch_tp.models.factors import factors
from torch_tp.models.rules import Call, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        rule: says how the results are sharded.
        linear: positions of the tensors in each of which alone the operator is linear, the others being fixed: a
            partial sum there gives partial sums.
        jointly: it is linear in all tensors at once: partial sums everywhere give partial sums.
        added: the position of a tensor that is added to what is linear in the others.
        starts: (tensor, dimension) pairs that a product has free, with which sharding a parameter can start.
        gradient: whether a gradient flows back.
        chooses: it takes some entries of its first tensor, which other tensors name.
    """

    rule: Rule
    linear: frozenset[int] = frozenset()
    jointly: bool = False
    added: int | None = None
    starts: tuple[tuple[int, int], ...] = ()
    gradient: bool = True
    chooses: bool = False


_TABLE: dict[Any, Operator] = {}


def row(names: str, rule: Rule, linear: Iterable[int] = (), **further: Any) -> None:
    """Add the row of some operators of aten; a name that this torch does not have is left out."""
    for name in names.split():
        if hasattr(aten, name):
            _TABLE[getattr(aten, name)] = Operator(rule, frozenset(linear), **further)


_ONE = (0,)
_SAME = "clone _to_copy alias contiguous lift_fresh resolve_conj conj_physical _conj"
row(_SAME, s.same, _ONE)
row("detach", s.same, _ONE, gradient=False)
row("empty_like zeros_like ones_like full_like rand_like randn_like randint_like", s.same, gradient=False)
row("bernoulli_ uniform_ normal_ exponential_ zero_", s.pointwise, gradient=False)
row("native_dropout _fused_dropout log_sigmoid_forward", s.same)
row("new_empty new_zeros new_ones new_full new_empty_strided zeros ones full empty rand randn arange", s.fresh)

row("view _unsafe_view reshape", s.view, _ONE)
row("squeeze squeeze_", s.squeeze, _ONE)
row("expand", s.expand, _ONE)
row("repeat", s.repeat, _ONE)
row("t", s.t, _ONE)
row("transpose transpose_", s.transpose, _ONE)
row("permute", s.permute, _ONE)
row("unsqueeze unsqueeze_", s.unsqueeze, _ONE)
row("slice", s.slice_, _ONE)
row("select unbind", s.select, _ONE)
row("split split_with_sizes", s.split, _ONE)
row("cat", s.cat, jointly=True)
row("stack", s.stack, jointly=True)
row("constant_pad_nd", s.pad)
row("view_as_complex", s.as_complex, _ONE)
row("view_as_real", s.same, _ONE)
row("diagonal", s.diagonal, _ONE)
row("unfold", s.unfold, _ONE)

row("add add_ sub sub_", s.pointwise, jointly=True)
row("mul mul_", s.pointwise, (0, 1))
row("div div_", s.pointwise, _ONE)
row("neg neg_", s.pointwise, _ONE)
row("copy_ polar complex _prelu_kernel where copysign_ rsub floor_divide hardswish hardswish_", s.pointwise)
row("masked_fill masked_fill_ fill fill_", s.pointwise)
row("linalg_cross", s.cross, (0, 1))
row("bucketize", c.looked_up)
row("triu tril triu_ tril_", s.along(9, "", "a triangle is taken of its shards", (-2, -1)), _ONE)

_MIXED = "a softmax runs over its sharded dimension"
row("_softmax _log_softmax _safe_softmax", s.along(1, "dim", _MIXED))
row("topk", s.along(2, "dim", "entries are ordered along its sharded dimension", -1))
row("sort argsort", s.along(1, "dim", "entries are ordered along its sharded dimension", -1))
row("kthvalue", s.reduction(2, "aten.kthvalue", -1))
row("mode", s.reduction(1, "aten.mode", -1))
row("cumsum", s.along(1, "dim", "a running sum is taken along its sharded dimension"), _ONE)
row("cumprod logcumsumexp cummax cummin", s.along(1, "dim", "a running value is taken along its sharded dimension"))
row("flip", s.along(1, "dims", "it is turned around along its sharded dimension"), _ONE)
row("roll", s.along(2, "dims", "it is rolled along its sharded dimension", ()), _ONE)
for _name in (
    "max",
    "min",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "any",
    "all",
    "prod",
    "logsumexp",
    "argmax",
    "argmin",
    "median",
    "nanmedian",
    "aminmax",
    "std_mean",
    "nansum",
    "count_nonzero",
):
    row(_name, s.reduction(1, f"aten.{_name}"))
for _name in ("mean", "sum"):
    row(_name, s.reduction(1, f"aten.{_name}"), _ONE)
for _name in ("linalg_vector_norm", "norm"):
    row(_name, s.reduction(2, f"aten.{_name}"))
row("_fft_r2c _fft_c2c _fft_c2r", s.along(1, "dim", "a Fourier transform runs along its sharded dimension"), _ONE)
row("native_layer_norm _fused_rms_norm", n.norm)
row("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm", n.batch_norm)
row("native_group_norm", n.group_norm)
row("_weight_norm_interface", n.weight_norm)
row("glu", n.glu)
row("max_pool2d_with_indices adaptive_max_pool2d", n.spatial(2))
row("max_pool3d_with_indices adaptive_max_pool3d", n.spatial(3))
for _wide in (1, 2, 3):
    _kinds = "nearest linear _nearest_exact" if _wide == 1 else "nearest bilinear bicubic trilinear _nearest_exact"
    _names = [f"avg_pool{_wide}d _adaptive_avg_pool{_wide}d reflection_pad{_wide}d replication_pad{_wide}d"]
    _names += [f"{'_' * (k[0] == '_')}upsample_{k.strip('_')}{_wide}d" for k in _kinds.split()]
    _names += [f"_upsample_{k}{_wide}d_aa" for k in ("bilinear", "bicubic")]
    row(" ".join(_names), n.spatial(_wide), _ONE)
row("pixel_shuffle pixel_unshuffle im2col col2im", n.images, _ONE)
row("grid_sampler_2d", factors("n c Y X, n y x T -> n c y x"), _ONE)
row("grid_sampler_3d", factors("n c Z Y X, n z y x T -> n c z y x"), _ONE)

row("mm", factors("i k, k j -> i j"), (0, 1), starts=((0, 0), (1, 1)))
row("bmm", factors("b i k, b k j -> b i j"), (0, 1), starts=((0, 1), (1, 2)))
row("addmm", factors("i j, i k, k j -> i j"), (1, 2), added=0, starts=((1, 0), (2, 1)))
row("baddbmm", factors("b i j, b i k, b k j -> b i j"), (1, 2), added=0, starts=((1, 1), (2, 2)))
row("mv", factors("i k, k -> i"), (0, 1))
row("addmv", factors("i, i k, k -> i"), (1, 2), added=0)
row("addr", factors("i j, i, j -> i j"), (1, 2), added=0)
row("addbmm", factors("i j, b i k, b k j -> i j"), (1, 2), added=0)
row("dot vdot", factors("k, k ->"), (0, 1))
_SDPA = "flash_attention_for_cpu flash_attention efficient_attention cudnn_attention"
row(" ".join(f"_scaled_dot_product_{kind}" for kind in _SDPA.split()), n.attention)
row("convolution", n.convolution, (0, 1), added=2, starts=((1, 0),))

row("embedding", c.embedding, _ONE, chooses=True)
row("index _unsafe_index", c.index, _ONE, chooses=True)
row("index_select", c.by_index(0), _ONE, chooses=True)
row("gather", c.by_index(1), _ONE)
row("index_put index_put_ _index_put_impl_ _unsafe_index_put", c.index_put)
row(
    "scatter scatter_ scatter_add scatter_add_ scatter_reduce"
    " index_add index_add_ index_copy index_copy_ index_fill index_fill_",
    c.by_index(1),
)


def _rows_by_matrices(call: Call) -> Sequence[Cuts]:
    """Runs of rows, each with a matrix of its own; or matrices with runs of columns, of which nothing is known."""
    if call.first.dim == 2:
        return _RUNS(call)
    for x in call.operands:
        call.without(x.cuts, x.cuts, "its columns are taken in runs")
    return [{}]


_RUNS = factors("I k, E k j -> I j")


def _grouped() -> Mapping[int, Operator]:
    """A product of rows with one matrix of several for each, by the number of dimensions of both together."""
    return {
        4: Operator(factors("i K, K j -> E i j"), frozenset({0, 1}), starts=((0, 0), (1, 1))),
        5: Operator(_rows_by_matrices, frozenset({0, 1}), starts=((1, 2),)),
        6: Operator(factors("b i k, b k j -> b i j"), frozenset({0, 1}), starts=((0, 1), (1, 2))),
    }


_GROUPED = _grouped()
_POINTWISE = Operator(s.pointwise)


def operator_of(func: Any, dims: int = 0, results: int = 1) -> Operator | None:
    """The row of an operator, or None.

    Args:
        dims: the number of dimensions of the first two tensors together.
        results: how many tensors it gives.
    """
    packet = getattr(func, "overloadpacket", None)
    if packet is getattr(aten, "_grouped_mm", 0):
        return _GROUPED.get(dims)
    found = _TABLE.get(packet)
    if found is None and packet is not None and torch.Tag.pointwise in func.tags and results == 1:
        found = _POINTWISE
    return found


def table() -> Mapping[Any, Operator]:
    """All rows, by operator."""
    return dict(_TABLE)
