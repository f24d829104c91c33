"""jax 0.10.2: what jit returns for an empty array is not laid out as its sharding, or as it was asked, says.

Two virtual CPU devices; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("tp",))
cut = NamedSharding(mesh, P(None, "tp"))
double = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=P(None, "tp"), out_specs=P(None, "tp"))

wrong = 0
for rows in (1, 0):
    x = jax.device_put(jnp.ones((rows, 4)), cut)
    for name, y in (
        ("device_put", x),
        ("jit with out_shardings", jax.jit(lambda x: x * 2, out_shardings=cut)(x)),
        ("jit of a shard_map", jax.jit(double)(x)),
        ("jit with a constraint", jax.jit(lambda x: jax.lax.with_sharding_constraint(x * 2, cut))(x)),
    ):
        expected = (cut.spec, (rows, 2))
        got = (y.sharding.spec, y.addressable_shards[0].data.shape)
        print(f"{name}, {rows} rows, sharding and buffer: expected {expected}, got {got}")
        wrong |= got != expected
sys.exit(wrong)
