"""Groups: a layer talks to the ranks of its own group and to no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import has_values
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


@clause(
    "collectives.group",
    "Collectives run on the given group",
    "Every collective runs on the tensor-parallel group that the layer was given: not the world, not another group.",
    lambda case: case.P > 1 and has_values(case),
    origin="NVIDIA/Megatron-LM#7452, pytorch/xla#5279",
)
def group(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        mine = next((ranks for ranks in case.group_ranks if observation.steps and _is_mine(observation, ranks)), None)
        for name, step in observation.steps.items():
            for entry in step.collectives or ():
                if entry.ranks is not None and mine is not None and tuple(sorted(entry.ranks)) != mine:
                    yield Violation(
                        observation.rank,
                        name,
                        f"{entry} ran on another group",
                        f"ranks {list(mine)}",
                        f"ranks {list(entry.ranks)}",
                    )


def _is_mine(observation: Observation, ranks: tuple[int, ...]) -> bool:
    return next(iter(observation.steps.values())).facts.get("global_rank") in ranks
