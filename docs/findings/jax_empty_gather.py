"""jax 0.10.2: all_gather along an empty dimension makes a program that StableHLO refuses.

Two virtual CPU devices; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("tp",))


def gathered(axis, to):
    return jax.shard_map(
        lambda x: lax.all_gather(x, "tp", axis=axis, tiled=True, to=to),
        mesh=mesh,
        in_specs=P(*[None] * axis, "tp"),
        out_specs=P(),
        check_vma=to == "invarying",
    )


wrong = 0
for to in ("invarying", "varying"):
    for rows, axis in ((2, 0), (0, 1), (0, 0)):
        expected = (rows, 2)
        try:
            got = jax.jit(gathered(axis, to))(jnp.ones(expected)).shape
        except ValueError as error:
            got = " ".join(str(error).split("at loc")[0].split())
        print(f"to={to}, axis {axis} of {rows} rows: expected {expected}, got {got}")
        wrong |= got != expected
sys.exit(wrong)
