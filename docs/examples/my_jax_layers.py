"""A column and a row layer in JAX, on a mesh with one axis "tp"; a weight is [in, out]."""

import jax
from jax import lax
from jax.sharding import PartitionSpec as P


def cut_last(x):
    return P(*[None] * (x.ndim - 1), "tp")


def column_linear(x, weight, bias, mesh):
    """Weight and bias are cut along out, x is whole; the result is cut along its last dimension."""

    def local(x, weight, bias):
        y = x @ weight
        return y if bias is None else y + bias

    specs = (P(), P(None, "tp"), P("tp"))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=cut_last(x))(x, weight, bias)


def row_linear(x, weight, bias, mesh):
    """Weight is cut along in and x along its last dimension, bias is whole; so is the result."""

    def local(x, weight, bias):
        y = lax.psum(x @ weight, "tp")
        return y if bias is None else y + bias

    specs = (cut_last(x), P("tp", None), P())
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(x, weight, bias)
