"""The truth, computed by JAX: one device, float64, no mesh.

Sharded JAX has had wrong gradients itself (jax-ml/jax#3970, openxla/xla#40034), so the reference never shards. A new
shape costs a compilation of about 100 ms, so batch dimensions are flattened and every dimension is padded with zeros,
which changes no sum, to one of a few sizes.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from spec.case import EXACT, FUSED, WITHOUT_VALUES, Case
from spec.contract import agreement
from spec.placements import Floats, Partial, bounds
from spec.truth import Truth, Values
from spec.values import Inputs, inputs, runs

jax.config.update("jax_enable_x64", True)
# Every result is read at once, so handing it to another thread only costs.
jax.config.update("jax_cpu_enable_async_dispatch", False)

BUCKETS = (8, 32, 128, 512)


def cache_compilations_in(directory: str) -> None:
    """Keep compiled programs in a directory, so that a second process starts warm."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def truth(case: Case, group: int = 0) -> Truth:
    """The truth of one group of a case; without values for procedures that compute nothing."""
    data = tuple(inputs(case, group, run) for run in range(runs(case)))
    if case.procedure in WITHOUT_VALUES:
        return Truth(data)
    return Truth(data, tuple(values(case, tensors) for tensors in data))


def values(case: Case, data: Inputs) -> Values:
    """What a case's layer makes of any tensors of its shapes."""
    if case.layer in FUSED:
        return _fused(case, data)
    return {"column": _linear, "row": _linear, "pair": _pair}.get(case.layer, _function)(case, data)


