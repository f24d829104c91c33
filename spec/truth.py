"""The truth of a case: whole outputs and gradients in float64, from one device, with no sharding anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spec.placements import Floats
from spec.values import Inputs


@dataclass(frozen=True)
class Values:
    """The true tensors of one run, whole.

    Attributes:
        output: Y; where the layer leaves it partial, the ranks' terms stacked `[P, ...]`.
        gradients: of x, weight and bias by name.
        magnitudes: for real values, M of `spec.bounds` for output, x, weight and bias by name.
    """

    output: Floats
    gradients: Mapping[str, Floats]
    magnitudes: Mapping[str, Floats] = field(default_factory=dict[str, Floats])


@dataclass(frozen=True)
class Truth:
    """The truth of one group of a case.

    Attributes:
        data: the whole tensors that each run was given.
        runs: what each run must give, one Values per entry of `data`; empty where the procedure computes nothing.
    """

    data: tuple[Inputs, ...]
    runs: tuple[Values, ...] = ()
