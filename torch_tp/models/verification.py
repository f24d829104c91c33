"""A sharded model is compared with its dense twin: the same outputs and gradients, up to rounding.

Both run on the same calls in evaluation and in training mode, with equal random states. Bounds are derived from the
dense model itself (`rounding`). Whatever the runs write is restored (`snapshot`), and every rank raises if one rank
finds a fault (`verdict`, `agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.errors import VerificationError
from torch_tp.group import Group
from torch_tp.internals import FakeTensor, pytree
from torch_tp.models.agreement import Call, compare_models, exchange, together
from torch_tp.models.passes import Pass, drawn, gradient_hooks, run_once
from torch_tp.models.rounding import Rounding, bounds, deviation, is_float, largest, widen
from torch_tp.models.snapshot import Snapshot
from torch_tp.models.verdict import Bounds, agreed_or_not, judged

_RUNS = 3  # perturbed ones
_ROOM = 1 << 16  # bytes of the names of all trials


@dataclass(frozen=True)
class Trial:
    """One call of the dense model in one mode, to be repeated with the sharded model.

    Attributes:
        mode: "in evaluation mode" or "in training mode", and which call it is if there are several.
    """

    mode: str
    call: Call
    training: bool
    dense: Pass
    bounds: Bounds


def verified(
    owner: str,
    model: nn.Module,
    group: Group,
    paths: Collection[str],
    examples: Sequence[Call],
    change: Callable[[], None],
    *,
    guessed: bool = False,
    compared: bool = False,
) -> str:
    """Run a model on each example, let `change` shard it in place, run it again, and say how near the two are.

    Every rank of the group must call it. Every example runs in evaluation and in training mode, forward and backward;
    in training mode without dropout, whose masks of shards differ from those of the dense model. Where the dense model
    cannot run in training mode, or where random numbers are drawn for sharded values, training mode is not compared,
    and the result says so. Nothing but what `change` does is left behind.

    Args:
        owner: the function that the caller called, for errors.
        paths: the modules that `change` replaces.
        examples: the arguments of calls. Tensors without data get normal values.
        guessed: the examples are alternatives without values. Only the first one that the model takes is used.
        compared: the ranks' models and examples were compared already.

    Returns:
        A sentence for the report.

    Raises:
        ValueError: there is no group to communicate in, or no data, or nothing to compare.
        RankMismatchError: the ranks' models or examples differ.
        VerificationError: the sharded model differs from the dense one. Every rank raises it.

    Whatever is raised, the model is as it was.
    """
    with together(owner, group):
        _refuse(owner, _unfit(model, group))
        calls = [_with_values(call, model, guessed) for call in examples]
    if not compared:
        compare_models(owner, model, group, calls)
    before = Snapshot(model, values=True, also=calls)
    rehearsal = _Rehearsal(owner, model, paths, before, gradient_hooks(model), group.size)
    try:
        with together(owner, group):
            trials, notes = rehearsal.trials(calls, guessed)
        trials = _on_every_rank(owner, group, trials, notes)
        with together(owner, group):
            change()
        after = replace(rehearsal, snapshot=Snapshot(model, values=True, also=calls))
        compared_trials, ratio = after.repeated(group, trials, notes)
    except BaseException:
        before.restore()
        raise
    return _summary(compared_trials, ratio, notes)


def _on_every_rank(owner: str, group: Group, trials: Sequence[Trial], notes: list[str]) -> list[Trial]:
    """The trials that all ranks can make; others would leave ranks waiting in a collective."""
    texts = exchange(owner, group, "\n".join(trial.mode for trial in trials), _ROOM)
    common = [trial for trial in trials if all(trial.mode in text.split("\n") for text in texts)]
    if len(common) < len(trials):
        notes.append("training mode was not compared: the dense model cannot run in it on another rank")
    return common


def _summary(trials: Sequence[Trial], ratio: float, notes: Sequence[str]) -> str:
    """The sentence for the report."""
    dense = trials[0].dense
    count = sum(not name.startswith("output") for name in dense.results)
    widest = max(
        trial.bounds.results[name] / (largest(value) or 1.0)
        for trial in trials
        for name, value in trial.dense.results.items()
        if name.startswith("output")
    )
    modes = ["evaluation mode"]
    if any(trial.training for trial in trials):
        off = any(trial.dense.dropped for trial in trials)
        modes.append("training mode (with dropout off)" if off else "training mode")
    calls = sum(not trial.training for trial in trials)
    return "; ".join(
        [
            f"outputs and {count} gradients lie within their bounds in {' and '.join(modes)}"
            f"{f', for each of {calls} calls' if calls > 1 else ''}",
            f"the largest deviation is {ratio:.2g} of its bound",
            f"the widest bound of an output is {widest:.2g} of its largest element",
            *dict.fromkeys(notes),
        ]
    )


def _refuse(owner: str, reason: str) -> None:
    if reason:
        raise ValueError(f"{owner}: verify=True: {reason}")


def _unfit(model: nn.Module, group: Group) -> str:
    """Why a model cannot be verified, or an empty string."""
    if not group.attached:
        return (
            f"rank = {group.rank}, world_size = {group.size} came without a process group, so that the sharded model"
            " cannot run; verify it in one"
        )
    empty = [name for name, each in (*model.named_parameters(), *model.named_buffers()) if each.is_meta]
    return f"{empty[0]} is on the meta device and holds no values to compute with" if empty else ""


def _with_values(call: Call, model: nn.Module, guessed: bool) -> Call:
    """A call whose tensors have values: normal ones where it is guessed, or comes without data."""

    def filled(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        without_data = leaf.is_meta or isinstance(leaf, FakeTensor)
        if without_data:
            device = next((each.device for each in model.parameters()), torch.device("cpu"))
            leaf = torch.full(tuple(leaf.shape), leaf.dtype == torch.bool, dtype=leaf.dtype, device=device)
        return drawn(leaf, 1) if (guessed or without_data) and is_float(leaf) else leaf

    args, kwargs = pytree.tree_map(filled, (tuple(call[0]), dict(call[1])))
    return args, kwargs


@dataclass(frozen=True)
class _Rehearsal:
    """The runs of a model: of the dense one, which need no other rank, and then of the sharded one."""

    owner: str
    model: nn.Module
    paths: Collection[str]
    snapshot: Snapshot
    silent: Collection[int]
    P: int

    def trials(self, calls: Sequence[Call], guessed: bool) -> tuple[list[Trial], list[str]]:
        """The trials, and notes about those that cannot be made."""
        usable, failures = [], []
        for call in calls:
            dense = self._run(call, False)
            if dense.raised is None:
                usable.append((call, dense))
            else:
                failures.append(_text(dense.raised))
            if guessed and usable:
                break
        if not usable or (failures and not guessed):
            _refuse(
                self.owner,
                "the dense model cannot run; give example=, the arguments of one forward"
                f" ({'; '.join(failures) or 'nothing is known of its inputs'})",
            )
        trials, notes = list[Trial](), list[str]()
        for number, (call, dense) in enumerate(usable):
            which = f", call {number + 1}" if len(usable) > 1 else ""
            trial = self._trial(f"in evaluation mode{which}", call, False, dense)
            _refuse(self.owner, trial if isinstance(trial, str) else "")
            other = self._trial(f"in training mode{which}", call, True, self._run(call, True))
            trials += [each for each in (trial, other) if isinstance(each, Trial)]
            notes += [f"training mode was not compared: {other}"] if isinstance(other, str) else []
        return trials, notes

    def _trial(self, mode: str, call: Call, training: bool, dense: Pass) -> Trial | str:
        """A trial, or why there can be none."""
        if dense.raised is not None:
            return f"the dense model raises {_text(dense.raised)}"
        results, steps = dict.fromkeys(dense.results, 0.0), dict.fromkeys(dense.steps, 0.0)
        for seed in range(_RUNS):
            other = self._run(call, training, Rounding(self.P, seed))
            if other.raised is not None:
                raise other.raised
            widen(results, dense.results, other.results)
            widen(steps, dense.steps, other.steps)
        limits = Bounds(bounds(results, dense.results), bounds(steps, dense.steps))
        reason = senseless(dense, limits) or unsteady(dense, self._run(call, training), limits)
        return reason or Trial(mode, call, training, dense, limits)

    def repeated(self, group: Group, trials: Sequence[Trial], notes: list[str]) -> tuple[list[Trial], float]:
        """Run the sharded model; return the trials that could be compared, and the largest deviation over its bound."""
        compared, ratio = list[Trial](), 0.0
        for trial in trials:
            sharded = self._run(trial.call, trial.training)
            verdict = judged(self.model, group, trial.dense, sharded, trial.bounds, trial.mode)
            verdict = agreed_or_not(self.owner, verdict, group)
            if trial.training and verdict.reason and verdict.other_draws:
                notes.append("training mode was not compared: random numbers are drawn for sharded values")
            elif verdict.reason:
                raise VerificationError(
                    f"{self.owner}: over P = {group.size} ranks {verdict.reason}; the model is as it was"
                )
            else:
                compared.append(trial)
                ratio = max(ratio, verdict.ratio)
        return compared, ratio

    def _run(self, call: Call, training: bool, rounding: Any = None) -> Pass:
        return run_once(
            self.model,
            call,
            training=training,
            snapshot=self.snapshot,
            paths=self.paths,
            silent=self.silent,
            rounding=rounding,
        )


def senseless(dense: Pass, limits: Bounds) -> str:
    """Why the results of the dense model cannot be compared with anything, or an empty string."""
    if not any(name.startswith("output") for name in dense.results):
        return "the model's output holds no floating-point tensor to compare"
    wild = [name for name, bound in limits.results.items() if not math.isfinite(bound)]
    return f"the {wild[0]} of the dense model is not finite; give another example=" if wild else ""


def unsteady(dense: Pass, again: Pass, limits: Bounds) -> str:
    """Why two equal runs of the dense model differ, or an empty string if they do not by more than rounding.

    Some kernels sum in another order each time. That is far less than the square root of the roundoff, or than half of
    what a perturbed run deviates by; a model that draws its own random numbers deviates by more than both.
    """
    if again.raised is not None:
        return f"the dense model raises {_text(again.raised)} when it runs again"
    for name, value in dense.results.items():
        found = again.results.get(name)
        if found is None or found.shape != value.shape:
            return f"the {name} of the dense model has another shape when it runs again"
        off = deviation(found, value)
        if off > torch.finfo(value.dtype).eps ** 0.5 * largest(value) and off > limits.results[name] / 4:
            return f"the {name} of the dense model differs between two runs with equal random states"
    return ""


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