@jax.jit
def linear_and_gradients(x: jax.Array, w: jax.Array, b: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    """Y = X W^T + b and its vjp at G. Shapes: x [B, I], w [O, I], b [O], g [B, O]."""
    y, vjp = jax.vjp(lambda x, w, b: x @ w.T + b, x, w, b)
    return (y, *vjp(g))


@jax.jit
def parts_and_gradients(
    x: jax.Array, parts: list[tuple[jax.Array, jax.Array]], columns: jax.Array, g: jax.Array
) -> tuple[Any, ...]:
    """The parts' own Y_i = X W_i^T + b_i side by side, of that some columns, some more than once; its vjp at G.

    Shapes: x [B, I], parts (w_i [O_i, I], b_i [O_i]), columns [E] of numbers below the sum of O_i, g [B, E].
    """

    def forward(x: jax.Array, parts: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        return jnp.concatenate([x @ w.T + b for w, b in parts], axis=-1)[:, columns]

    y, vjp = jax.vjp(forward, x, parts)
    return (y, *vjp(g))


@jax.jit
def pair_and_gradients(
    x: jax.Array, w: jax.Array, b: jax.Array, w2: jax.Array, b2: jax.Array, g: jax.Array
) -> tuple[jax.Array, ...]:
    """Y = relu(X W^T + b) W2^T + b2 and its vjp at G; x [B, I], w [H, I], b [H], w2 [O, H], b2 [O], g [B, O]."""
    y, vjp = jax.vjp(lambda x, w, b, w2, b2: jax.nn.relu(x @ w.T + b) @ w2.T + b2, x, w, b, w2, b2)
    return (y, *vjp(g))


@jax.jit
def sum_and_gradient(terms: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    """The sum over dimension 0 and its vjp at G. Shapes: terms [P, N], g [N]."""
    y, vjp = jax.vjp(lambda terms: terms.sum(0), terms)
    return (y, *vjp(g))


@jax.jit
def spread_and_gradient(x: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    """P equal copies and the vjp at P upstream gradients. Shapes: x [N], g [P, N]."""
    y, vjp = jax.vjp(lambda x: jnp.broadcast_to(x, g.shape), x)
    return (y, *vjp(g))


def compilations() -> int:
    """How many programs this process has compiled (or read from the cache)."""
    programs: tuple[Any, ...] = (
        linear_and_gradients,
        parts_and_gradients,
        pair_and_gradients,
        sum_and_gradient,
        spread_and_gradient,
    )
    return sum(program._cache_size() for program in programs)


def _linear(case: Case, data: Inputs) -> Values:
    assert data.weight is not None
    bias = data.bias if data.bias is not None and not case.skip_bias_add else np.zeros(case.out_features)
    output, x, weight, bias_gradient = _padded_linear(case, data.x, data.weight, bias, data.g)
    if isinstance(agreement(case).output.value, Partial):
        output = np.stack(
            [_padded_linear(case, _only(data.x, case.P, r), data.weight, bias, data.g)[0] for r in range(case.P)]
        )
    magnitudes: dict[str, Floats] = {}
    if case.values not in EXACT:
        sizes = _padded_linear(case, *map(np.abs, (data.x, data.weight, bias, data.g)))
        magnitudes = dict(zip(("output", "x", "weight", "bias"), sizes, strict=True))
    return Values(output, {"x": x, "weight": weight, "bias": bias_gradient}, magnitudes)


def _fused(case: Case, data: Inputs) -> Values:
    """Each part by itself, as the column layer that holds it alone; an output with copies once for each of them."""
    assert data.weight is not None
    bias = data.bias if data.bias is not None and not case.skip_bias_add else np.zeros(case.out_features)
    names, magnitudes = ("output", "x", "weight", "bias"), dict[str, Floats]()
    output, *gradients = _padded_parts(case, data.x, data.weight, bias, data.g)
    if case.values not in EXACT:
        sizes = _padded_parts(case, *map(np.abs, (data.x, data.weight, bias, data.g)))
        magnitudes = dict(zip(names, sizes, strict=True))
    return Values(output, dict(zip(names[1:], gradients, strict=True)), magnitudes)


def _padded_parts(case: Case, x: Floats, w: Floats, b: Floats, g: Floats) -> tuple[Floats, ...]:
    rows, i, e = case.rows, case.in_features, g.shape[-1]
    n, m, k = _bucket(rows), _bucket(i), _bucket(e)
    ends = np.cumsum(case.sizes)
    cuts = [slice(end - size, end) for end, size in zip(ends, case.sizes, strict=True)]
    # Two parts and three share a program.
    cuts += [slice(0, 0)] * (3 - len(cuts))
    parts = [(_pad(w[cut], (k, m)), _pad(b[cut], (k,))) for cut in cuts]
    columns = [
        np.repeat((number * k + np.arange(size)).reshape(case.P // c, -1), c, axis=0).ravel()
        for number, (size, c) in enumerate(zip(case.sizes, case.copies, strict=True))
    ]
    padded = _pad(np.concatenate(columns), (k,)).astype(np.int32)
    y, dx, own = parts_and_gradients(_pad(x.reshape(rows, i), (n, m)), parts, padded, _pad(g.reshape(rows, e), (n, k)))
    dw = np.concatenate([np.asarray(part[0])[:size, :i] for part, size in zip(own, case.sizes, strict=False)])
    db = np.concatenate([np.asarray(part[1])[:size] for part, size in zip(own, case.sizes, strict=False)])
    y, dx = np.asarray(y)[:rows, :e], np.asarray(dx)[:rows, :i]
    return y.reshape(*case.batch, e), dx.reshape(*case.batch, i), dw, db


def _pair(case: Case, data: Inputs) -> Values:
    rows, i, h, o = case.rows, case.in_features, case.hidden_features, case.out_features
    # Every dimension padded alike: padded hidden features give relu(0) = 0 and meet zero weights.
    n = _bucket(max(rows, i, h, o))
    named = {"bias": np.zeros(h), "bias2": np.zeros(o)} | data.parameters
    shapes = {"weight": (n, n), "bias": (n,), "weight2": (n, n), "bias2": (n,)}
    padded = [_pad(named[name], shape) for name, shape in shapes.items()]
    x, g = _pad(data.x.reshape(rows, i), (n, n)), _pad(data.g.reshape(rows, o), (n, n))
    y, dx, *gradients = map(np.asarray, pair_and_gradients(x, *padded, g))
    own = {name: value[tuple(map(slice, named[name].shape))] for name, value in zip(shapes, gradients, strict=True)}
    return Values(y[:rows, :o].reshape(*case.batch, o), {"x": dx[:rows, :i].reshape(*case.batch, i), **own})


def _only(x: Floats, P: int, r: int) -> Floats:
    """X with everything but rank r's slice of the last dimension set to zero."""
    masked = np.zeros_like(x)
    mine = bounds(x.shape[-1], P, r)
    masked[..., mine] = x[..., mine]
    return masked


def _padded_linear(case: Case, x: Floats, w: Floats, b: Floats, g: Floats) -> tuple[Floats, ...]:
    rows, i, o = case.rows, case.in_features, case.out_features
    n, m, k = _bucket(rows), _bucket(i), _bucket(o)
    padded = (
        _pad(x.reshape(rows, i), (n, m)),
        _pad(w, (k, m)),
        _pad(b, (k,)),
        _pad(g.reshape(rows, o), (n, k)),
    )
    y, dx, dw, db = map(np.asarray, linear_and_gradients(*padded))
    return y[:rows, :o].reshape(*case.batch, o), dx[:rows, :i].reshape(*case.batch, i), dw[:o, :i], db[:o]


def _function(case: Case, data: Inputs) -> Values:
    output, gradient = _moved(case, data.x, data.g)
    if case.values in EXACT:
        return Values(output, {"x": gradient})
    sizes = _moved(case, np.abs(data.x), np.abs(data.g))
    return Values(output, {"x": gradient}, dict(zip(("output", "x"), sizes, strict=True)))


def _moved(case: Case, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Output and input gradient of one of the four functions."""
    shape = agreement(case).output_shape
    size = int(np.prod(shape))
    n = _bucket(size)
    if case.layer == "reduce":
        y, dx = sum_and_gradient(_pad(x.reshape(case.P, size), (case.P, n)), _pad(g.reshape(size), (n,)))
        return np.asarray(y)[:size].reshape(shape), np.asarray(dx)[0, :size].reshape(shape)
    if case.layer == "copy":
        y, dx = spread_and_gradient(_pad(x.reshape(size), (n,)), _pad(g.reshape(case.P, size), (case.P, n)))
        return np.asarray(y)[0, :size].reshape(shape), np.asarray(dx)[:size].reshape(shape)
    # gather and scatter move data and compute nothing: the whole value is the whole value.
    return x, g


@lru_cache(maxsize=1024)
def _bucket(size: int) -> int:
    for bucket in BUCKETS:
        if size <= bucket:
            return bucket
    return -(-size // BUCKETS[-1]) * BUCKETS[-1]


def _pad(value: Floats, shape: tuple[int, ...]) -> Floats:
    padded = np.zeros(shape)
    padded[tuple(slice(0, size) for size in value.shape)] = value
    return padded
