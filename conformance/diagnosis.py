"""What a wrong tensor looks like: known mistakes tried against the values that the ranks saw.

On exact values a mistake such as "the bias is counted P times" gives definite numbers. A sentence is offered only if
its numbers are, on every rank that is wrong and in every element, the numbers that were seen; more than one may fit a
small case, so all that is claimed is consistency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from spec import Case, Inputs, Observation, Partial, Replicated, Sharded, Step, Truth, agreement
from spec.clauses.compare import EXACT, expected_gradients
from spec.placements import Floats, bounds, local

Guess = tuple[str, Floats]


def diagnose(case: Case, truth: Truth, seen: Sequence[Observation]) -> list[str]:
    """Sentences that are consistent with everything wrong in one tensor, one line per tensor; none where none fits."""
    if case.values not in EXACT or not truth.runs or any(entry.fate != "returned" for entry in seen):
        return []
    lines: list[str] = []
    steps = [entry.steps["first"] for entry in seen if "first" in entry.steps]
    for tensor in ("output", *sorted(expected_gradients(case))):
        found = _sentence(case, truth, tensor, steps) if len(steps) == case.P else ""
        lines += [f"{_label(tensor)}: consistent with {found}"] if found else []
    return lines


def _label(tensor: str) -> str:
    return tensor if tensor == "output" else f"gradient of {tensor}"


def _sentence(case: Case, truth: Truth, tensor: str, steps: Sequence[Step]) -> str:
    expected = [_expected(case, truth, tensor, r) for r in range(case.P)]
    got = [_numbers(step, tensor) for step in steps]
    wrong = [r for r in range(case.P) if got[r] is None or not np.array_equal(got[r], expected[r])]
    if not wrong or (tensor != "output" and tensor not in steps[0].gradients):
        return ""
    missing = [r for r in wrong if got[r] is None]
    if missing:
        return f"no gradient on ranks {missing}" if len(missing) < case.P else ""
    guesses = [dict(_guesses(case, truth.data[0], tensor, expected[r], r)) for r in wrong]
    fitting = [
        text for text in guesses[0] if all(_fits(g.get(text), got[r]) for g, r in zip(guesses, wrong, strict=True))
    ]
    return fitting[0] if fitting else ""


def _fits(guess: Floats | None, got: Floats | None) -> bool:
    return guess is not None and got is not None and guess.shape == got.shape and np.array_equal(guess, got)


def _numbers(step: Step, tensor: str) -> Floats | None:
    array = step.output if tensor == "output" else step.gradients.get(tensor)
    return None if array is None else array.numbers


def _expected(case: Case, truth: Truth, tensor: str, rank: int) -> Floats:
    terms, values = agreement(case), truth.runs[0]
    if tensor == "output":
        placement = terms.output.value
        return values.output[rank] if isinstance(placement, Partial) else local(placement, values.output, case.P, rank)
    placement = terms.input.gradient if tensor == "x" else terms.parameters[tensor]
    return local(placement, values.gradients[tensor], case.P, rank)


def _guesses(case: Case, data: Inputs, tensor: str, expected: Floats, rank: int) -> Iterator[Guess]:
    """Known mistakes and the numbers that each would give this rank, the likeliest first."""
    bias = _bias(case, data, rank) if tensor == "output" else None
    if bias is not None:
        plain = expected - bias
        for times in range(2, case.P + 1):
            yield f"a bias that is counted {times} times", plain + times * bias
        yield "a bias that is never added", plain
        yield "a bias that is divided by P", plain + bias / case.P
    terms = _terms(case, data, tensor)
    if terms:
        yield from _sums(terms, 0 if bias is None else bias, rank)
    yield from _slices(case, data, tensor, expected, rank)
    for factor, text in (
        (case.P, "P times too large"),
        (1 / case.P, "divided by P"),
        (2, "twice too large"),
        (0, "zero"),
    ):
        yield f"a value that is {text}", factor * expected
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1]:
        yield "a transposed matrix", expected.T


def _sums(terms: Sequence[Floats], bias: Floats | int, rank: int) -> Iterator[Guess]:
    """Ways to add up the ranks' terms that are not the sum."""
    total, P = np.sum(terms, axis=0), len(terms)
    yield "a reduction that is missing: each rank holds its own term", terms[rank] + bias
    yield "a reduction that is made twice", P * total + bias
    yield "a reduction that averages", total / P + bias
    for r, term in enumerate(terms):
        yield f"rank {r}'s term missing from the sum", total - term + bias
        yield f"rank {r}'s term counted twice", total + term + bias


def _slices(case: Case, data: Inputs, tensor: str, expected: Floats, rank: int) -> Iterator[Guess]:
    """Other slices than the rank's own, and slices in another order."""
    terms, whole = agreement(case), _whole(case, data, tensor)
    if whole is None or case.P == 1:
        return
    placement = terms.output.value if tensor == "output" else terms.input.gradient
    dim = placement.dim if isinstance(placement, Sharded) else case.dim if case.layer in ("gather", "scatter") else -1
    size = whole.shape[dim]
    parts = [np.take(whole, range(*bounds(size, case.P, r).indices(size)), axis=dim) for r in range(case.P)]
    if isinstance(placement, Replicated):
        yield "the slices joined in reversed rank order", np.concatenate(parts[::-1], axis=dim)
        return
    yield "rank 0's slice on every rank", parts[0]
    yield "slices in reversed rank order", parts[case.P - 1 - rank]
    yield "slices that are strided, not blocked", np.take(whole, range(rank, size, case.P), axis=dim)
    yield "slices that are shifted by one rank", parts[(rank + 1) % case.P]


def _bias(case: Case, data: Inputs, rank: int) -> Floats | None:
    if data.bias is None or case.skip_bias_add or not case.linear or isinstance(agreement(case).output.value, Partial):
        return None
    placement = agreement(case).output.value
    return local(placement, data.bias, case.P, rank) if isinstance(placement, Sharded) else data.bias


def _terms(case: Case, data: Inputs, tensor: str) -> list[Floats]:
    """What each rank contributes to a tensor that is a sum over ranks."""
    if case.P == 1:
        return []
    cuts = [bounds(_cut_size(case), case.P, r) for r in range(case.P)] if case.linear else []
    if case.layer == "row" and tensor == "output" and case.reduce_output and data.weight is not None:
        return [data.x[..., cut] @ data.weight[:, cut].T for cut in cuts]
    if case.layer == "column" and tensor == "x" and data.weight is not None:
        return [data.g[..., cut] @ data.weight[cut] for cut in cuts]
    summed: Mapping[tuple[str, str], Floats] = {("reduce", "output"): data.x, ("copy", "x"): data.g}
    return list(summed.get((case.layer, tensor), ()))


def _cut_size(case: Case) -> int:
    return case.out_features if case.layer == "column" else case.in_features


def _whole(case: Case, data: Inputs, tensor: str) -> Floats | None:
    """The whole of a tensor that ranks hold in slices, or have joined from slices."""
    moved: Mapping[tuple[str, str], Floats] = {
        ("gather", "output"): data.x,
        ("gather", "x"): data.g,
        ("scatter", "output"): data.x,
        ("scatter", "x"): data.g,
    }
    if not case.linear or data.weight is None:
        return moved.get((case.layer, tensor))
    if case.layer == "column" and tensor == "output":
        return data.x @ data.weight.T + (0 if data.bias is None or case.skip_bias_add else data.bias)
    return data.g @ data.weight if case.layer == "row" and tensor == "x" else None
