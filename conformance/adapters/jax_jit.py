"""Layers as JAX users write them with `jit`: a plain product, and where its operands and result lie.

No collective is named; the compiler chooses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from conformance.adapters.jax_adapter import JaxAdapter, Layer


class Jit(JaxAdapter):
    """Column and row. A partial output cannot be said in these terms, nor can the functions copy and reduce."""

    name = "jax-jit"
    flags = ("bias", "gather_output", "skip_bias_add", "input_is_parallel")

    def build(self, layer: Layer) -> Callable[[dict[str, jax.Array], jax.Array], Any]:
        gathers, skips = layer.flags.get("gather_output"), layer.flags["skip_bias_add"]
        if layer.bias and gathers and skips:
            raise ValueError("gather_output and skip_bias_add: a whole output would leave a sharded bias to the caller")
        if not layer.flags.get("reduce_output", True):
            raise ValueError("reduce_output=False: a partial array has no sharding; a bias would be counted P times")
        whole, row = P(), layer.kind == "row"

        def place(value: jax.Array, spec: P) -> jax.Array:
            return lax.with_sharding_constraint(value, NamedSharding(layer.mesh, spec))

        def call(parameters: dict[str, jax.Array], x: jax.Array) -> Any:
            bias = parameters.get("bias")
            if bias is not None and bias.shape != (layer.out_features,):
                raise ValueError(f"bias has shape {bias.shape}, and out_features={layer.out_features}")
            last = P(*[None] * (x.ndim - 1), layer.axis)
            y = place(x, last if row else whole) @ parameters["weight"]
            # Said of the product too, or the compiler may gather the weight in place of the output.
            y = place(y, whole if row else last)
            if bias is not None and not skips:
                y = y + bias
            y = place(y, whole) if gathers else y
            return (y, bias) if skips else y

        return call
