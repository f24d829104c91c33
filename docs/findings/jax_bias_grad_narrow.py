"""jax 0.10.2 on a CPU device: the gradient of a bias is added up in bfloat16 (float16), not in float32.

Rounded to their dtype after every addition, 256 and 31 ones make 256. jnp.sum, which adds up in float32, is right.
Exits with 1 while it is so, with 0 once it is fixed.
"""

import sys

import jax
import jax.numpy as jnp

jax.config.update("jax_platforms", "cpu")


def bias_gradient(g):
    _, pullback = jax.vjp(lambda b: jnp.zeros_like(g) + b, jnp.zeros(g.shape[1:], g.dtype))
    return pullback(g)[0]


wrong = 0
for dtype, large in ((jnp.bfloat16, 256), (jnp.float16, 2048)):
    g = jnp.ones((32, 64), dtype).at[0].set(large)
    expected = float(jnp.asarray(large + 31, dtype))  # the exact sum, rounded once
    for name, f in (("bias gradient", bias_gradient), ("jnp.sum", lambda g: jnp.sum(g, 0))):
        for how, call in (("eager", f), ("jit", jax.jit(f))):
            got = float(call(g)[0])
            print(f"{name}, {how}, {dtype.__name__}, {large} + 31 ones: expected {expected}, got {got}")
            wrong |= got != expected
sys.exit(wrong)
