"""What an implementation defines otherwise and is right by: declared as data, and undone before it is judged.

The contract's clauses know one semantics. An implementation that returns a pair from every call, or keeps the row bias
on one rank, is judged by what its observations mean in the contract's words: `normal` translates them, and whatever the
declaration does not cover is left as it was, for the clauses to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from spec.bounds import bound
from spec.case import Case
from spec.contract import agreement
from spec.faults import arguments
from spec.numerics import encode
from spec.observation import Array, Observation, Step
from spec.placements import Replicated
from spec.truth import Truth, Values
from spec.values import Inputs
from spec.vocabulary import LAYERS

RowBias = Literal["whole", "first-rank", "divided"]
# What may work on CUDA tensors alone.
NEEDS_CUDA = (*LAYERS, "gather_output", "input_is_parallel=False", "autocast")


@dataclass(frozen=True)
class Semantics:
    """The differences from the contract that an adapter may declare.

    Attributes:
        always_pair: every call of a layer returns (output, bias), with None for a bias that was added.
        row_bias: whole: every rank holds b, and it is added once, after the reduction. first-rank: rank 0 alone holds
            b. divided: every rank holds b and adds b / P before the reduction, so that the output is rounded
            where the contract's is exact; it is then held to the bound for real values.
        needs_cuda: the flags and functions that work on CUDA tensors alone where P > 1, and `autocast` for every P.
        batch_dims: the least and the largest number of batch dimensions that its layers document; None: any.
    """

    always_pair: bool = False
    row_bias: RowBias = "whole"
    needs_cuda: tuple[str, ...] = ()
    batch_dims: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.row_bias not in get_args(RowBias):
            raise ValueError(f"row_bias = {self.row_bias!r}; it must be one of {', '.join(get_args(RowBias))}")
        unknown = sorted({*self.needs_cuda} - {*NEEDS_CUDA})
        if unknown:
            raise ValueError(f"needs_cuda has {unknown[0]!r}; it may have {', '.join(NEEDS_CUDA)}")

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Semantics:
        """From the fields as JSON has them, with lists for tuples."""
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
        return cls(**fields)

    def sentences(self) -> tuple[str, ...]:
        """The declaration for people; empty where nothing differs."""
        told = ["every call returns a pair (output, bias or None)"] if self.always_pair else []
        if self.row_bias == "first-rank":
            told.append("the row bias is held by rank 0 alone")
        if self.row_bias == "divided":
            told.append("a row layer adds b / P on every rank, before the reduction: held to the bound for real values")
        if self.needs_cuda:
            told.append(f"CUDA tensors only: {', '.join(self.needs_cuda)}")
        if self.batch_dims is not None:
            told.append(f"inputs have {self.batch_dims[0]} to {self.batch_dims[1]} batch dimensions")
        return tuple(told)

    def declines(self, case: Case, device: str) -> str:
        """Why the implementation does not have a case on a type of device (cpu, cuda), or an empty string."""
        if device != "cuda":
            asked = {**vars(case), **arguments(case).flags}  # a fault may ask for flags that its case has not
            wanted = ["autocast"] if case.autocast else []
            if case.P > 1:
                wanted += [case.layer, *(["gather_output"] if asked["gather_output"] else [])]
                wanted += ["input_is_parallel=False"] if not asked["input_is_parallel"] else []
            for name in wanted:
                if name in self.needs_cuda:
                    return f"{name} needs CUDA"
        if self.row_bias == "divided" and case.layer == "pair" and case.bias and case.P > 1 and case.values == "exact":
            return "its output is rounded where b / P is added before the reduction, and a pair has no bound for that"
        least, most = self.batch_dims or (0, len(case.batch))
        if case.has_parameters and not least <= len(case.batch) <= most:
            return f"takes {least} to {most} batch dimensions"
        return ""


STANDARD = Semantics()


def normal(semantics: Semantics, case: Case, truth: Truth, seen: Sequence[Observation]) -> tuple[Observation, ...]:
    """The observations of one group in the words of the contract."""
    if semantics == STANDARD or any(entry.fate != "returned" or entry.declined for entry in seen):
        return tuple(seen)
    if semantics.always_pair and case.linear and not case.skip_bias_add:
        seen = [_each(entry, _single) for entry in seen]
    row_bias = {"row": "bias", "pair": "bias2"}.get(case.layer, "")
    if row_bias and case.bias and case.P > 1:
        if semantics.row_bias == "first-rank":
            seen = [seen[0], *(_with_bias_of(seen[0], entry, row_bias) for entry in seen[1:])]
        if semantics.row_bias == "divided" and case.layer == "row" and truth.runs:
            seen = _unrounded(case, truth, seen)
    return tuple(seen)


def _each(entry: Observation, change: Callable[[Step], Step]) -> Observation:
    return replace(entry, steps={name: change(step) for name, step in entry.steps.items()})


def _single(step: Step) -> Step:
    """A pair whose second value is None, as the output alone."""
    if step.facts.get("pair") and step.returned_bias is None:
        return replace(step, facts={**step.facts, "pair": False})
    return step


def _with_bias_of(first: Observation, entry: Observation, bias: str) -> Observation:
    """A rank that holds no bias, with what rank 0 holds for it; one that holds some is left to the clauses."""
    steps = {}
    for name, step in entry.steps.items():
        source = first.steps.get(name)
        if source is not None and bias not in step.parameters and step.gradients.get(bias) is None:
            held = {**step.parameters, **{n: a for n, a in source.parameters.items() if n == bias}}
            gradients = {**step.gradients, **{n: a for n, a in source.gradients.items() if n == bias}}
            step = replace(step, parameters=held, gradients=gradients)
            if bias in source.facts.get("keys", ()) and "keys" in step.facts:
                step = replace(step, facts={**step.facts, "keys": sorted({*step.facts["keys"], bias})})
        steps[name] = step
    return replace(entry, steps=steps)


def _unrounded(case: Case, truth: Truth, seen: Sequence[Observation]) -> Sequence[Observation]:
    """Outputs within the bound as the truth itself, where all ranks have the same bits."""
    if not isinstance(agreement(case).output.value, Replicated):
        return seen
    for name in seen[0].steps:
        outputs = {entry.steps[name].output for entry in seen if name in entry.steps}
        if len(outputs) != 1:
            continue
        output = outputs.pop()
        pairs = zip(truth.data, truth.runs, strict=True)
        run = next((run for data, run in pairs if output is not None and _close(case, data, run, output)), None)
        if run is not None and output is not None:
            exact = replace(output, bits=encode(run.output, output.dtype).tobytes())
            seen = [_put(entry, name, exact) for entry in seen]
    return seen


def _put(entry: Observation, name: str, output: Array) -> Observation:
    return replace(entry, steps={**entry.steps, name: replace(entry.steps[name], output=output)})


def _close(case: Case, data: Inputs, run: Values, output: Array) -> bool:
    if output.shape != run.output.shape or data.weight is None or data.bias is None:
        return False
    limit = bound(case, "output", np.abs(data.x) @ np.abs(data.weight).T + np.abs(data.bias))
    return bool((np.abs(output.numbers - run.output) <= limit).all())
