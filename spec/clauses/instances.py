"""Instances: what a layer holds now decides what it computes, not other calls, other layers, or its own past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.backward import added_up
from spec.clauses.compare import (
    compare,
    exact,
    expected_gradients,
    expected_local,
    gradient_placement,
    true_output,
)
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


def _as_run(case: Case, truth: Truth, seen: Sequence[Observation], name: str, run: int) -> Iterator[Violation]:
    """The violations of a step that must show a run's own values."""
    values = truth.runs[run]
    for observation in seen:
        step = observation.steps[name]
        yield from compare(
            observation.rank, step, "output", step.output, true_output(case, values.output, observation.rank)
        )
        for tensor in sorted(expected_gradients(case)):
            placement = gradient_placement(case, tensor)
            expected = expected_local(case, placement, values.gradients[tensor], observation.rank)
            yield from compare(observation.rank, step, f"gradient of {tensor}", step.gradients.get(tensor), expected)


@clause(
    "instances.pipelined",
    "Two forwards of one layer, then both backwards",
    """Forward a, forward b, backward a, backward b of one layer: each backward uses what its own forward saved, the
    parameters' gradients add up, and a's output stays what it was.""",
    lambda case: case.procedure == "pipeline" and exact(case),
    origin="pytorch/pytorch#131264",
)
def pipelined(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "a", 0)
    yield from added_up(case, truth, seen, "b")


@clause(
    "instances.current-parameters",
    "A layer computes with its parameters as they are",
    """After its parameters were overwritten in place, as an optimizer or a loader does, a layer computes with the new
    ones: nothing of the old is kept.""",
    lambda case: case.procedure == "update" and exact(case),
    origin="vllm-project/vllm#48025",
)
def current_parameters(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "second", 1)


@clause(
    "instances.independent",
    "Two layers do not touch each other",
    "Forward a, forward b, backward a, backward b gives each layer what it gives alone: calls share no state.",
    lambda case: case.procedure == "interleave" and exact(case),
    origin="pytorch/pytorch#131264, hpcaitech/ColossalAI#579",
)
def independent(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "a", 0)
    yield from _as_run(case, truth, seen, "b", 1)
