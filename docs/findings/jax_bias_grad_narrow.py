"""jax 0.10.2, one CPU device: the gradient of a bias is added up in bfloat16 (float16), not in float32.

The gradient of `y + b` with respect to b is the sum of the upstream gradient over the batch. JAX's transpose rule of
broadcasting emits reduce_sum in the cotangent's dtype, and XLA's CPU backend rounds after every addition (HLO below:
the adder converts its float32 sum to bf16 and back). So 256 and 31 ones make 256 in place of 287. jnp.sum, which
converts to float32 first, is right, and so are the gradients of products.
"""

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")


def bias_gradient(g):
    _, pullback = jax.vjp(lambda b: jnp.zeros_like(g) + b, jnp.zeros(g.shape[1:], g.dtype))
    return pullback(g)[0]


for dtype, large in ((jnp.bfloat16, 256), (jnp.float16, 2048)):
    g = jnp.ones((32, 64), dtype).at[0].set(large)
    print(
        f"{dtype.__name__}: {large} + 31 x 1: eager {bias_gradient(g)[0]}, jit {jax.jit(bias_gradient)(g)[0]},",
        f"jnp.sum {jnp.sum(g, 0)[0]}, exact {large + 31}",
    )

rng = np.random.default_rng(0)
for dtype, u in ((jnp.bfloat16, 2.0**-8), (jnp.float16, 2.0**-11)):
    g = jnp.asarray(abs(rng.standard_normal((64, 64))) + 0.5, dtype)
    exact = np.asarray(g, np.float64).sum(0)
    for name, f in (("bias gradient", bias_gradient), ("jnp.sum", lambda g: jnp.sum(g, 0))):
        error = (abs(np.asarray(jax.jit(f)(g), np.float64) - exact) / exact).max()
        print(
            f"{dtype.__name__} 64 rows of positive values: {name} errs by {error / u:.2f} roundoffs (one rounding: 1)"
        )

hlo = jax.jit(bias_gradient).lower(jnp.ones((32, 64), jnp.bfloat16)).compile().as_text()
print(
    "\n".join(
        line.split(", metadata")[0]
        for line in hlo.splitlines()
        if any(w in line for w in (" add(", "convert(", "reduce("))
    )
)
