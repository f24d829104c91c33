"""One rank: at P = 1 a layer is the unsharded layer, bit for bit, with nothing added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import has_values, same_bits
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


def _alone(case: Case) -> bool:
    return case.P == 1 and case.linear and has_values(case)


@clause(
    "one-rank.bits",
    "At P = 1 the bits are nn.Linear's",
    "At P = 1 output and gradients have the bits of the unsharded layer, for every layout of the input.",
    lambda case: _alone(case) and case.procedure in ("run", "precision", "no-grad", "inference"),
    origin="pytorch/pytorch#127213, pytorch/pytorch#154928, pytorch/xla#9670, pytorch/pytorch#113761",
)
def bits(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        mine, dense = observation.steps["first"], observation.steps.get("dense")
        if dense is None:
            continue
        if not same_bits(mine.output, dense.output):
            yield Violation(
                observation.rank,
                "first",
                "output has other bits than the unsharded layer's",
                str(dense.output),
                str(mine.output),
            )
        for name, array in dense.gradients.items():
            if name in mine.gradients and not same_bits(mine.gradients[name], array):
                yield Violation(
                    observation.rank, "first", f"gradient of {name} has other bits than the unsharded layer's"
                )


@clause(
    "one-rank.nodes",
    "At P = 1 the graph is nn.Linear's",
    "At P = 1 the autograd graph has the unsharded layer's nodes and no others.",
    lambda case: _alone(case) and case.procedure == "run" and not case.skip_bias_add,
    level="SHOULD",
)
def nodes(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        dense = observation.steps.get("dense")
        if dense is None or "nodes" not in dense.facts:
            continue
        mine, wanted = observation.steps["first"].facts["nodes"], dense.facts["nodes"]
        if list(mine) != list(wanted):
            yield Violation(observation.rank, "first", "the autograd graph has other nodes", str(wanted), str(mine))


@clause(
    "one-rank.no-collective",
    "At P = 1 nothing is communicated",
    "At P = 1 no collective is entered.",
    lambda case: case.P == 1 and case.procedure != "refuse",
    level="SHOULD",
)
def silent(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        for name, step in observation.steps.items():
            if step.collectives:
                yield Violation(
                    observation.rank, name, "entered a collective", "none", "; ".join(map(str, step.collectives))
                )
