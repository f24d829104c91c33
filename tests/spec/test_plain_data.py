"""What the contract says of a case is shared by everyone who asks, so nobody can change it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from spec import REGISTER, Array, Case, Collective, Observation, Step, Violation, agreement, inputs
from spec.contract import Budget
from spec.numerics import FORMATS
from spec.placements import Edge, Partial, Replicated, Sharded
from spec.reference import truth
from spec.register import Finding

CASE = Case.parse("row P=2 batch=1 in=2 out=2 float32 seed=1")
CLAUSE = REGISTER["row.forward.value"]
SHARED = [
    CASE,
    CLAUSE,
    Finding(CLAUSE, 0, ()),
    Violation(0, "first", "wrong"),
    agreement(CASE),
    Budget("all-reduce", 8),
    Replicated(),
    Sharded(0),
    Partial(),
    Edge(Replicated(), Partial()),
    FORMATS["float32"],
    inputs(CASE),
    truth(CASE),
    truth(CASE).runs[0],
    Observation(0),
    Step("first"),
    Array(b"", "float32", (0,)),
    Collective("all-reduce", 8, "float32"),
]


@pytest.mark.parametrize("value", SHARED, ids=lambda value: type(value).__name__)
def test_plain_data_cannot_be_changed(value: object) -> None:
    with pytest.raises(FrozenInstanceError):
        value.rank = 1  # type: ignore[attr-defined]
