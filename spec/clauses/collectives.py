"""Collectives: reductions in the right dtype, and no more of them than the contract's table allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import has_values
from spec.contract import Budget, agreement, runs_backward
from spec.observation import Collective, Observation
from spec.register import Violation, clause
from spec.truth import Truth

# Kinds that copy data without computing may travel in another dtype (bytes); a reduction may not.
_REDUCING = ("all-reduce", "reduce-scatter")
# Recomputing a forward repeats its collectives.
SECOND_COUNTS = (
    "twice",
    "delay",
    "accumulate",
    "update",
    "deepcopy",
    "pickle",
    "functional-call",
    "compile",
    "compile-inductor",
)


def _communicates(case: Case) -> bool:
    return case.P > 1 and has_values(case)


def _logs(case: Case, seen: Sequence[Observation]) -> Iterator[tuple[int, str, tuple[Collective, ...]]]:
    names = ("first", "second") if case.procedure in SECOND_COUNTS else ("first",)
    for observation in seen:
        for name in names:
            step = observation.steps.get(name)
            if step is not None and step.collectives is not None:
                yield observation.rank, name, step.collectives


def _budget(case: Case, seen: Sequence[Observation], phase: str, planned: tuple[Budget, ...]) -> Iterator[Violation]:
    wanted = [str(entry) for entry in planned]
    for rank, name, log in _logs(case, seen):
        got = [f"{entry.kind} {entry.bytes} B" for entry in log if entry.phase == phase]
        if sorted(got) != sorted(wanted):
            yield Violation(
                rank,
                name,
                f"the collectives of the {phase} are others",
                "; ".join(wanted) or "none",
                "; ".join(got) or "none",
            )


@clause(
    "collectives.dtype",
    "Reductions run in the computation's dtype",
    "A reduction runs in the dtype of the tensor that it reduces; under autocast in the autocast dtype.",
    _communicates,
    origin="NVIDIA/TransformerEngine#3555, NVIDIA/Megatron-LM#6624",
)
def reduction_dtype(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, name, log in _logs(case, seen):
        for entry in log:
            if entry.kind in _REDUCING and entry.dtype != case.compute_dtype:
                yield Violation(rank, name, f"{entry} reduces in another dtype", case.compute_dtype, entry.dtype)


@clause(
    "collectives.forward-budget",
    "The forward communicates what the table says",
    """Column and merged: nothing, or one all-gather of the slice with gather_output. qkv: nothing. Row: one all-reduce
    of Y, none with reduce_output=False. copy, scatter: nothing; reduce: one all-reduce; gather: one all-gather. A zero
    batch calls too.""",
    _communicates,
    level="SHOULD",
    origin="deepspeedai/DeepSpeed#8204, sgl-project/sglang#33289",
)
def forward_budget(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _budget(case, seen, "forward", agreement(case).forward)


@clause(
    "collectives.backward-budget",
    "The backward communicates what the table says",
    """Column, merged and qkv: one all-reduce of the input's gradient, only if the input needs one. qkv, where c > 1
    ranks hold a key head: besides, for each trained parameter, one all-reduce of its key and value rows among them.
    Row: nothing, or one all-gather with
    input_is_parallel=False if the input needs a gradient. copy: one all-reduce; scatter: one all-gather; reduce and
    gather: nothing.""",
    lambda case: _communicates(case) and runs_backward(case),
    level="SHOULD",
    origin="deepspeedai/DeepSpeed#8204, pytorch/torchtitan#1805, pytorch/pytorch#58005",
)
def backward_budget(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _budget(case, seen, "backward", agreement(case).backward)
