"""Whether a sharded model computed what its dense twin did, where the two part, and what the ranks agree on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_tp.group import Group
from torch_tp.layers.linear import ShardedLinear
from torch_tp.models.agreement import exchange
from torch_tp.models.passes import Pass, Step
from torch_tp.models.rounding import deviation
from torch_tp.placements import Placement, Shard

_ROOM = 1024  # bytes of a rank's verdict


@dataclass(frozen=True)
class Bounds:
    """How far each result and each step of the sharded model may be from that of the dense one."""

    results: Mapping[str, float]
    steps: Mapping[Step, float]


@dataclass(frozen=True)
class Verdict:
    """What one rank, or all of them, make of a pass.

    Attributes:
        ratio: the largest deviation of any result, divided by its bound.
        reason: what is wrong; empty if nothing is.
        other_draws: whether the sharded model drew random numbers for other shapes than the dense one. Then a
            difference may be no fault.
    """

    ratio: float
    reason: str = ""
    other_draws: bool = False


def judged(model: nn.Module, group: Group, dense: Pass, sharded: Pass, bounds: Bounds, mode: str) -> Verdict:
    """This rank's verdict; `mode` says in which mode of the model."""
    ratio, wrong = 0.0, []
    for name, replicated in dense.results.items() if sharded.raised is None else ():
        wanted = _local(replicated, _placement(model, name), group)
        found, bound = sharded.results.get(name), bounds.results[name]
        if found is None or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            wrong.append((name, f"{name} is {_kind(found)} in place of {_kind(wanted)}"))
            continue
        off = deviation(found, wanted)
        ratio = max(ratio, off / bound if bound else math.inf if off else 0.0)
        if off > bound:
            wrong.append((name, f"{name} is off by {off:.3g}, where rounding explains {bound:.3g}"))
    if sharded.raised is None and not wrong:
        return Verdict(ratio)
    if sharded.raised is None:
        name, what = wrong[0]
        owner = _owner(name)
        if len(wrong) > 1:
            what += f" (and {len(wrong) - 1} more of its {len(dense.results)} outputs and gradients are wrong)"
    else:
        owner = sharded.running[-1] if sharded.running else ""
        what = f"it raises {type(sharded.raised).__name__}: {' '.join(str(sharded.raised).split())[:300]}"
    where = _first_apart(model, group, dense, sharded, bounds) or _named(model, owner)
    reason = f"the model does not compute what it did {mode}: it goes wrong at {where}; {what}"
    return Verdict(ratio, reason, sharded.raised is None and sharded.draws != dense.draws)


def _first_apart(model: nn.Module, group: Group, dense: Pass, sharded: Pass, bounds: Bounds) -> str:
    """The first module, in the order of execution, through which other values pass; empty if there is none.

    Only replicated values, and the shards of parallel layers, can be compared. Other shards are passed over.
    """
    for step, value in dense.steps.items():
        layer, mine = model.get_submodule(step.path), sharded.steps.get(step)
        if mine is None:
            continue
        if mine.shape != value.shape and isinstance(layer, ShardedLinear):
            placement = layer.weight_placement
            if isinstance(placement, Shard) and (placement.dim == 0) == ("output" in step.what):
                value = _local(value, Shard(value.dim() - 1, placement.sizes, placement.copies), group)
        if mine.shape == value.shape and (off := deviation(mine, value)) > bounds.steps[step]:
            more = f" in call {step.call + 1}" if step.call else ""
            return (
                f"{_named(model, step.path)}, whose {step.what.removeprefix('gradient of its ')}"
                f"{' has a gradient that' if step.what.startswith('gradient') else ''}{more} is off by {off:.3g}, where"
                f" rounding explains {bounds.steps[step]:.3g}"
            )
    return ""


def _named(model: nn.Module, path: str) -> str:
    return f"{path} ({type(model.get_submodule(path)).__name__})" if path else "the model's own forward"


def _owner(result: str) -> str:
    """The path of the module whose parameter has this gradient."""
    return "" if result.startswith(("output", "gradient of input ")) else result.split()[-1].rpartition(".")[0]


def _placement(model: nn.Module, result: str) -> Placement | None:
    if result.startswith(("output", "gradient of input ")):
        return None
    placement: Placement | None = getattr(model.get_parameter(result.split()[-1]), "placement", None)
    return placement


def _local(value: Tensor, placement: Placement | None, group: Group) -> Tensor:
    """This rank's shard of a value."""
    if not isinstance(placement, Shard):
        return value
    ranges = placement.ranges(value.shape[placement.dim], group.size, group.rank)
    return torch.cat([value.narrow(placement.dim, part.start, len(part)) for part in ranges], placement.dim)


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


# -- what the ranks agree on


def agreed_or_not(owner: str, verdict: Verdict, group: Group) -> Verdict:
    """The verdict of all ranks; this rank's own if they cannot exchange it, such as after one of them raised alone."""
    try:
        return agreed(owner, verdict, group)
    except RuntimeError:
        if not verdict.reason:
            raise
        reason = f"{verdict.reason} (on rank {group.rank}; after that the ranks could not reach one another)"
        return Verdict(verdict.ratio, reason)


def agreed(owner: str, verdict: Verdict, group: Group) -> Verdict:
    """The largest ratio of all ranks, and the reason of the first rank that has one."""
    texts = exchange(owner, group, f"{verdict.ratio} {int(verdict.other_draws)} {verdict.reason}", _ROOM)
    ratios, draws, reasons = zip(*(text.split(" ", 2) for text in texts), strict=True)
    found = [rank for rank, reason in enumerate(reasons) if reason]
    ratio, other_draws = max(map(float, ratios)), any(map(int, draws))
    if not found:
        return Verdict(ratio)
    where = f"(found on rank{'s' * (len(found) > 1)} {', '.join(map(str, found))})"
    return Verdict(ratio, f"{reasons[found[0]]} {where}", other_draws)
