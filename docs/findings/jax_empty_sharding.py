"""jax 0.10.2, 2 virtual CPU devices: what jit returns for an empty array is not laid out as its sharding says.

With out_shardings the array claims the sharding, but every device's buffer has the whole shape; without, the sharding
that shard_map's out_specs or a constraint asked for is lost. No element is wrong, since there is none.
"""

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

for rows in (1, 0):
    x = jax.device_put(jnp.ones((rows, 4)), cut)
    for name, y in (
        ("device_put", x),
        ("jit, out_shardings", jax.jit(lambda x: x * 2, out_shardings=cut)(x)),
        ("jit of shard_map", jax.jit(double)(x)),
        ("jit, constraint", jax.jit(lambda x: jax.lax.with_sharding_constraint(x * 2, cut))(x)),
    ):
        shapes = [shard.data.shape for shard in y.addressable_shards]
        print(
            f"{rows} rows, {name}: {y.sharding.spec}, shard_shape {y.sharding.shard_shape(y.shape)}, buffers {shapes}"
        )
