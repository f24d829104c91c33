"""An unmodified model, with the parameters that may be cut in slices over the ranks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_tp.checks import divisibility
from torch_tp.group import Group, GroupLike, find_group, find_or_detach
from torch_tp.models.changes import Changes, changes_of, layer_for
from torch_tp.models.report import Report, report_of

_OWNER = "torch_tp.parallelize"
# What a plan may say -> the layer, and what P must divide. The second names are those of DTensor and transformers.
_STYLES: Mapping[str, tuple[str, str]] = {
    "column": ("column", "out_features"),
    "colwise": ("column", "out_features"),
    "row": ("row", "in_features"),
    "rowwise": ("row", "in_features"),
    "colwise_gather_output": ("column with a whole output", "out_features"),
    "rowwise_split_input": ("row of a whole input", "in_features"),
    "merged": ("merged column", ""),
    "qkv": ("qkv", ""),
    "replicated": ("", ""),
    "replicate": ("", ""),
}
_FUSED = {"merged": "output_sizes", "qkv": "head_size, total_num_heads and total_num_kv_heads"}
Style = str | tuple[Any, ...]


def parallelize(
    module: nn.Module,
    group: GroupLike | None = None,
    plan: Mapping[str, Style] | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    example: Any = None,
    verify: bool = False,
) -> nn.Module:
    """Cut the parameters of a model over the ranks of a group, in place, and tell what became of each.

    To be called on every rank, with models that hold the same values; call it before an optimizer takes the parameters.
    Forward, inputs and outputs stay what they were: inputs and outputs are replicated. `module.tp_report` is the
    `Report`; print it. Gradients and norms: `torch_tp.clip_grad_norm_`.

    Without a plan the parameters are chosen by what the model computes, never by names (`torch_tp.models`): those
    whose cut every further operation leaves in slices until a product sums over it. What cannot be proven stays
    replicated, and the report says why. For this the model runs a few times, in evaluation mode, on tensors without
    data; its hooks run too.

    Args:
        module: any module. Its `nn.Linear` that are cut are replaced by layers, and their hooks, dtype, device,
            requires_grad and training mode kept. Other modules, such as GPT-2's Conv1D or the experts of a mixture,
            keep their code and get slices of their parameters. Modules and parameters that it holds twice stay shared.
            An attribute that holds a whole size, such as a number of heads, gets that of a rank where the proof needs
            it; the report names it.
        group: a ProcessGroup or one-dimensional DeviceMesh. None: the group of `init_tensor_parallel`, else the world.
        plan: path of an `nn.Linear`, or a pattern as of `fnmatch`, to a style: "column" (or "colwise"), "row"
            ("rowwise"), "replicated" ("replicate"), "colwise_gather_output" (its output is whole),
            "rowwise_split_input" (its input is), ("merged", output_sizes) and ("qkv", head_size, total_num_heads,
            total_num_kv_heads) for fused projections. Whatever it does not name is replicated. It is taken at its word.
        rank, world_size: where there is a group, which rank of how many this is, to be checked. Without one, the parts
            of this rank are made all the same; a forward that must communicate raises NoProcessGroupError.
        example: the arguments of one forward without a plan: a tensor, a tuple of positional or a dict of keyword
            arguments, of whose tensors shape and dtype alone count. None: the model's own `dummy_inputs`, if it has
            any, else tensors that fit its first layer.
        verify: run the model on the example before and after, forward and backward, in evaluation mode, and compare
            its outputs and all gradients; the bounds are derived (`torch_tp.models.verification`). Takes five runs of
            the whole model on every rank. Needs a group, parameters with values, and an example with sensible ones.

    Raises:
        ValueError: the module was parallelised already, or its parameters lie on several devices; a pattern matches no
            linear; two patterns disagree about one; a style that there is not; sizes that P does not divide; no example
            fits; what cannot be verified.
        TypeError: `module` is no module, a plan no mapping.
        NoProcessGroupError: `group` is None and nothing is initialized.
        VerificationError: `verify` found outputs or gradients that are not the dense ones; on every rank.

    Whatever is raised, the module is as it was.
    """
    _check(module, plan)
    where = _group(group, rank, world_size)
    if plan is None:
        changes, report = _derived(module, where, example)
    else:
        changes, report = _planned(module, plan, where)
    if verify:
        from torch_tp.models.verification import verified

        guessed = example is None and getattr(module, "dummy_inputs", None) is None
        changed, calls = {*changes.layers, *changes.boundaries}, list(_examples(module, example))
        text = verified(_OWNER, module, where, changed, calls, lambda: changes.apply(module), guessed=guessed)
        report = replace(report, verified=text)
    else:
        changes.apply(module)
    vars(module)["tp_report"] = report  # what a module declares no attribute for, its stubs take for a tensor
    return module


def _check(module: Any, plan: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{_OWNER}: the module is a {type(module).__name__}; it must be a torch.nn.Module")
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


def _planned(module: nn.Module, plan: Mapping[str, Style], group: Group) -> tuple[Changes, Report]:
    """What a plan asks for."""
    linears = {path: each for path, each in module.named_modules() if isinstance(each, nn.Linear)}
    chosen: dict[str, tuple[str, Style]] = {}
    for pattern, style in plan.items():
        _check_style(pattern, style)
        matched = [path for path in linears if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            raise ValueError(f"{_OWNER}: the pattern {pattern!r} of the plan matches no nn.Linear of the module")
        for path in matched:
            other, before = chosen.setdefault(path, (pattern, style))
            if before != style:
                raise ValueError(
                    f"{_OWNER}: the patterns {other!r} and {pattern!r} of the plan disagree about {path}: {before} and"
                    f" {style}"
                )
    changes, styles = Changes(), dict[str, str]()
    for path, (_, style) in chosen.items():
        name, *further = (style,) if isinstance(style, str) else style
        layer, divided = _STYLES[name]
        if not layer:
            continue
        reason = _irreplaceable(module, path)
        if divided:
            reason = reason or divisibility(divided, getattr(linears[path], divided), group.size)
        if reason:
            raise ValueError(f"{_OWNER}: {path} as {style}: {reason}")
        try:
            changes.layers[path] = layer_for(linears[path], (layer, *further), group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{_OWNER}: {path} as {style}: {error}") from None
        styles[path] = layer
    return changes, report_of(module, group.size, changes, styles, None, "the plan does not cut it")


def _check_style(pattern: str, style: Any) -> None:
    name, *further = style if isinstance(style, tuple) and style else (style,)
    if name not in _STYLES:
        known = ", ".join(_STYLES)
        raise ValueError(f"{_OWNER}: plan[{pattern!r}] = {style!r}; it must be one of {known}")
    if (name in _FUSED) != bool(further):
        needs = f"takes {_FUSED[name]} behind it, in a tuple" if name in _FUSED else "stands alone"
        raise ValueError(f"{_OWNER}: plan[{pattern!r}] = {style!r}; {name!r} {needs}")


def _irreplaceable(module: nn.Module, path: str) -> str:
    """Why the linear at a path cannot be replaced by a parallel layer, or an empty string."""
    found = module.get_submodule(path)
    if type(found) is not nn.Linear:
        return f"it is a {type(found).__name__}, not an nn.Linear itself"
    own = {id(parameter) for parameter in found.parameters(recurse=False)}
    for name, each in module.named_modules():
        if each is not found and own & {id(parameter) for parameter in each.parameters(recurse=False)}:
            return f"it shares a parameter with {name}"
    return ""


def _derived(module: nn.Module, group: Group, example: Any) -> tuple[Changes, Report]:
    """What is proven to be fit for being cut."""
    from torch_tp.models.planning import derive  # its machinery takes a while to import, and layers alone do without

    failures = []
    for args, kwargs in _examples(module, example):
        try:
            derived = derive(module, group.size, args, kwargs)
            break
        except Exception as error:
            failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    else:
        raise ValueError(
            f"{_OWNER}: the module cannot be followed without data; give example=, the arguments of one forward, or a"
            f" plan ({'; '.join(failures) or 'nothing is known of its inputs'})"
        )
    changes = changes_of(module, derived, group)
    styles = dict.fromkeys(changes.layers.keys() & {*derived.attention}, "attention by heads")
    return changes, report_of(module, group.size, changes, styles, derived, "it was not called")


def _examples(module: nn.Module, example: Any) -> Iterator[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Arguments of one forward to try, the likeliest first."""
    if example is None:
        example = getattr(module, "dummy_inputs", None)
    if example is not None:
        if isinstance(example, Mapping):
            yield (), dict(example)
        else:
            yield (example if isinstance(example, tuple) else (example,)), {}
        return
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            tokens = torch.arange(16, device=each.weight.device).remainder(each.num_embeddings)
            yield (tokens.view(2, 8),), {}
            return
        if isinstance(each, nn.Linear):
            like: Tensor = each.weight
            yield (like.new_empty(2, 8, each.in_features),), {}
            yield (like.new_empty(2, each.in_features),), {}
            return
