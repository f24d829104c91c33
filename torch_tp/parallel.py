"""An unmodified model, with the linears that may be cut in slices over the ranks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_tp.checks import divisibility
from torch_tp.column import ColumnParallelLinear
from torch_tp.fused import MergedColumnParallelLinear
from torch_tp.group import Group, GroupLike, find_group, find_or_detach
from torch_tp.report import Entry, Report
from torch_tp.row import RowParallelLinear

_OWNER = "torch_tp.parallelize"
_STYLES = ("column", "row", "replicated")
_COLLECTIVES = {
    "column": ("", "all-reduce of the input's gradient"),
    "merged column": ("", "all-reduce of the input's gradient"),
    "row": ("all-reduce of the output", ""),
    "replicated": ("", ""),
}


def parallelize(
    module: nn.Module,
    group: GroupLike | None = None,
    plan: Mapping[str, str] | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    example: Any = None,
    verify: bool = False,
) -> nn.Module:
    """Cut the linears of a model over the ranks of a group, in place, and tell what became of each.

    To be called on every rank, with models that hold the same values; call it before an optimizer takes the parameters.
    Forward, inputs and outputs stay what they were: inputs and outputs are replicated. `module.tp_report` is the
    `Report`; print it.

    Without a plan the linears are chosen by what the model computes, never by names (`torch_tp.planning`): those whose
    output features every further operation leaves in slices until another linear takes them up. What cannot be proven
    stays replicated, and the report says why. For this the model runs twice, in evaluation mode, on tensors without
    data; its hooks run too.

    Args:
        module: any module; its `nn.Linear` are replaced, and their hooks, dtype, device, requires_grad and training
            mode kept. Modules and parameters that it holds twice stay shared. An attribute that holds a whole size,
            such as a number of heads, is divided by P where the proof needs it; the report names it.
        group: a ProcessGroup or one-dimensional DeviceMesh. None: the group of `init_tensor_parallel`, else the world.
        plan: path of a linear, or a pattern as of `fnmatch`, to "column", "row" or "replicated". Whatever it does not
            name is replicated. It is taken at its word.
        rank, world_size: where there is a group, which rank of how many this is, to be checked. Without one, the parts
            of this rank are made all the same; a forward that must communicate raises NoProcessGroupError.
        example: the arguments of one forward without a plan: a tensor, a tuple of positional or a dict of keyword
            arguments, of whose tensors shape and dtype alone count. None: the model's own `dummy_inputs`, if it has
            any, else tensors that fit its first layer.
        verify: run the model on the example before and after, forward and backward, in evaluation mode, and compare
            its outputs and all gradients; the bounds are derived (`torch_tp.verification`). Takes five runs of the
            whole model on every rank. Needs a group, parameters with values, and an example with sensible ones.

    Raises:
        ValueError: the module was parallelised already; a pattern matches no linear; two patterns disagree about one; a
            style that there is not; sizes that P does not divide; no example fits; what cannot be verified.
        TypeError: `module` is no module.
        NoProcessGroupError: `group` is None and nothing is initialized.
        VerificationError: `verify` found outputs or gradients that are not the dense ones; on every rank.

    Whatever is raised, the module is as it was.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{_OWNER}: the module is a {type(module).__name__}; it must be a torch.nn.Module")
    if any(hasattr(each, "tp_report") for each in module.modules()):
        raise ValueError(f"{_OWNER}: this module, or a part of it, is parallel already; wrap a fresh one")
    where = _group(group, rank, world_size)
    linears = {path: each for path, each in module.named_modules() if isinstance(each, nn.Linear)}
    if plan is None:
        styles, reasons, sizes = _derived(module, where, example)
    else:
        styles, reasons, sizes = *_planned(module, linears, plan, where), {}
    made = {path: _cut(linears[path], style, where) for path, style in styles.items()}
    report = _report(module, where, linears, styles, made, reasons)

    def wrap() -> None:
        _put_in(module, {id(linears[path]): layer for path, layer in made.items()})
        for (path, name), size in sizes.items():
            setattr(module.get_submodule(path), name, size)

    if verify:
        from torch_tp.verification import verified

        with_data = example is not None or getattr(module, "dummy_inputs", None) is not None
        found = verified(_OWNER, module, where, made.keys(), _examples(module, example), with_data, wrap)
        report = replace(report, verified=found)
    else:
        wrap()
    vars(module)["tp_report"] = report  # what a module declares no attribute for, its stubs take for a tensor
    return module


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


