"""A user's own JAX layers and their adapter, as the suite's documentation describes it; and the same with mistakes."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from conformance.adapters.jax_adapter import JaxAdapter, Layer
from conformance.adapters.jax_shard_map import ShardMap
from spec.placements import Placement


def column(x: jax.Array, weight: jax.Array, bias: jax.Array | None, mesh: Mesh) -> jax.Array:
    def local(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
        return x @ weight if bias is None else x @ weight + bias

    cut = P(*[None] * (x.ndim - 1), "tp")
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "tp"), P("tp")), out_specs=cut)(x, weight, bias)


def row(x: jax.Array, weight: jax.Array, bias: jax.Array | None, mesh: Mesh) -> jax.Array:
    def local(x: jax.Array, weight: jax.Array) -> jax.Array:
        return lax.psum(x @ weight, "tp")

    cut = P(*[None] * (x.ndim - 1), "tp")
    y = jax.shard_map(local, mesh=mesh, in_specs=(cut, P("tp", None)), out_specs=P())(x, weight)
    return y if bias is None else y + bias


class Mine(JaxAdapter):
    """About as little as an adapter can be."""

    def build(self, layer: Layer) -> Any:
        function = column if layer.kind == "column" else row
        return lambda parameters, x: function(x, parameters["weight"], parameters.get("bias"), layer.mesh)


class OutIn(JaxAdapter):
    """A weight in the contract's order, as checkpoints of PyTorch have it."""

    layers = ("column",)
    kernel = "out in"

    def build(self, layer: Layer) -> Any:
        return lambda parameters, x: column(x, parameters["weight"].T, parameters.get("bias"), layer.mesh)


class NotSummed(Mine):
    """Without JAX's check of what is replicated, nothing notices that a row layer forgets its sum."""

    def build(self, layer: Layer) -> Any:
        def forgetful(parameters: dict[str, jax.Array], x: jax.Array) -> jax.Array:
            cut, specs = P(*[None] * (x.ndim - 1), "tp"), P("tp", None)
            local = jax.shard_map(
                lambda x, w: x @ w, mesh=layer.mesh, in_specs=(cut, specs), out_specs=P(), check_vma=False
            )
            y = local(x, parameters["weight"])
            return y + parameters["bias"] if "bias" in parameters else y

        return forgetful if layer.kind == "row" else super().build(layer)


class BiasOnEveryRank(Mine):
    def build(self, layer: Layer) -> Any:
        def eager(parameters: dict[str, jax.Array], x: jax.Array) -> jax.Array:
            cut = P(*[None] * (x.ndim - 1), "tp")
            local = jax.shard_map(
                lambda x, w, b: lax.psum(x @ w + b, "tp"),
                mesh=layer.mesh,
                in_specs=(cut, P("tp", None), P()),
                out_specs=P(),
            )
            return local(x, parameters["weight"], parameters["bias"])

        return eager if layer.kind == "row" and layer.bias else super().build(layer)


class WrongSlice(ShardMap):
    """Rank r takes the slice of rank P - 1 - r."""

    def build(self, layer: Layer) -> Any:
        def scatter(x: jax.Array) -> jax.Array:
            def local(x: jax.Array) -> jax.Array:
                size = x.shape[layer.dim] // layer.size
                r = layer.size - 1 - lax.axis_index(layer.axis)
                return lax.dynamic_slice_in_dim(x, r * size, size, layer.dim)

            cut = P(*[None] * (layer.dim % x.ndim), layer.axis)
            return jax.shard_map(local, mesh=layer.mesh, in_specs=P(), out_specs=cut)(x)

        return scatter if layer.kind == "scatter" else super().build(layer)


class SumsInGathersBackward(ShardMap):
    """The cotangent of what is alike on every rank comes in P equal parts; this one takes each for the whole."""

    def build(self, layer: Layer) -> Any:
        @jax.custom_vjp
        def gathered(x: jax.Array) -> jax.Array:
            return lax.all_gather(x, layer.axis, axis=layer.dim % x.ndim, tiled=True)

        def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
            mine = lax.psum_scatter(g, layer.axis, scatter_dimension=layer.dim % g.ndim, tiled=True)
            return (mine * layer.size,)

        gathered.defvjp(lambda x: (gathered(x), None), backward)

        def gather(x: jax.Array) -> jax.Array:
            cut = P(*[None] * (layer.dim % x.ndim), layer.axis)
            return jax.shard_map(gathered, mesh=layer.mesh, in_specs=cut, out_specs=P(), check_vma=False)(x)

        return gather if layer.kind == "gather" else super().build(layer)


class HeldWhole(Mine):
    """Every rank holds the whole weight."""

    def spec(self, layer: Layer, name: str, placement: Placement) -> P:
        return P()


class Raises(Mine):
    def build(self, layer: Layer) -> Any:
        raise RuntimeError("the checkpoint is not there")
