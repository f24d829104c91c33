"""Layers and functions as JAX users write them with `shard_map`: each rank's part, and its collectives by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from conformance.adapters.jax_adapter import JaxAdapter, Layer

Parameters = dict[str, jax.Array]


class ShardMap(JaxAdapter):
    """Everything of the contract, differentiated by JAX itself."""

    name = "jax-shard-map"
    layers = ("column", "row", "copy", "reduce", "gather", "scatter")
    flags = ("bias", "gather_output", "skip_bias_add", "input_is_parallel", "reduce_output")

    def build(self, layer: Layer) -> Callable[..., Any]:
        return {"column": column, "row": row}.get(layer.kind, function)(layer)


def last(x: jax.Array, axis: str) -> P:
    """Cut along the last dimension."""
    return P(*[None] * (x.ndim - 1), axis)


def column(layer: Layer) -> Callable[[Parameters, jax.Array], Any]:
    tp, gathers, skips = layer.axis, layer.flags["gather_output"], layer.flags["skip_bias_add"]
    if layer.bias and gathers and skips:
        raise ValueError("gather_output and skip_bias_add: a whole output would leave a sharded bias to the caller")

    def call(parameters: Parameters, x: jax.Array) -> Any:
        bias = checked(parameters.get("bias"), layer)

        def local(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
            y = x @ weight
            y = y if bias is None else y + bias
            return lax.all_gather(y, tp, axis=y.ndim - 1, tiled=True, to="invarying") if gathers else y

        specs = (P(), P(None, tp), P(tp))
        mapped = jax.shard_map(local, mesh=layer.mesh, in_specs=specs, out_specs=P() if gathers else last(x, tp))
        y = mapped(x, parameters["weight"], None if skips else bias)
        return (y, bias) if skips else y

    return call


def row(layer: Layer) -> Callable[[Parameters, jax.Array], Any]:
    tp, reduces, skips = layer.axis, layer.flags["reduce_output"], layer.flags["skip_bias_add"]
    if layer.bias and not reduces and not skips:
        raise ValueError("reduce_output=False with a bias: it would be counted once on every rank; use skip_bias_add")

    def call(parameters: Parameters, x: jax.Array) -> Any:
        bias = checked(parameters.get("bias"), layer)

        def local(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
            y = x @ weight
            if not reduces:
                return y[None]
            y = lax.psum(y, tp)
            return y if bias is None else y + bias

        specs = (last(x, tp), P(tp, None), P())
        mapped = jax.shard_map(local, mesh=layer.mesh, in_specs=specs, out_specs=P() if reduces else P(tp))
        y = mapped(x, parameters["weight"], None if skips else bias)
        return (y, bias) if skips else y

    return call


def checked(bias: jax.Array | None, layer: Layer) -> jax.Array | None:
    """Adding a bias of another size than the output's would stretch an output of size one."""
    if bias is not None and bias.shape != (layer.out_features,):
        raise ValueError(f"bias has shape {bias.shape}, and out_features={layer.out_features}")
    return bias


def function(layer: Layer) -> Callable[[jax.Array], jax.Array]:
    """One of the four functions; each rank's own entry of a value comes and goes in a dimension in front."""
    tp = layer.axis

    def call(x: jax.Array) -> jax.Array:
        ndim = x.ndim - (layer.kind == "reduce")
        dim = layer.dim + ndim if layer.dim < 0 else layer.dim
        if not 0 <= dim < ndim:
            raise ValueError(f"dim={layer.dim}: there are {ndim} dimensions")
        cut = P(*[None] * dim, tp)

        def copy(x: jax.Array) -> jax.Array:
            return lax.pcast(x, tp, to="varying")[None]

        def reduce(x: jax.Array) -> jax.Array:
            return lax.psum(x[0], tp)

        def gather(x: jax.Array) -> jax.Array:
            return lax.all_gather(x, tp, axis=dim, tiled=True, to="invarying")

        def scatter(x: jax.Array) -> jax.Array:
            size, rest = divmod(x.shape[dim], layer.size)
            if rest:
                raise ValueError(f"dimension {dim} has size {x.shape[dim]}, which P={layer.size} does not divide")
            return lax.dynamic_slice_in_dim(x, lax.axis_index(tp) * size, size, dim)

        local, before, after = {
            "copy": (copy, P(), P(tp)),
            "reduce": (reduce, P(tp), P()),
            "gather": (gather, cut, P()),
            "scatter": (scatter, P(), cut),
        }[layer.kind]
        return jax.shard_map(local, mesh=layer.mesh, in_specs=before, out_specs=after)(x)

    return call
