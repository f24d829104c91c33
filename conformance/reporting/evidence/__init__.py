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

from collections.abc import Sequence
from typing import Any

from conformance.reporting.evidence import flow
from conformance.reporting.evidence.shown import MOST
from conformance.reporting.evidence.steps import held_if_lost, steps_of
from spec import Case, Observation, Truth

__all__ = ["MOST", "evidence"]


def evidence(case: Case, truth: Truth, observations: Sequence[Observation], group: int = 0) -> dict[str, Any] | None:
    """What became of a case's tensors and collectives in one of its groups; None where it has none to show.

    Of the steps of its procedure it is the first with a wrong tensor, else the first whose collectives are not those
    that the contract asks for, else the first.
    """
    head = {"P": case.P, "layer": case.layer, "ranks": list(case.group_ranks[group])}
    if any(entry.fate != "returned" or entry.raised for entry in observations):
        held = [tensor.as_data("first") for tensor in held_if_lost(case, truth, group)]
        return head | {"step": "first", "tensors": held} | flow.of_lost(observations)
    steps = {name: shown for name, shown in steps_of(case, truth, observations) if shown}
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
