"""A pair: column, relu, row. What one layer hands over is what the next expects, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import (
    compare,
    differentiates,
    exact,
    expected_gradients,
    expected_local,
    gradient_placement,
    steps,
)
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


@clause(
    "pair.forward.value",
    "Column, relu, row: the dense output on every rank",
    """Y = relu(X W^T + b) W2^T + b2, whole on every rank, for both ways in which the layouts between the two layers
    fit: sharded, and gathered by the first to be cut by the second.""",
    lambda case: case.layer == "pair" and exact(case),
    origin="pytorch/pytorch#150336, hpcaitech/ColossalAI#579",
)
def value(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        yield from compare(rank, step, "output", step.output, truth.runs[0].output)


@clause(
    "pair.backward.gradients",
    "Column, relu, row: the dense gradients",
    "Every gradient of the pair is the dense one, placed as its tensor.",
    lambda case: case.layer == "pair" and differentiates(case),
)
def gradients(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        for name in sorted(expected_gradients(case)):
            whole = truth.runs[0].gradients[name]
            expected = expected_local(case, gradient_placement(case, name), whole, rank)
            yield from compare(rank, step, f"gradient of {name}", step.gradients.get(name), expected)
