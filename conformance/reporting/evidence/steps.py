"""The tensors of each step of a procedure, and what each must hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from conformance.diagnosis.tensors import tensors
from conformance.reporting.evidence.shown import Shown
from spec import Case, Inputs, Observation, Partial, Placement, Step, Truth, Values, agreement, inputs
from spec.bounds import bound
from spec.case import EXACT
from spec.clauses.compare import expected_gradients, gradient_placement
from spec.contract import runs_backward
from spec.placements import Floats, local


def steps_of(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[tuple[str, list[Shown]]]:
    """The steps of a procedure and their tensors, in order."""
    if case.procedure == "init":
        for name in ("first", "reset", "meta"):
            if all(name in entry.steps for entry in seen):
                yield name, list(_drawn(case, seen, name))
    elif case.procedure == "state-dict":
        for name in ("first", "loaded"):
            steps = [entry.steps[name] for entry in seen if name in entry.steps]
            if len(steps) == case.P:
                yield name, list(_parameters(case, truth.data[0], steps))
    elif truth.runs:
        for name, own in _truths(case, truth):
            steps = [entry.steps[name] for entry in seen if name in entry.steps]
            if len(steps) == case.P:
                yield name, list(_tensors(case, own, seen, steps, name))


def _truths(case: Case, truth: Truth) -> Iterator[tuple[str, Truth]]:
    """What each step must give. Gradients of parameters add up where a procedure runs backward twice."""
    data, values = truth.data, truth.runs
    total = {
        name: values[-1].gradients[name] + (0 if name == "x" and len(data) > 1 else values[0].gradients[name])
        for name in values[0].gradients
    }
    summed = Truth(data[-1:], (replace(values[-1], gradients=total),))
    later = {
        "accumulate": [("second", summed)],
        "retain": [("second", summed)],
        "pipeline": [("a", truth), ("b", summed)],
        "interleave": [("a", truth), ("b", Truth(data[1:], values[1:]))],
    }.get(case.procedure, [("second", Truth(data[-1:], values[-1:]))])
    yield from [("first", truth), *later]


def _tensors(
    case: Case, truth: Truth, seen: Sequence[Observation], steps: Sequence[Step], name: str
) -> Iterator[Shown]:
    """The tensors of one step in the order in which they come to be, the given ones among them."""
    terms, values, given = agreement(case), truth.runs[0], dict(_given(case, truth.data[0], steps))
    yield given["input"]
    for tensor in tensors(case, truth, seen, name):
        of = tensor.name.removeprefix("gradient of ")
        gradient = of != tensor.name
        if tensor.name == "output":
            got, placement, shape = [step.output for step in steps], terms.output.value, terms.output_shape
            if name != "first" and not any(got):
                continue
        elif gradient:
            got, placement = [step.gradients.get(of) for step in steps], gradient_placement(case, of)
            shape = terms.input_shape if of == "x" else truth.data[0].parameters[of].shape
        else:
            got, placement = [step.parameters.get(of) for step in steps], terms.parameters[of]
            shape = truth.data[0].parameters[of].shape
        limits = _limits(case, values, of if gradient else tensor.name, placement)
        dtype = case.compute_dtype if tensor.name == "output" else case.dtype
        label = f"gradient of {'input' if of == 'x' else of}" if gradient else tensor.name
        yield Shown(label, placement, shape, tensor.expected, tuple(got), limits, dtype)
        if tensor.name == "output" and "upstream gradient" in given:
            yield given["upstream gradient"]
    yield from _unexpected(case, truth.data[0], steps)


def _parameters(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[Shown]:
    """What each rank holds of the masters; without steps, what it should hold."""
    for name, placement in agreement(case).parameters.items():
        whole = data.parameters[name]
        expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
        got = tuple(step.parameters.get(name) for step in steps)
        yield Shown(name, placement, whole.shape, expected, got, dtype=case.dtype)


def _given(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[tuple[str, Shown]]:
    """The input, and the upstream gradient where there is a backward, as the ranks were given them."""
    terms = agreement(case)
    tables = [("input", "x", terms.input.value, data.x, terms.input_shape)]
    if runs_backward(case):
        tables.append(("upstream gradient", "g", terms.output.gradient, data.g, terms.output_shape))
    for name, letter, placement, whole, shape in tables:
        expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
        written = tuple(letter in step.mutated for step in steps)
        yield name, Shown(name, placement, shape, expected, written=written)


def _unexpected(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[Shown]:
    """Gradients that nobody should have."""
    names = dict.fromkeys(name for step in steps for name, array in step.gradients.items() if array is not None)
    for name in names:
        if name not in expected_gradients(case):
            shape = agreement(case).input_shape if name == "x" else data.parameters[name].shape
            got = tuple(step.gradients.get(name) for step in steps)
            label = f"gradient of {'input' if name == 'x' else name}"
            yield Shown(label, gradient_placement(case, name), shape, (None,) * case.P, got)


def _drawn(case: Case, seen: Sequence[Observation], name: str) -> Iterator[Shown]:
    """Initial weights beside the slices of the one that the unsharded layer draws."""
    dense = seen[0].steps.get("dense")
    whole = dense.parameters.get("weight") if dense else None
    if whole is not None:
        placement = agreement(case).parameters["weight"]
        expected = tuple(local(placement, whole.numbers, case.P, r) for r in range(case.P))
        got = tuple(entry.steps[name].parameters.get("weight") for entry in seen)
        yield Shown("weight", placement, whole.shape, expected, got, dtype=case.dtype)


def _limits(case: Case, values: Values, name: str, placement: Placement) -> tuple[Floats | None, ...]:
    """By rank: how far each element may be from the truth; nothing where none may be."""
    if case.values in EXACT or name not in values.magnitudes:
        return ()
    limit = bound(case, name, values.magnitudes[name])
    return tuple(limit if isinstance(placement, Partial) else local(placement, limit, case.P, r) for r in range(case.P))


def held_if_lost(case: Case, truth: Truth, group: int) -> list[Shown]:
    """Of ranks that were lost: what they were given, and what they should hold."""
    data = truth.data[0] if truth.data else inputs(case, group)
    return [dict(_given(case, data, ()))["input"], *_parameters(case, data, ())]
