"""What one rank saw of a case, as plain data: bits and names, no tensors of any framework.

An implementation is judged by its Observations alone. Each has one named Step per run of the case's procedure:

    first, second   the runs of the procedure in order
    dense           at P = 1: the implementation's own unsharded layer on the same values, same strides
    a, b            interleave: each of the two layers; pipeline: each of the two calls
    reset, meta     init: after drawing again, and after drawing on storage that was allocated later
    loaded          state-dict: the layer that loaded what the first had saved
    refused, after  refuse: the call with the bad argument, and a plain all-reduce on the group afterwards
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from spec.numerics import decode
from spec.placements import Floats

Fate = Literal["returned", "raised", "died", "hung", "victim"]


@dataclass(frozen=True)
class Array:
    """A tensor as bits, dtype name and shape, in row-major order whatever its strides were."""

    bits: bytes
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def numbers(self) -> Floats:
        """The exact values as float64; meaningful for the four floating dtypes of `spec.numerics`."""
        return decode(self.bits, self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Collective:
    """One collective as the calling rank entered it: kind, input payload, and the global ranks of its group.

    Attributes:
        phase: forward, backward or other (construction, loading).
        ranks: None where the group cannot be observed.
    """

    kind: str
    bytes: int
    dtype: str
    phase: str = "forward"
    ranks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.bytes} B {self.dtype}"


@dataclass(frozen=True)
class Raised:
    """An exception: the names of its type and of its bases, most derived first, and its text."""

    types: tuple[str, ...]
    text: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.types[0]}: {self.text}"


@dataclass(frozen=True)
class Step:
    """One run of a case on one rank.

    Attributes:
        parameters: what the rank held before the run, by name.
        output: Y, or None if the run made none.
        returned_bias: the second value, where the layer returned a pair.
        gradients: of x, weight, bias after the backward; None where there is none. Absent names were not looked at.
        collectives: what the rank entered, in order; None where the transport cannot be observed.
        mutated: the caller's tensors whose bytes or version changed.
        shared: pairs "a/b" of tensors that share storage.
        facts: further answers by name (see `spec.clauses`); plain strings, numbers, booleans and lists of those.
        raised: what the run raised.
    """

    name: str
    parameters: Mapping[str, Array] = field(default_factory=dict[str, Array])
    output: Array | None = None
    returned_bias: Array | None = None
    gradients: Mapping[str, Array | None] = field(default_factory=dict[str, "Array | None"])
    collectives: tuple[Collective, ...] | None = None
    mutated: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    raised: Raised | None = None


@dataclass(frozen=True)
class Observation:
    """What became of one rank.

    Attributes:
        rank: the rank in the tensor-parallel group.
        fate: returned; raised (an exception of its own); died (the process ended); hung (did not answer in time);
            victim (was stopped because another rank had failed).
        declined: the adapter's reason for not running this case; then there are no steps.
        entered: where any rank was lost, the lines in which this one announced its collectives.
        stack: where a lost rank stood; `exit`: one line on how its process ended, if it did, then what it printed last.
    """

    rank: int
    steps: Mapping[str, Step] = field(default_factory=dict[str, Step])
    fate: Fate = "returned"
    declined: str = ""
    raised: Raised | None = None
    entered: tuple[str, ...] = ()
    stack: str = ""
    exit: str = ""
