"""What a later run of a procedure shows though the first is right: gradients that do not add up, state that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from conformance.diagnosis import sentences as say
from conformance.diagnosis.guesses import fitting
from conformance.diagnosis.tensors import tensors
from spec import Case, Observation, Truth
from spec.clauses.compare import expected_gradients, expected_local, gradient_placement
from spec.placements import Floats

Found = tuple[str, str]
# The first run is right and a later one is not, though nothing but an earlier call, or another layer, came between.
_STATE = {
    "delay": say.LATE_RANKS,
    "twice": say.OTHER_CALL,
    "pipeline": say.OTHER_CALL,
    "accumulate": say.OTHER_CALL,
    "interleave": say.OTHER_INSTANCE,
}


def found(case: Case, truth: Truth, seen: Sequence[Observation]) -> list[Found]:
    """(subject, sentence) for what is wrong after a first run that is right."""
    if case.procedure in ("accumulate", "retain", "pipeline"):
        counted = list(_accumulated(case, truth, seen))
        if counted or case.procedure == "retain":
            return counted
    if any("second" not in entry.steps and "b" not in entry.steps for entry in seen):
        return []
    name = _first_difference(case, truth, seen)
    if not name:
        return []
    if case.procedure == "update":
        return [(name, say.OLD_PARAMETERS if _is_old(case, truth, seen) else say.OTHER_CALL)]
    if case.procedure in _STATE:
        return [(name, _STATE[case.procedure])]
    return _as_first(case, truth, seen)


def _as_first(case: Case, truth: Truth, seen: Sequence[Observation]) -> list[Found]:
    for tensor in tensors(case, truth, seen, "second"):
        if tensor.wrong:
            return [(tensor.name, text) for text in fitting(tensor)[:1]]
    return []


def _accumulated(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Found]:
    """Gradients after two backwards, as multiples of what each backward gives."""
    runs = (truth.runs[0], truth.runs[-1])
    for name in sorted(expected_gradients(case)):
        if name == "x" and case.procedure != "retain":
            continue
        placement = gradient_placement(case, name)
        parts = [[expected_local(case, placement, run.gradients[name], r) for run in runs] for r in range(case.P)]
        arrays = [entry.steps["b" if case.procedure == "pipeline" else "second"].gradients.get(name) for entry in seen]
        got = [None if array is None else array.numbers for array in arrays]
        if all(_is(g, a + b) for g, (a, b) in zip(got, parts, strict=True)):
            continue
        for text, (one, two) in _COUNTS:
            if all(_is(g, one * a + two * b) or _is(g, a + b) for g, (a, b) in zip(got, parts, strict=True)):
                yield f"gradient of {name}", text
                return


_COUNTS = (
    (say.LOST, (1, 0)),
    (say.OVERWRITTEN, (0, 1)),
    (say.TWICE_ACCUMULATED, (2, 1)),
    (say.TWICE_ACCUMULATED, (1, 2)),
    (say.TWICE_ACCUMULATED, (2, 2)),
)


def _is(got: Floats | None, value: Floats) -> bool:
    return got is not None and np.array_equal(got, value)


def _first_difference(case: Case, truth: Truth, seen: Sequence[Observation]) -> str:
    """The first tensor of a later step that is not its own run's; empty where none is."""
    later = {"pipeline": (("a", 0), ("b", 1)), "interleave": (("a", 0), ("b", 1))}.get(
        case.procedure, (("second", len(truth.runs) - 1),)
    )
    sums = case.procedure in ("pipeline", "accumulate")
    for step, run in later:
        own = Truth(truth.data[run:], truth.runs[run:])
        for tensor in tensors(case, own, seen, step):
            summed = sums and run == 1 and tensor.name.startswith("gradient") and tensor.name != "gradient of x"
            if tensor.wrong and not summed:
                return tensor.name
    return _summed_difference(case, truth, seen, later[-1][0]) if sums else ""


def _summed_difference(case: Case, truth: Truth, seen: Sequence[Observation], step: str) -> str:
    one, two = truth.runs
    for name in sorted(expected_gradients(case) - {"x"}):
        placement = gradient_placement(case, name)
        for entry in seen:
            array = entry.steps[step].gradients.get(name)
            whole = one.gradients[name] + two.gradients[name]
            if array is None or not _is(array.numbers, expected_local(case, placement, whole, entry.rank)):
                return f"gradient of {name}"
    return ""


def _is_old(case: Case, truth: Truth, seen: Sequence[Observation]) -> bool:
    """Whether the second run's output or input gradient is what the overwritten parameters would give."""
    from spec.reference import values

    old, new = truth.data
    stale = replace(old, x=new.x, g=new.g)
    mixed = Truth((stale,), (values(case, stale),))
    return any(
        not tensor.wrong and tensor.name in ("output", "gradient of x")
        for tensor in tensors(case, mixed, seen, "second")
    )
