"""jax 0.10.2, jaxlib 0.10.2, 2 virtual CPU devices: a shard_map whose inputs are all empty does not compile.

The weight gradient of a product over an empty batch is such a program, so the backward of a tensor-parallel layer
fails for an empty batch, while its forward, and the same backward without shard_map, give zeros as they should:

    JaxRuntimeError: UNKNOWN: ... 'func.call' op expected at least one operand of @xla.sdy.manual_computation_body
    to be produced by a xla.sdy.GlobalToLocalShape CustomCallOp
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("tp",))


def attempt(name, f, *args):
    try:
        print(f"{name}: {jax.jit(f)(*args).tolist()}")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")


def mapped(f, *specs, out):
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out)


layer = mapped(lambda x, w: x @ w, P(), P(None, "tp"), out=P(None, "tp"))
for batch in (1, 0):
    x, w = jnp.ones((batch, 1)), jnp.ones((1, 2))
    attempt(f"batch {batch}, weight gradient      ", jax.grad(lambda w: layer(x, w).sum()), w)
    attempt(f"batch {batch}, weight gradient (arg)", lambda x, w: jax.grad(lambda w: layer(x, w).sum())(w), x, w)
    attempt(f"batch {batch}, x.T @ x              ", mapped(lambda x, y: x.T @ y, P(), P(), out=P()), x, x)
    attempt(f"batch {batch}, x.T @ x, no shard_map", lambda x, y: x.T @ y, x, x)
