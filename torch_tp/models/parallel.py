"""`parallelize`: an unmodified model, with the parameters that may be sharded as shards of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_tp.group import Group, GroupLike, find_group, find_or_detach
from torch_tp.models.agreement import compare_models, together
from torch_tp.models.changes import Changes, changes_of
from torch_tp.models.guard import Guard, described, kind_of, shapes_of
from torch_tp.models.plan import Style, planned
from torch_tp.models.report import Report, report_of

_OWNER = "torch_tp.parallelize"
_Call = tuple[Sequence[Any], Mapping[str, Any]]


def parallelize(
    module: nn.Module,
    group: GroupLike | None = None,
    plan: Mapping[str, Style] | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    example: Any = None,
    verify: bool = False,
    strict: bool = False,
) -> nn.Module:
    """Shard the parameters of a model over the ranks of a group, in place, and report what became of each.

    Call it on every rank, with models that hold the same values, before an optimizer takes the parameters. Forward,
    inputs and outputs stay what they were: inputs and outputs are replicated. `module.tp_report` is the `Report`; print
    it. Gradients and norms: `torch_tp.clip_grad_norm_`.

    Without a plan the parameters are chosen by what the model computes, never by names (`torch_tp.models.planning`): a
    parameter is sharded only if every later operation provably works on shards, up to a product that sums over the
    sharded dimension. What cannot be proven stays replicated, and the report says why. For this the model runs a few
    times, in evaluation and in training mode, on tensors without data; its hooks run too. A proof holds for the calls
    that were followed: another set of arguments, another value that is not a tensor, or a mode that could not be
    followed, gives an `UnprovenCallWarning`, once.

    Args:
        module: any module. Each `nn.Linear` that is sharded becomes a layer, and keeps its hooks, dtype, device,
            requires_grad and training mode. Other modules, such as GPT-2's Conv1D or the experts of a mixture, keep
            their code and get shards of their parameters. Modules and parameters that it holds twice stay shared.
            An attribute that holds a size of the dense model, such as a number of heads, gets that of a rank where the
            proof needs it; the report names it.
        group: a ProcessGroup or one-dimensional DeviceMesh. None: the group of `init_tensor_parallel`, else the world.
        plan: path of an `nn.Linear`, or a pattern as of `fnmatch`, to a style: "column" (or "colwise"), "row"
            ("rowwise"), "replicated" ("replicate"), "colwise_gather_output" (its output is replicated),
            "rowwise_split_input" (its input is), ("merged", output_sizes) and ("qkv", head_size, total_num_heads,
            total_num_kv_heads) for fused projections. Whatever it does not name is replicated. The plan is not proven.
        rank, world_size: where there is a group, which rank of how many this is, to be checked. Without one, the parts
            of this rank are made all the same; a forward that must communicate raises NoProcessGroupError.
        example: the arguments of one forward, or a list of several such: a tensor, a tuple of positional or a dict of
            keyword arguments, of whose tensors shape and dtype alone count. None: the model's own `dummy_inputs`, if it
            has any, else tensors that fit its first layer.
        verify: run the model on the example before and after, forward and backward, and compare its outputs and all
            gradients; the bounds are derived (`torch_tp.models.verification`). Takes several runs of the dense model on
            every rank. Needs a group, parameters with values, and an example with sensible ones.
        strict: raise `UnprovenCallError` in place of the warning.

    Raises:
        ValueError: the module was parallelised already, or its parameters lie on several devices; a pattern matches no
            linear; two patterns disagree about one; an unknown style; sizes that P does not divide; no example fits;
            what cannot be verified.
        TypeError: `module` is no module, a plan no mapping.
        NoProcessGroupError: `group` is None and nothing is initialized.
        RankMismatchError: the ranks' models, examples or plans differ; on every rank.
        VerificationError: `verify` found outputs or gradients that are not the dense ones; on every rank.

    Whatever is raised, the module is as it was.
    """
    where = _checked(module, plan, group, rank, world_size)
    guessed = example is None and getattr(module, "dummy_inputs", None) is None
    with together(_OWNER, where):
        alternatives = list(_examples(module, example))
    calls = alternatives[0] if not guessed else [call for each in alternatives for call in each]
    compare_models(_OWNER, module, where, calls, plan=repr(plan), example_values=not guessed)
    with together(_OWNER, where):
        if plan is None:
            changes, report = _derived(module, where, alternatives, example is not None, strict)
        else:
            changes, styles = planned(_OWNER, module, plan, where)
            report = report_of(module, where.size, changes, styles, None, "the plan does not shard it")
    if verify:
        from torch_tp.models.verification import verified

        changed = {*changes.layers, *changes.boundaries}
        apply = partial(changes.apply, module)
        text = verified(_OWNER, module, where, changed, calls, apply, guessed=guessed, compared=True)
        report = replace(report, verified=text)
    else:
        changes.apply(module)
    vars(module)["tp_report"] = report  # what a module declares no attribute for, its stubs take for a tensor
    return module


def _checked(module: Any, plan: Any, group: GroupLike | None, rank: int | None, world_size: int | None) -> Group:
    """The group that is meant, once the arguments were looked at: on every rank, or on none."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{_OWNER}: the module is a {type(module).__name__}; it must be a torch.nn.Module")
    where = _group(group, rank, world_size)
    with together(_OWNER, where):
        _check(module, plan)
    return where


