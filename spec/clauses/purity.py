"""Purity: nothing of the caller's is written to, and nothing that is returned shares its storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import has_values
from spec.contract import runs_backward
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


def _mutated(names: tuple[str, ...], seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        for step in observation.steps.values():
            for name in step.mutated:
                if name in names:
                    yield Violation(
                        observation.rank,
                        step.name,
                        f"the caller's {name} was written to",
                        "the same bytes and version",
                        "changed",
                    )


@clause(
    "purity.inputs",
    "Inputs are not written to",
    "The input keeps its bytes, through forward and backward.",
    has_values,
    origin="Lightning-AI/pytorch-lightning#18228, NVIDIA/Megatron-LM#7452, vllm-project/vllm#39844",
)
def inputs_unchanged(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _mutated(("x",), seen)


@clause(
    "purity.upstream",
    "Upstream gradients are not written to",
    "The upstream gradient keeps its bytes: it belongs to the caller, who may hold other references to it.",
    lambda case: has_values(case) and runs_backward(case),
)
def upstream_unchanged(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _mutated(("g",), seen)


@clause(
    "purity.masters",
    "Master weights are not written to",
    "The master weight and bias keep their bytes: a layer copies what it takes from them.",
    lambda case: case.has_parameters and case.procedure not in ("init", "refuse"),
    origin="ModelTC/LightX2V#1390",
)
def masters_unchanged(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _mutated(("master_weight", "master_bias", "master_weight2", "master_bias2"), seen)


@clause(
    "purity.no-alias",
    "Results share storage with nothing of the caller's",
    """Outputs and gradients share storage neither with the input, the upstream gradient nor a parameter. The bias that
    skip_bias_add returns is the parameter itself; copy, scatter, and every function at P = 1 may return views.""",
    has_values,
    origin="ModelTC/LightX2V#1390",
)
def no_alias(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    views = case.layer in ("copy", "scatter") or (not case.has_parameters and case.P == 1)
    for observation in seen:
        for step in observation.steps.values():
            for pair in step.shared:
                mine, theirs = pair.split("/")
                own = (mine == "output" or mine.endswith(".grad")) and not theirs.startswith("master")
                if own and not (views and mine == "output" and theirs == "x"):
                    yield Violation(
                        observation.rank,
                        step.name,
                        f"{mine} shares storage with {theirs}",
                        "storage of its own",
                        "shared",
                    )
