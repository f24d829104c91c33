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
    """Every collective runs on the tensor-parallel group that the layer was given: not the world, not another group.
    Of qkv, whose key and value heads may have copies, one may run among the neighbours that hold the same heads.""",
    lambda case: case.P > 1 and has_values(case),
    origin="NVIDIA/Megatron-LM#7452, pytorch/xla#5279",
)
def group(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        mine = next((ranks for ranks in case.group_ranks if observation.steps and _is_mine(observation, ranks)), None)
        allowed = {mine, _sharers(case, mine, observation.rank)}
        for name, step in observation.steps.items():
            for entry in step.collectives or ():
                if entry.ranks is not None and mine is not None and tuple(sorted(entry.ranks)) not in allowed:
                    yield Violation(
                        observation.rank,
                        name,
                        f"{entry} ran on another group",
                        f"ranks {list(mine)}",
                        f"ranks {list(entry.ranks)}",
                    )


def _sharers(case: Case, ranks: tuple[int, ...] | None, rank: int) -> tuple[int, ...] | None:
    """Of a group's ranks those that hold the same slices as one of them."""
    copies = max(case.copies) if case.linear else 1
    first = rank // copies * copies
    return ranks[first : first + copies] if ranks and copies > 1 else ranks


def _is_mine(observation: Observation, ranks: tuple[int, ...]) -> bool:
    return next(iter(observation.steps.values())).facts.get("global_rank") in ranks
