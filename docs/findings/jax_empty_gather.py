"""jax 0.10.2, 2 virtual CPU devices: all_gather along an empty dimension makes a program that MLIR refuses."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("tp",))

for rows in (2, 0):
    for to in ("invarying", "varying"):
        for axis in (0, 1):
            f = jax.shard_map(
                lambda x: lax.all_gather(x, "tp", axis=axis, tiled=True, to=to),
                mesh=mesh,
                in_specs=P(*[None] * axis, "tp"),
                out_specs=P(),
                check_vma=to == "invarying",
            )
            for name, call in (
                ("jit", jax.jit(f)),
                ("eager", f),
                ("vjp", lambda x: jax.jit(lambda x: jax.vjp(f, x)[1](f(x)))(x)[0]),
            ):
                try:
                    print(f"rows {rows} axis {axis} {to} {name}: {call(jnp.ones((rows, 2))).shape}")
                except Exception as error:
                    print(f"rows {rows} axis {axis} {to} {name}: {' '.join(repr(error).split())[:330]}")
