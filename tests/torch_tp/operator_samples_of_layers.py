"""Calls of operators that layers of networks are made of: norms, attention, convolutions, pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.torch_tp.operator_samples import Source, default, of
from tests.torch_tp.operator_shards import Rank, Sample

aten = torch.ops.aten


@of("native_layer_norm _fused_rms_norm")
def _norm(s: Source, name: str) -> Sample:
    x = s.whole(2, 4)
    own = list(x.shape[-s.pick(1, 2) :])
    more = [s.tensor(*own)] + ([s.tensor(*own)] if name == "native_layer_norm" else [])
    more = s.pick(more, [None] * len(more))
    return Sample(default(name), (x, own, *more, 1e-5))


@of("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm")
def _batch_norm(s: Source, name: str) -> Sample:
    x = s.tensor(*s.shape(2, 4))
    channels = x.shape[1]
    scale, offset, mean, var = s.tensor(channels), s.tensor(channels), s.tensor(channels), s.tensor(channels).abs() + 1
    if x.numel() == channels:
        x = torch.cat([x, x + 1])
    if name == "cudnn_batch_norm":
        return Sample(default(name), (x, scale, offset, mean, var, True, 0.1, 1e-5), shapes=True)
    training = [] if name.endswith("no_training") else [s.pick(True, False)]
    given = s.pick((scale, offset), (None, None))
    still = frozenset([1, 2] if given[0] is None else [3, 4])
    return Sample(getattr(aten, name).default, (x, *given, mean, var, *training, 0.1, 1e-5), still=still)


def _group_count(groups: int) -> Callable[[list[Any], Rank], None]:
    def local(args: list[Any], rank: Rank) -> None:
        x = args[0]
        args[6] = groups * x.shape[1] // args[4]
        args[3:6] = [x.shape[0], x.shape[1], x[0, 0].numel()]

    return local


@of("native_group_norm")
def _group_norm(s: Source, name: str) -> Sample:
    x = s.tensor(s.pick(2, 4), s.pick(4, 8), *s.shape(1, 2))
    channels, groups = x.shape[1], s.pick(1, 2, 4)
    given = s.pick((s.tensor(channels), s.tensor(channels)), (None, None))
    args = (x, *given, x.shape[0], channels, x[0, 0].numel(), groups, 1e-5)
    return Sample(aten.native_group_norm.default, args, local=_group_count(groups))


@of("_weight_norm_interface")
def _weight_norm(s: Source, name: str) -> Sample:
    v = s.whole(2, 3) + 0.5
    dim = s.pick(0, v.dim() - 1)
    return Sample(default(name), (v, s.tensor(*(n if k == dim else 1 for k, n in enumerate(v.shape))), dim))


@of("glu")
def _gated(s: Source, name: str) -> Sample:
    x = s.tensor(*s.shape(1, 3, (4, 8, 2)))
    return Sample(aten.glu.default, (x, s.dim(x.shape)))


@of("pixel_shuffle pixel_unshuffle im2col col2im")
def _images(s: Source, name: str) -> Sample:
    lead, channels = [s.size()] * s.pick(0, 1), s.pick(4, 8, 2)
    if name == "pixel_shuffle":
        return Sample(default(name), (s.tensor(*lead, 4 * channels, 2, 2), 2))
    if name == "pixel_unshuffle":
        return Sample(default(name), (s.tensor(*lead, channels, 4, 4), 2))
    size, more = [2, 2], [[1, 1], [0, 0], [2, 2]]
    if name == "im2col":
        return Sample(default(name), (s.tensor(*lead, channels, 4, 4), size, *more))
    return Sample(default(name), (s.tensor(*lead, 4 * channels, 4), [4, 4], size, *more))


@of("grid_sampler_2d grid_sampler_3d")
def _grid(s: Source, name: str) -> Sample:
    n, wide = s.size(), 2 if "2d" in name else 3
    x = s.tensor(n, s.size(), *[4] * wide)
    grid = s.tensor(n, *[s.pick(2, 4) for _ in range(wide)], wide) / 4
    return Sample(default(name), (x, grid, 0, 0, False))


@of("max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d")
@of("avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d")
@of("reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d")
@of("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d")
@of("upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa")
@of("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d")
def _spatial(s: Source, name: str) -> Sample:
    """What runs over the last dimensions, with or without a batch."""
    wide = next(k for k in (1, 2, 3) if f"{k}d" in name)
    sized = "upsample" in name
    lead = [s.size() for _ in range(2 if sized else s.pick(1, 2))]
    x = s.distinct([*lead, *([4] * wide)])
    if "pad" in name:
        return Sample(default(name), (x, [1] * (2 * wide)))
    if "adaptive" in name:
        return Sample(default(name), (x, [2] * wide))
    if sized:
        linear = [False] if "linear" in name or "cubic" in name else []
        return Sample(getattr(aten, name).default, (x, [8] * wide, *linear))
    return Sample(default(name), (x, [2] * wide, [2] * wide))


@of("_scaled_dot_product_flash_attention_for_cpu")
def _attention(s: Source, name: str) -> Sample:
    b, h, length, wide = s.size(), s.size(), 4, s.pick(4, 8)
    q, k, v = s.tensor(b, h, length, wide), s.tensor(b, h, 8, wide), s.tensor(b, h, 8, wide)
    if s.pick(False, True):
        mask = s.tensor(*s.pick([b, h, length, 8], [length, 8], [b, 1, length, 8], [1, h, length, 8]))
        args = s.pick((q, k, v), (q, k, v, 0.0), (q, k, v, 0.0, False))
        return Sample(default(name), args, {"attn_mask": mask}, still=frozenset([3]))
    return Sample(default(name), (q, k, v, 0.0, s.pick(False, True)))


@of("_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention")
def _attention_elsewhere(s: Source, name: str) -> Sample:
    b, h = s.size(), s.size()
    q, k, v = s.tensor(b, h, 4, 8), s.tensor(b, h, 8, 8), s.tensor(b, h, 8, 8)
    if "flash" in name:
        return Sample(default(name), (q, k, v), shapes=True)
    return Sample(default(name), (q, k, v, s.pick(None, s.tensor(b, h, 4, 8)), True), shapes=True)


def _groups_of(groups: int, channels: int) -> Callable[[list[Any], Rank], None]:
    def local(args: list[Any], rank: Rank) -> None:
        args[8] = args[8] * rank.results[0][1] // channels if groups > 1 else groups

    return local


@of("convolution")
def _convolution(s: Source, name: str) -> Sample:
    wide, transposed = s.pick(1, 2), s.pick(False, True)
    groups = s.pick(1, 1, 2, 4, 8)
    into, out = groups * s.pick(1, 1, 4), groups * s.pick(1, 1, 4)
    x = s.tensor(s.pick(1, 4), into, *[4] * wide)
    weight = s.tensor(*([into, out // groups] if transposed else [out, into // groups]), *[3] * wide)
    bias = s.pick(None, s.tensor(out))
    ones, none = [1] * wide, [0] * wide
    args = (x, weight, bias, ones, ones, ones, transposed, none, groups)
    return Sample(aten.convolution.default, args, local=_groups_of(groups, out))


@of("_grouped_mm")
def _grouped_product(s: Source, name: str) -> Sample:
    x, ends = s.tensor(8, 16).float(), torch.tensor([4, 8], dtype=torch.int32)
    if s.pick(False, True):
        return Sample(aten._grouped_mm.default, (s.tensor(4, 8, 16).float(), s.tensor(4, 16, 16).float()))
    return Sample(aten._grouped_mm.default, (x, s.tensor(2, 16, 16).float(), ends))


# Some of those without a row of their own, which torch tags as pointwise, with overloads and numbers of tensors.
POINTWISE = dict.fromkeys(("relu", "relu_", "sigmoid", "gelu", "silu", "tanh", "exp", "rsqrt", "elu"), ("default", 1))
POINTWISE |= dict.fromkeys(("leaky_relu", "hardtanh", "softplus", "abs", "sign", "round"), ("default", 1))
POINTWISE |= dict.fromkeys(("maximum", "minimum", "atan2", "logical_and"), ("default", 2))
POINTWISE |= dict.fromkeys(("remainder", "eq", "lt"), ("Tensor", 2)) | {"pow": ("Tensor_Tensor", 2)}
POINTWISE |= {"addcmul": ("default", 3), "addcdiv": ("default", 3), "lerp": ("Tensor", 3), "clamp": ("Tensor", 3)}


@of(" ".join(POINTWISE))
def _tagged(s: Source, name: str) -> Sample:
    kind, count = POINTWISE[name]
    x = s.whole()
    others = [s.broadcast(x.shape).abs() + 1 for _ in range(count - 1)]
    return Sample(getattr(getattr(aten, name), kind), (x.abs() + 1 if name in ("pow", "rsqrt") else x, *others))
