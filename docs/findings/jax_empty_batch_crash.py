"""jax 0.10.2 with jaxlib 0.10.2: a shard_map whose inputs are all empty and whose output is not does not compile.

The weight's gradient for an empty batch is such a program.
Two virtual CPU devices; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("tp",))


def mapped(f, *specs, out):
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out)


layer = mapped(lambda x, w: x @ w, P(), P(None, "tp"), out=P(None, "tp"))
x, w = jnp.ones((0, 1)), jnp.ones((1, 2))
wrong = 0
for name, f, args, expected in (
    ("forward", layer, (x, w), []),
    ("x.T @ x without shard_map", lambda x: x.T @ x, (x,), [[0.0]]),
    ("x.T @ x in shard_map", mapped(lambda x: x.T @ x, P(), out=P()), (x,), [[0.0]]),
    ("gradient of the weight", lambda x, w: jax.grad(lambda w: layer(x, w).sum())(w), (x, w), [[0.0, 0.0]]),
):
    try:
        got = jax.jit(f)(*args).tolist()
    except jax.errors.JaxRuntimeError as error:
        got = "'func.call'" + str(error).splitlines()[0].partition("'func.call'")[2]
    print(f"{name}: expected {expected}, got {got}")
    wrong |= got != expected
sys.exit(wrong)
