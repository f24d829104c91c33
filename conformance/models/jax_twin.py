"""The gated stack in JAX, trained: jax.grad, and optimizers written out as torch's documentation gives them.

Runs in the process that judges, never in a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from conformance.models.gated import BLOCKS, batch, parameters
from spec.reference import jax, jnp  # there it is settled where JAX runs, and in what precision

STEPS: Final = 3
_MOMENTUM: Final = 0.9
_RATE: Final = {"sgd": 0.1, "adamw": 0.01}
_BETAS, _EPSILON, _DECAY = (0.9, 0.999), 1e-8, 0.01

Tree = dict[str, jax.Array]


def losses(steps: int = STEPS) -> dict[str, list[float]]:
    """Optimizer -> the loss of each step."""
    return {"sgd": _train("sgd", _sgd, steps), "adamw": _train("adamw", _adamw, steps)}


def forward(weights: Tree, x: jax.Array) -> jax.Array:
    """The stack without dropout: `[rows, width]` in and out."""
    for block in range(BLOCKS):

        def linear(name: str, value: jax.Array, block: int = block) -> jax.Array:
            return value @ weights[f"blocks.{block}.{name}.weight"].T + weights[f"blocks.{block}.{name}.bias"]

        x = x + linear("down", jax.nn.silu(linear("gate", x)) * linear("up", x))
    return x


def loss(weights: Tree, x: jax.Array, target: jax.Array) -> jax.Array:
    """The mean square of what the output misses the target by."""
    return jnp.mean((forward(weights, x) - target) ** 2)


def _train(name: str, update: Callable[..., Any], steps: int) -> list[float]:
    weights: Tree = {key: jnp.asarray(value) for key, value in parameters().items()}
    state: dict[str, Any] = dict.fromkeys(weights)
    found = []
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    for step in range(steps):
        value, gradient = value_and_grad(weights, *map(jnp.asarray, batch(step)))
        found.append(float(value))
        for key in weights:
            weights[key], state[key] = update(weights[key], gradient[key], state[key], _RATE[name], step + 1)
    return found


def _sgd(w: jax.Array, g: jax.Array, velocity: jax.Array | None, rate: float, step: int) -> tuple[jax.Array, Any]:
    velocity = g if velocity is None else _MOMENTUM * velocity + g
    return w - rate * velocity, velocity


def _adamw(w: jax.Array, g: jax.Array, state: Any, rate: float, step: int) -> tuple[jax.Array, Any]:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2, with torch's defaults."""
    first, second = state if state else (jnp.zeros_like(w), jnp.zeros_like(w))
    first = _BETAS[0] * first + (1 - _BETAS[0]) * g
    second = _BETAS[1] * second + (1 - _BETAS[1]) * g * g
    unbiased, scale = first / (1 - _BETAS[0] ** step), jnp.sqrt(second / (1 - _BETAS[1] ** step))
    return w * (1 - rate * _DECAY) - rate * unbiased / (scale + _EPSILON), (first, second)