def _check(module: nn.Module, plan: Any) -> None:
    if plan is not None and not isinstance(plan, Mapping):
        raise TypeError(
            f"{_OWNER}: plan is a {type(plan).__name__}; it must be a mapping of patterns to styles, or None"
        )
    wrapped = next((path or "the module" for path, each in module.named_modules() if hasattr(each, "tp_report")), "")
    if wrapped:
        raise ValueError(f"{_OWNER}: {wrapped} is parallel already; wrap a fresh one")
    devices: dict[torch.device, str] = {}
    for name, parameter in module.named_parameters():
        devices.setdefault(parameter.device, name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"{_OWNER}: the parameters lie on several devices ({places}); move the module to one first")


def _group(group: GroupLike | None, rank: int | None, world_size: int | None) -> Group:
    """The group that is meant, which is there already or is none."""
    if (rank is None and world_size is None) or (group is None and not dist.is_initialized()):
        return find_or_detach(_OWNER, group, rank, world_size)
    found = find_group(_OWNER, group)
    if (rank, world_size) != (found.rank, found.size):
        raise ValueError(
            f"{_OWNER}: rank = {rank}, world_size = {world_size}; in the group this is rank {found.rank} of"
            f" {found.size}"
        )
    return found


def _derived(
    module: nn.Module, group: Group, alternatives: Sequence[Sequence[_Call]], given: bool, strict: bool
) -> tuple[Changes, Report]:
    """What is proven to be fit for being sharded."""
    from torch_tp.models.planning import Example, Unfollowable, derive  # it takes a while to import

    failures: list[Unfollowable] = []
    for calls in alternatives:
        try:
            derived = derive(module, group.size, [Example(args, kwargs) for args, kwargs in calls])
            break
        except Unfollowable as error:
            failures.append(error)
    else:
        known = "; ".join(each.reason for each in failures) or "nothing is known of its inputs"
        asked = "give another example=" if given else "give example=, the arguments of one forward,"
        raise ValueError(f"{_OWNER}: the module cannot be followed without data; {asked} or a plan ({known})") from (
            failures[0] if failures else None
        )
    changes = changes_of(module, derived, group)
    kinds = [(each.training, *kind_of(module, each.args, each.kwargs)[1:]) for each in derived.followed]
    shapes = [shapes_of(module, each.args, each.kwargs) for each in derived.followed]
    changes.guard = Guard(_OWNER, kinds, shapes, derived.decided, strict) if group.size > 1 else None
    styles = dict.fromkeys(changes.layers.keys() & {*derived.attention}, "attention by heads")
    report = report_of(module, group.size, changes, styles, derived, "it was not called")
    return changes, replace(report, proven=described(kinds), notes=derived.notes)


def _examples(module: nn.Module, example: Any) -> Iterator[list[_Call]]:
    """Lists of calls to try, the likeliest first."""
    if example is None:
        example = getattr(module, "dummy_inputs", None)
    if example is not None:
        yield [_call(each) for each in (example if isinstance(example, list) else [example])]
        return
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            tokens = torch.arange(16, device=each.weight.device).remainder(each.num_embeddings)
            yield [((tokens.view(2, 8),), {})]
            return
        if isinstance(each, nn.Linear):
            like: Tensor = each.weight
            yield [((like.new_empty(2, 8, each.in_features),), {})]
            yield [((like.new_empty(2, each.in_features),), {})]
            return


def _call(example: Any) -> _Call:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}
