"""Training: the same steps of the dense model and of the one that is cut, by recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from conformance.models.inside.bench import Bench, dense, digest, gradients, lying, measured, parameters
from conformance.models.inside.catalogue import Built
from conformance.models.inside.rounding import Values, Wide, bounds, plainly
from spec.laws import Measured

STEPS: Final = 3
LEARNING_RATE: Final = {"sgd": 0.1, "adamw": 0.01}
MOMENTUM: Final = 0.9


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        microbatches: of whose losses the gradients add up before a step.
        clip: the part of the gradient's norm in the first step to which all are clipped; 0 for not at all.
        recompute: the variant of torch.utils.checkpoint, "reentrant" or "plain"; the dense model does without.
    """

    law: str
    optimizer: str = "sgd"
    steps: int = STEPS
    microbatches: int = 1
    clip: float = 0.0
    recompute: str = ""
    autocast: bool = False
    dropout: float = 0.0


RECIPES: Final = {
    "sgd": (Recipe("train.sgd"),),
    "adamw": (Recipe("train.adamw", "adamw"),),
    "clip": (Recipe("train.clip", clip=0.5), Recipe("train.clip", "adamw", clip=0.5)),
    "accumulation": (Recipe("train.accumulation", "adamw", microbatches=2),),
    "checkpoint": (Recipe("train.checkpoint", recompute="plain"),),
    "checkpoint-reentrant": (Recipe("train.checkpoint", recompute="reentrant"),),
    "autocast": (Recipe("train.autocast", steps=1, autocast=True),),
    "dropout": (Recipe("train.dropout", dropout=0.25),),
}
Clip = Callable[[Any, float], Tensor]
AfterStep = Callable[[int], None]


def train(bench: Bench, name: str, procedure: str) -> Iterator[Measured]:
    """The recipes of a procedure, one after the other."""
    recipes = RECIPES[procedure]
    for recipe in recipes:
        told = f"{recipe.optimizer}: " if len(recipes) > 1 else ""
        for entry in _train(bench, name, recipe):
            yield replace(entry, what=told + entry.what)


def jax(bench: Bench, name: str, losses: Mapping[str, Sequence[float]]) -> Iterator[Measured]:
    """The losses beside those that a JAX program had, by optimizer."""
    for optimizer, expected in losses.items():
        recipe = Recipe("train.jax", optimizer, steps=len(expected))
        _, bound = bounds(lambda recipe=recipe: trained(dense(name), recipe), bench.size)
        wrapped = bench.wrapped(name)
        found = plainly(partial(trained, wrapped, recipe))
        for step, loss in enumerate(expected):
            key = _loss(step)
            wanted = torch.tensor(loss, dtype=torch.float64)
            yield measured("train.jax", f"{optimizer}: {key}", wanted, found[key], bound[key], abs(loss))


def _train(bench: Bench, name: str, recipe: Recipe) -> Iterator[Measured]:
    wide = not recipe.autocast
    dtype = torch.float64 if wide else torch.float32
    make = partial(dense, name, recipe.dropout, dtype)
    plain = replace(recipe, recompute="")
    norm = _first_norm(make(), plain) if recipe.clip else 0.0
    exact, bound = bounds(lambda: trained(make(), plain, recipe.clip * norm), bench.size, wide)
    built = bench.wrap(make())
    lies = lying(built.model)
    after, digests = _digests(built, exact)
    clip = bench.adapter.clip_grad_norm_ if recipe.clip else None
    found = plainly(lambda: trained(built, recipe, recipe.clip * norm, clip, after), wide)
    yield from bench.compare(recipe.law, exact, bound, found, lies)
    for key, value in digests.items():
        yield Measured("train.replicated", key, digest=value)


def _digests(built: Built, exact: Values) -> tuple[AfterStep, dict[str, str]]:
    """What to call after each step, and what that fills: digests of the parameters that every rank holds whole."""
    found: dict[str, str] = {}

    def after(step: int) -> None:
        for key, parameter in parameters(built.model).items():
            if key not in exact or exact[key].shape == parameter.shape:
                found[f"{key} after step {step + 1}"] = digest(parameter)

    return after, found


def trained(
    built: Built, recipe: Recipe, max_norm: float = 0.0, clip: Clip | None = None, after: AfterStep | None = None
) -> Values:
    """Losses, norms if any, and the parameters (under autocast the gradients) after the steps of a recipe."""
    model, found = built.model, dict[str, Tensor]()
    model.train()
    optimizer = _optimizer(recipe.optimizer, model)
    _recompute(model, recipe.recompute)
    for step in range(recipe.steps):
        optimizer.zero_grad()
        found[_loss(step)] = _backward(built, recipe, step)
        if recipe.clip:
            norm = clip(model, max_norm) if clip else torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            found[f"the norm in step {step + 1}"] = norm.detach().clone()
        if recipe.autocast:
            continue
        optimizer.step()
        if after is not None:
            after(step)
    if recipe.autocast:
        return found | gradients(model)
    return found | {name: parameter.detach().clone() for name, parameter in parameters(model).items()}


def _backward(built: Built, recipe: Recipe, step: int) -> Tensor:
    """The loss of one step, whose gradients have been added to the parameters'."""
    total = torch.zeros((), dtype=torch.float64)
    for number in range(recipe.microbatches):
        given, target = built.batches(step * recipe.microbatches + number)
        if recipe.recompute == "reentrant":  # which sees only what its inputs need
            given = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in given.items()}
        torch.manual_seed(1 + step)
        with torch.autocast("cpu", torch.bfloat16) if recipe.autocast else nullcontext():
            y = built.output(built.model(**given))
        loss = (y.to(target.dtype) - target).square().mean() / recipe.microbatches
        loss.backward()
        total += loss.detach()
    return total


def _optimizer(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), LEARNING_RATE[name], momentum=MOMENTUM)
    return torch.optim.AdamW(model.parameters(), LEARNING_RATE[name])


def _recompute(model: Any, how: str) -> None:
    if not how:
        return
    if hasattr(model, "gradient_checkpointing_enable"):
        # What is computed again is computed in the backward, where torch takes its modes off.
        again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), Wide())}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    else:
        model.recompute = how


def _first_norm(built: Built, recipe: Recipe) -> float:
    """The norm that the gradient has in the first step."""
    _backward(built, recipe, 0)
    return float(torch.nn.utils.get_total_norm(gradients(built.model).values()))


def _loss(step: int) -> str:
    return f"the loss in step {step + 1}"
