"""Parameters: every rank holds its slice of the masters, bit for bit, in storage of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.tensors import shards
from spec.observation import Observation
from spec.register import Applies, Violation, clause
from spec.truth import Truth


def _holds(layer: str, bias: bool = False) -> Applies:
    return lambda case: case.layer == layer and case.procedure not in ("init", "refuse") and (case.bias or not bias)


@clause(
    "column.weight.shard",
    "Column-parallel weight: the rank's rows of the master",
    "Rank r holds W[r O/P : (r+1) O/P, :] of the master weight [O, I].",
    _holds("column"),
    origin="vllm-project/vllm-gguf-plugin#103, predibase/lorax#47, NVIDIA/Megatron-LM#360",
)
def column_weight(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from shards(case, truth, seen, "weight")


@clause(
    "column.bias.shard",
    "Column-parallel bias: the rank's elements of the master",
    "Rank r holds b[r O/P : (r+1) O/P] of the master bias [O].",
    _holds("column", bias=True),
    origin="ModelTC/LightX2V#1453, vllm-project/vllm-gguf-plugin#103",
)
def column_bias(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from shards(case, truth, seen, "bias")


@clause(
    "row.weight.shard",
    "Row-parallel weight: the rank's columns of the master",
    "Rank r holds W[:, r I/P : (r+1) I/P] of the master weight [O, I].",
    _holds("row"),
    origin="predibase/lorax#47",
)
def row_weight(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from shards(case, truth, seen, "weight")


@clause(
    "row.bias.replicated",
    "Row-parallel bias: whole on every rank",
    "Every rank holds the whole master bias [O].",
    _holds("row", bias=True),
    origin="huggingface/text-generation-inference#1036, NVIDIA-NeMo/Automodel#1291",
)
def row_bias(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from shards(case, truth, seen, "bias")


@clause(
    "parameters.own-storage",
    "Shards own their storage",
    "A shard shares no storage with the master it was cut from, and its storage holds the shard and nothing else.",
    lambda case: case.has_parameters and case.procedure not in ("init", "refuse"),
    origin="pytorch/pytorch#79400, hpcaitech/ColossalAI#5122, ModelTC/LightX2V#1390",
)
def own_storage(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        for step in observation.steps.values():
            for pair in step.shared:
                mine, theirs = pair.split("/")
                if mine in ("weight", "bias", "weight2", "bias2") and theirs.startswith("master"):
                    yield Violation(
                        observation.rank,
                        step.name,
                        f"{mine} shares storage with {theirs}",
                        "storage of its own",
                        "shared",
                    )
            for name, held in step.facts.get("storage_bytes", {}).items():
                array = step.parameters.get(name)
                size = len(array.bits) if array else held
                if held != size:
                    yield Violation(
                        observation.rank, step.name, f"{name}'s storage is not the shard's", f"{size} B", f"{held} B"
                    )
