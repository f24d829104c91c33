"""What is known of a value of a graph, and of a model before any run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch_tp.models.cuts import NONE, Cuts

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fact:
    """What is known of one value.

    Attributes:
        cuts: along which dimensions it is sharded, by labels; lost labels stand in it too.
        terms: labels over which it is still to be summed.
        sources: parameters of which alone it is computed; empty if other values are in it.
        straight: it is linear in the one parameter that it is computed of.
        spread: dimensions along which all entries are equal.
        given: something that is neither a parameter nor written in the code is in it.
        differentiable: a gradient can flow into it.
    """

    cuts: Cuts = field(default_factory=lambda: NONE)
    terms: frozenset[str] = NOTHING
    sources: frozenset[str] = NOTHING
    straight: bool = False
    spread: frozenset[int] = frozenset()
    given: bool = False
    differentiable: bool = False


@dataclass(frozen=True)
class Known:
    """What is known of a model before any run.

    Attributes:
        layers: weights of linears that a parallel layer can replace -> paths of these.
        own: weights and biases of these -> the weight.
        buffers: names of buffers.
        holders: parameter or buffer -> in how many places modules hold it.
        watched: paths of modules, and names of parameters, whose gradients a hook sees -> what sees them.
    """

    layers: Mapping[str, str]
    own: Mapping[str, str]
    buffers: frozenset[str]
    watched: Mapping[str, str]
    holders: Mapping[str, int] = field(default_factory=dict[str, int])
