"""Checks of one tensor that the clauses of several linear layers share: shards, outputs, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spec.case import Case
from spec.clauses.compare import (
    compare,
    difference,
    expected_local,
    gradient_placement,
    show,
    steps,
    true_output,
)
from spec.contract import agreement
from spec.observation import Observation, Step
from spec.placements import Floats, Sharded, local
from spec.register import Violation
from spec.truth import Truth


def shards(case: Case, truth: Truth, seen: Sequence[Observation], name: str) -> Iterator[Violation]:
    """The violations of ranks that do not hold their part of a master."""
    whole = truth.data[0].weight if name == "weight" else truth.data[0].bias
    assert whole is not None
    placement = agreement(case).parameters[name]
    for observation in seen:
        step = observation.steps["first"]
        got = step.parameters.get(name)
        expected = expected_local(case, placement, whole, observation.rank)
        yield from compare(observation.rank, step, name, got, expected)
        if got is not None and got.dtype != case.dtype:
            yield Violation(observation.rank, step.name, f"{name} has the wrong dtype", case.dtype, got.dtype)


def _bias_in(case: Case, truth: Truth, rank: int) -> Floats | None:
    """The bias that belongs into this rank's output, or None."""
    bias = truth.data[0].bias
    if bias is None or case.skip_bias_add:
        return None
    terms = agreement(case)
    return local(terms.parameters["bias"], bias, case.P, rank) if isinstance(terms.output.value, Sharded) else bias


def _bias_at_fault(case: Case, truth: Truth, rank: int, step: Step) -> Floats | None:
    """What stands in the output in place of the bias, if the product is right and only the bias is not; else None.

    Told apart by what a wrong product cannot do: leave the same remainder in rows whose products differ, or a simple
    multiple of the bias in at least two elements.
    """
    bias, got = _bias_in(case, truth, rank), step.output
    expected = true_output(case, truth.runs[0].output, rank)
    if bias is None or got is None or got.shape != expected.shape or got.numbers.size < 2:
        return None
    remainder = (got.numbers - (expected - bias)).reshape(-1, bias.size)
    if np.array_equal(remainder, np.broadcast_to(bias, remainder.shape)):
        return None
    products = (expected - bias).reshape(-1, bias.size)
    same_rows = (remainder == remainder[0]).all() and not (products == products[0]).all()
    multiples = [0.0, 1 / case.P, *range(2, case.P + 1)]
    if same_rows or any(np.array_equal(remainder, np.broadcast_to(k * bias, remainder.shape)) for k in multiples):
        stands_there: Floats = remainder[0]
        return stands_there
    return None


def bias_once(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    """The violations of outputs in which only the bias is wrong."""
    for rank, step in steps(seen):
        remainder = _bias_at_fault(case, truth, rank, step)
        if remainder is not None:
            bias = _bias_in(case, truth, rank)
            assert bias is not None
            yield Violation(rank, step.name, "output minus the product is not the bias", show(bias), show(remainder))


def value(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    """The violations of all other wrong outputs."""
    for rank, step in steps(seen):
        found = difference(step.output, true_output(case, truth.runs[0].output, rank))
        if found and _bias_at_fault(case, truth, rank, step) is None:
            yield Violation(rank, step.name, f"output {found[0]}", found[1], found[2])


def gradient(case: Case, truth: Truth, seen: Sequence[Observation], name: str) -> Iterator[Violation]:
    """The violations of a gradient of x, weight or bias."""
    placement = gradient_placement(case, name)
    for rank, step in steps(seen):
        expected = expected_local(case, placement, truth.runs[0].gradients[name], rank)
        yield from compare(rank, step, f"gradient of {name}", step.gradients.get(name), expected)
