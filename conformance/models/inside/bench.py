"""Where a rank compares: the adapter with its group, and what a comparison of two models is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from conformance.models.inside.catalogue import Built, build
from conformance.models.inside.rounding import Values, distance, largest
from spec.laws import Measured

# A gradient that is zero but for rounding, such as that of a key's bias, is small against those of its model.
_NOUGHT = 1e-6
_GRADIENT = "gradient of "


@dataclass(frozen=True)
class Bench:
    """One rank of one group.

    Attributes:
        adapter: see `conformance.adapters.models`.
        group: its ProcessGroup, of `size` ranks.
    """

    adapter: Any
    group: Any
    rank: int
    size: int

    def wrapped(self, name: str, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Built:
        """A model of the catalogue, cut over the group."""
        return self.wrap(dense(name, dropout, dtype))

    def wrap(self, built: Built) -> Built:
        """A model cut over the group; it need not be the same object."""
        return replace(built, self.adapter.parallelize(built.model, self.group, built.example))

    def part(self, parameter: Any, whole: Tensor) -> Tensor:
        """This rank's part of what lies as a parameter lies."""
        return self.adapter.part(parameter, whole, self.rank, self.size)

    def compare(
        self, law: str, exact: Values, bounds: Mapping[str, float], found: Values, parts: Mapping[str, Any]
    ) -> Iterator[Measured]:
        """Every value of the dense model beside this rank's, which for a parameter in `parts` is a part of it."""
        most = max(map(largest, exact.values()), default=0.0)
        for name, whole in exact.items():
            expected = self.part(parts[name], whole) if name in parts else whole
            scale = max(largest(whole), _NOUGHT * most)
            yield measured(law, name, expected, found.get(name), bounds[name], scale)
        for name in found.keys() - exact.keys():
            yield Measured(law, name, wrong="is there, and the dense model has none")


def replace(built: Built, model: nn.Module) -> Built:
    """The same for another model."""
    return Built(built.name, model, built.batches, built.output, built.prompt)


def dense(name: str, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Built:
    """A model of the catalogue as it is."""
    built = build(name, dropout)

    def batches(step: int) -> tuple[dict[str, Tensor], Tensor]:
        given, target = built.batches(step)
        return {key: x.to(dtype) if x.is_floating_point() else x for key, x in given.items()}, target

    return Built(name, built.model.to(dtype), batches, built.output, built.prompt)


def measured(law: str, what: str, expected: Tensor, found: Tensor | None, bound: float, scale: float) -> Measured:
    """One tensor beside what it should be; one that is missing or of another shape is wrong as it is."""
    if found is None or found.shape != expected.shape:
        shape = "is missing" if found is None else f"has shape {list(found.shape)}, not {list(expected.shape)}"
        return Measured(law, what, wrong=shape)
    return Measured(law, what, distance(found, expected), bound, scale)


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, without what torch's wrappers put in front; each once, under its first name."""
    return {name.removeprefix("module."): each for name, each in model.named_parameters()}


def gradients(model: nn.Module) -> Values:
    """The gradients that there are, named for comparisons."""
    return {_GRADIENT + name: p.grad.detach().clone() for name, p in parameters(model).items() if p.grad is not None}


def lying(model: nn.Module) -> dict[str, Any]:
    """Which parameter says how a value of `gradients`, or of a parameter itself, lies."""
    own = parameters(model)
    return {_GRADIENT + name: each for name, each in own.items()} | own


def once(built: Built, step: int = 0, **changes: Any) -> Values:
    """Output and gradients of one forward and backward, with a cotangent that is nowhere constant."""
    given, target = built.batches(step)
    built.model.zero_grad()
    y = built.output(built.model(**given))
    (y * target.to(y.dtype)).sum().backward()
    return {"the output": y.detach(), **gradients(built.model)}


def digest(tensor: Tensor) -> str:
    """Of a tensor's bits."""
    return blake2b(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
