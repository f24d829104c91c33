"""Plans: which linear becomes which layer, as the user says it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_tp.checks import divisibility
from torch_tp.group import Group
from torch_tp.models.changes import Changes, layer_for

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


def planned(owner: str, module: nn.Module, plan: Mapping[str, Style], group: Group) -> tuple[Changes, dict[str, str]]:
    """What a plan asks for: the changes, and the style of each linear.

    Raises:
        ValueError: a pattern matches no linear; two patterns disagree about one; an unknown style; sizes that P does
            not divide; a linear that no layer can replace.
    """
    linears = {path: each for path, each in module.named_modules() if isinstance(each, nn.Linear)}
    changes, styles = Changes(), dict[str, str]()
    for path, style in _chosen(owner, linears, plan).items():
        name, *further = (style,) if isinstance(style, str) else style
        layer, divided = _STYLES[name]
        if not layer:
            continue
        reason = _irreplaceable(module, path)
        if divided:
            reason = reason or divisibility(divided, getattr(linears[path], divided), group.size)
        if reason:
            raise ValueError(f"{owner}: {path} as {style}: {reason}")
        try:
            changes.layers[path] = layer_for(linears[path], (layer, *further), group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{owner}: {path} as {style}: {error}") from None
        styles[path] = layer
    return changes, styles


def _chosen(owner: str, linears: Mapping[str, nn.Linear], plan: Mapping[str, Style]) -> dict[str, Style]:
    """The style of each linear that the plan names."""
    chosen: dict[str, tuple[str, Style]] = {}
    for pattern, style in plan.items():
        _check_style(owner, pattern, style)
        matched = [path for path in linears if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            raise ValueError(f"{owner}: the pattern {pattern!r} of the plan matches no nn.Linear of the module")
        for path in matched:
            other, before = chosen.setdefault(path, (pattern, style))
            if before != style:
                raise ValueError(
                    f"{owner}: the patterns {other!r} and {pattern!r} of the plan disagree about {path}: {before} and"
                    f" {style}"
                )
    return {path: style for path, (_, style) in chosen.items()}


def _check_style(owner: str, pattern: str, style: Any) -> None:
    name, *further = style if isinstance(style, tuple) and style else (style,)
    if name not in _STYLES:
        known = ", ".join(_STYLES)
        raise ValueError(f"{owner}: plan[{pattern!r}] = {style!r}; it must be one of {known}")
    if (name in _FUSED) != bool(further):
        needs = f"takes {_FUSED[name]} behind it, in a tuple" if name in _FUSED else "stands alone"
        raise ValueError(f"{owner}: plan[{pattern!r}] = {style!r}; {name!r} {needs}")


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
