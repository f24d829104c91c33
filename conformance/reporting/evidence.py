"""What a picture of a failure needs, as plain data: every tensor on every rank, expected against got, and collectives.

    {"P", "layer", "step", "ranks": [global ranks of the group],
     "tensors": [{"name", "placement", "shape": [of the whole], "step",
                  "ranks": [{"shape", "expected": [[..]] | null, "got": [[..]] | null, "at": [row, column],
                             "wrong": [[row, column], ..], "differs": elements, "cut": bool, "note": ".."}]}],
     "flow": [{"rank", "phase", "kind", "bytes", "dtype", "ranks"}] | null where they cannot be observed,
     "agreed": [{"phase", "kind", "bytes"}]}

A tensor is shown as a matrix, its leading dimensions flattened, of at most MOST x MOST elements from `at` on, so chosen
that a wrong one is among them; `wrong` counts from there, `differs` counts all. `got` is null where nothing was looked
at, too: then `note` is empty. Of ranks that were lost there is what each should hold, `fates`, the number at which they
part, `parts`, and in `flow` the `number` of each collective and the last `stage` of it that the rank announced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.diagnosis.tensors import tensors
from conformance.reporting import flow
from spec import Array, Case, Inputs, Observation, Partial, Placement, Step, Truth, Values, agreement, inputs
from spec.bounds import bound
from spec.case import EXACT
from spec.clauses.compare import expected_gradients, gradient_placement
from spec.contract import runs_backward
from spec.placements import Floats, local

MOST = 8


@dataclass(frozen=True)
class _Shown:
    """One tensor of one step, by rank.

    Attributes:
        shape: of the whole.
        got: None where there is no tensor; empty where nobody looked.
        limits: how far an element may be from what is expected; empty where none may be.
        written: whether the rank wrote to it, of tensors that are the caller's.
    """

    name: str
    placement: Placement
    shape: tuple[int, ...]
    expected: tuple[Floats | None, ...]
    got: tuple[Array | None, ...] = ()
    limits: tuple[Floats | None, ...] = ()
    dtype: str = ""
    written: tuple[bool, ...] = ()

    def on(self, rank: int) -> dict[str, Any]:
        """What is told of it on one rank."""
        expected, got = self.expected[rank], self.got[rank] if self.got else None
        numbers = None if got is None else got.numbers
        wrong = self._wrong(rank, expected, numbers)
        at = _start(wrong)
        return {
            "shape": list(next((value.shape for value in (expected, numbers) if value is not None), ())),
            "expected": _numbers(expected, at, self.dtype),
            "got": _numbers(numbers, at, self.dtype),
            "at": list(at),
            "wrong": [[int(i), int(j)] for i, j in np.argwhere(_window(wrong, at))],
            "differs": int(wrong.sum()),
            "cut": any(value is not None and max(_matrix(value).shape) > MOST for value in (expected, numbers)),
            "note": self._note(rank, expected, got),
        }

    def _wrong(self, rank: int, expected: Floats | None, numbers: Floats | None) -> np.ndarray:
        """Which elements are wrong, as a matrix; none where the shapes are no match."""
        if expected is None or numbers is None or expected.shape != numbers.shape:
            return np.zeros((1, 1), dtype=bool)
        limit = self.limits[rank] if self.limits else None
        return _matrix(numbers != expected if limit is None else ~(np.abs(numbers - expected) <= limit))

    def _note(self, rank: int, expected: Floats | None, got: Array | None) -> str:
        if self.written and self.written[rank]:
            return "written to"
        if not self.got or (got is None and expected is None):
            return ""
        if got is None or expected is None:
            return "missing" if got is None else "unexpected"
        if got.shape != expected.shape:
            return f"shape {list(got.shape)}, not {list(expected.shape)}"
        return f"{got.dtype}, not {self.dtype}" if self.dtype not in ("", got.dtype) else ""

    def as_data(self, step: str) -> dict[str, Any]:
        ranks = [self.on(r) for r in range(len(self.expected))]
        return {
            "name": self.name,
            "placement": str(self.placement),
            "shape": list(self.shape),
            "step": step,
            "ranks": ranks,
        }


def evidence(case: Case, truth: Truth, observations: Sequence[Observation], group: int = 0) -> dict[str, Any] | None:
    """What became of a case's tensors and collectives in one of its groups; None where it has none to show.

    Of the steps of its procedure it is the first with a wrong tensor, else the first whose collectives are not those
    that the contract asks for, else the first.
    """
    head = {"P": case.P, "layer": case.layer, "ranks": list(case.group_ranks[group])}
    if any(entry.fate != "returned" or entry.raised for entry in observations):
        return head | {"step": "first"} | _of_lost(case, truth, observations, group)
    steps = {name: shown for name, shown in _steps(case, truth, observations) if shown}
    if not steps:
        return None
    told = [
        head
        | {"step": name, "tensors": [tensor.as_data(name) for tensor in shown]}
        | flow.of_step(case, observations, name)
        for name, shown in steps.items()
    ]
    return ([data for data in told if _is_wrong(data)] or [data for data in told if flow.is_wrong(data)] or told)[0]


def _is_wrong(data: dict[str, Any]) -> bool:
    return any(rank["note"] or rank["differs"] for tensor in data["tensors"] for rank in tensor["ranks"])


# Steps and what each must hold


def _steps(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[tuple[str, list[_Shown]]]:
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
) -> Iterator[_Shown]:
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
        yield _Shown(label, placement, shape, tensor.expected, tuple(got), limits, dtype)
        if tensor.name == "output" and "upstream gradient" in given:
            yield given["upstream gradient"]
    yield from _unexpected(case, truth.data[0], steps)


def _parameters(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[_Shown]:
    """What each rank holds of the masters; without steps, what it should hold."""
    for name, placement in agreement(case).parameters.items():
        whole = data.parameters[name]
        expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
        got = tuple(step.parameters.get(name) for step in steps)
        yield _Shown(name, placement, whole.shape, expected, got, dtype=case.dtype)


def _given(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[tuple[str, _Shown]]:
    """The input, and the upstream gradient where there is a backward, as the ranks were given them."""
    terms = agreement(case)
    tables = [("input", "x", terms.input.value, data.x, terms.input_shape)]
    if runs_backward(case):
        tables.append(("upstream gradient", "g", terms.output.gradient, data.g, terms.output_shape))
    for name, letter, placement, whole, shape in tables:
        expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
        written = tuple(letter in step.mutated for step in steps)
        yield name, _Shown(name, placement, shape, expected, written=written)


def _unexpected(case: Case, data: Inputs, steps: Sequence[Step]) -> Iterator[_Shown]:
    """Gradients that nobody should have."""
    names = dict.fromkeys(name for step in steps for name, array in step.gradients.items() if array is not None)
    for name in names:
        if name not in expected_gradients(case):
            shape = agreement(case).input_shape if name == "x" else data.parameters[name].shape
            got = tuple(step.gradients.get(name) for step in steps)
            label = f"gradient of {'input' if name == 'x' else name}"
            yield _Shown(label, gradient_placement(case, name), shape, (None,) * case.P, got)


def _drawn(case: Case, seen: Sequence[Observation], name: str) -> Iterator[_Shown]:
    """Initial weights beside the slices of the one that the unsharded layer draws."""
    dense = seen[0].steps.get("dense")
    whole = dense.parameters.get("weight") if dense else None
    if whole is not None:
        placement = agreement(case).parameters["weight"]
        expected = tuple(local(placement, whole.numbers, case.P, r) for r in range(case.P))
        got = tuple(entry.steps[name].parameters.get("weight") for entry in seen)
        yield _Shown("weight", placement, whole.shape, expected, got, dtype=case.dtype)


def _limits(case: Case, values: Values, name: str, placement: Placement) -> tuple[Floats | None, ...]:
    """By rank: how far each element may be from the truth; nothing where none may be."""
    if case.values in EXACT or name not in values.magnitudes:
        return ()
    limit = bound(case, name, values.magnitudes[name])
    return tuple(limit if isinstance(placement, Partial) else local(placement, limit, case.P, r) for r in range(case.P))


def _of_lost(case: Case, truth: Truth, seen: Sequence[Observation], group: int) -> dict[str, Any]:
    """What the ranks should hold, and how far each is known to have come in its collectives."""
    data = truth.data[0] if truth.data else inputs(case, group)
    shown = [dict(_given(case, data, ()))["input"], *_parameters(case, data, ())]
    return {"tensors": [tensor.as_data("first") for tensor in shown], **flow.of_lost(seen)}


# Matrices


def _matrix(value: np.ndarray) -> np.ndarray:
    """A tensor with its leading dimensions flattened; a vector is one row."""
    rows = int(np.prod(value.shape[:-1]))
    return value.reshape(rows, value.shape[-1] if value.ndim else 1)


def _start(wrong: np.ndarray) -> tuple[int, int]:
    """Where to begin, so that the first wrong element is among those shown."""
    places = np.argwhere(wrong)
    first = places[0] if len(places) else (0, 0)
    row, column = (0 if i < MOST else int(min(i, n - MOST)) for i, n in zip(first, wrong.shape, strict=True))
    return row, column


def _window(matrix: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    return matrix[at[0] : at[0] + MOST, at[1] : at[1] + MOST]


def _numbers(value: Floats | None, at: tuple[int, int], dtype: str) -> list[list[int | float | str]] | None:
    """Of a window; nine digits tell any two numbers of the narrower dtypes apart."""
    digits = 17 if dtype == "float64" else 9
    return None if value is None else [[_plain(v, digits) for v in row] for row in _window(_matrix(value), at)]


def _plain(value: float, digits: int) -> int | float | str:
    """A number as JSON can hold it, and execnet, on the way from a worker, which packs no integer below -2^31."""
    if not np.isfinite(value):
        return str(float(value))
    return int(value) if value == int(value) and abs(value) < 2**31 else float(f"{value:.{digits}g}")