def _planned(
    module: nn.Module, linears: Mapping[str, nn.Linear], plan: Mapping[str, str], group: Group
) -> tuple[dict[str, Sequence[Any]], dict[str, str]]:
    """The style of each linear that a plan cuts."""
    chosen: dict[str, tuple[str, str]] = {}
    for pattern, style in plan.items():
        if style not in _STYLES:
            raise ValueError(f"{_OWNER}: plan[{pattern!r}] = {style!r}; it must be one of {', '.join(_STYLES)}")
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
    styles: dict[str, Sequence[Any]] = {}
    for path, (_, style) in chosen.items():
        if style == "replicated":
            continue
        name = {"column": "out_features", "row": "in_features"}[style]
        reason = _irreplaceable(module, path) or divisibility(name, getattr(linears[path], name), group.size)
        if reason:
            raise ValueError(f"{_OWNER}: {path} as {style}: {reason}")
        styles[path] = (style,)
    return styles, {path: "the plan does not cut it" for path in linears if path not in styles}


def _derived(
    module: nn.Module, group: Group, example: Any
) -> tuple[dict[str, Sequence[Any]], dict[str, str], dict[tuple[str, str], int]]:
    """The style of each linear that is proven to be fit for one, the reasons of the others, and sizes to change."""
    from torch_tp.planning import derive  # its machinery takes a while to import, and layers alone do without

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
    styles: dict[str, Sequence[Any]] = {}
    sizes: dict[tuple[str, str], int] = {}
    reasons = {label.removesuffix(".weight"): why for label, why in derived.replicated.items()}
    for chain in derived.chains:
        paths = [label.removesuffix(".weight") for label in (*chain.columns, *chain.rows)]
        why = next((f"{path}: {reason}" for path in paths if (reason := _irreplaceable(module, path))), "")
        if why:
            reasons |= dict.fromkeys(paths, why)
            continue
        for label, parts in chain.columns.items():
            styles[label.removesuffix(".weight")] = ("merged column", parts) if len(parts) > 1 else ("column",)
        styles |= {label.removesuffix(".weight"): ("row",) for label in chain.rows}
        for (holder, name), size in chain.sizes.items():
            reasons |= dict.fromkeys(paths, f"{holder}.{name} is {size} on a rank")
            sizes[holder, name] = size
    return styles, reasons, sizes


def _irreplaceable(module: nn.Module, path: str) -> str:
    """Why the module at a path cannot be replaced by a parallel layer, or an empty string."""
    found = dict(module.named_modules()).get(path)
    if found is None:
        return "no module of its own holds its weight"
    if type(found) is not nn.Linear:
        return f"it is a {type(found).__name__}, not an nn.Linear itself"
    own = {id(parameter) for parameter in found.parameters(recurse=False)}
    for name, each in module.named_modules():
        if each is not found and own & {id(parameter) for parameter in each.parameters(recurse=False)}:
            return f"it shares a parameter with {name}"
    return ""


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


def _cut(linear: nn.Linear, style: Sequence[Any], group: Group) -> nn.Module:
    """This rank's layer in place of a linear, with its hooks."""
    made: nn.Module
    detached = {"rank": group.rank, "world_size": group.size}
    where: dict[str, Any] = {"group": group.process_group} if group.attached else detached
    if style[0] == "row":
        made = RowParallelLinear.from_linear(linear, **where)
    elif style[0] == "column":
        made = ColumnParallelLinear.from_linear(linear, **where)
    else:
        made = MergedColumnParallelLinear.from_linear(linear, style[1], **where)
    for name, value in vars(linear).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            getattr(made, name).update(value)
    return made


def _put_in(module: nn.Module, made: Mapping[int, nn.Module]) -> None:
    """Replace modules wherever they are held."""
    for each in list(module.modules()):
        for name, child in each._modules.items():
            if id(child) in made:
                each._modules[name] = made[id(child)]


def _report(
    module: nn.Module,
    group: Group,
    linears: Mapping[str, nn.Linear],
    styles: Mapping[str, Sequence[Any]],
    made: Mapping[str, nn.Module],
    reasons: Mapping[str, str],
) -> Report:
    entries, counted = [], set()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for path, linear in linears.items():
        style = styles[path][0] if path in styles else "replicated"
        own = names[id(linear.weight)].removesuffix(".weight") if id(linear.weight) in names else path
        reason = reasons.get(path, "") if path in styles else reasons.get(path) or reasons.get(own, "it was not called")
        before = _bytes(linear)
        after = _bytes(made[path]) if path in made else before
        shape = (linear.out_features, linear.in_features)
        entries.append(Entry(path, style, shape, before, after, *_COLLECTIVES[style], reason))
        counted |= {id(parameter) for parameter in linear.parameters(recurse=False)}
    others = [parameter for parameter in module.parameters() if id(parameter) not in counted]
    return Report(group.size, tuple(entries), sum(p.numel() * p.element_size() for p in others))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
