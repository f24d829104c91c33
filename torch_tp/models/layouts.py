"""How a value that is only laid out anew is made of one that was computed, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_tp.models.graph import Graph, Node

aten = torch.ops.aten

_NAMES = """alias as_strided chunk clone contiguous detach diagonal expand flip narrow permute repeat reshape roll
select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze view _reshape_alias _unsafe_view"""
_LAYOUT = frozenset(getattr(aten, name) for name in _NAMES.split() if hasattr(aten, name))
_COPIES = frozenset({aten.alias, aten.clone, aten.contiguous, aten.detach})
_VIEWS = frozenset({aten.view, aten._unsafe_view})
_EDGES = ("enter", "leave")


@dataclass(frozen=True)
class Step:
    """One operation on the only tensor, its first argument, of whose results one is taken."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    result: int

    def __str__(self) -> str:
        return f"{self.operator}{self.args}{self.kwargs}[{self.result}]"


@dataclass(frozen=True)
class Layout:
    """A value as another one, laid out in some steps."""

    origin: int
    steps: tuple[Step, ...] = ()

    def apply(self, tensor: Tensor) -> Tensor:
        """What the steps make of a tensor."""
        for step in self.steps:
            if step.operator.overloadpacket in _VIEWS:  # copies, which views may need, are no steps
                tensor = tensor.reshape(step.args[0])
                continue
            out = step.operator(tensor, *step.args, **dict(step.kwargs))
            tensor = out if isinstance(out, Tensor) else out[step.result]
        return tensor


def lays_out(node: Node) -> bool:
    """Whether a node moves elements, and does nothing else."""
    return node.operator in _EDGES or getattr(node.operator, "overloadpacket", None) in _LAYOUT


def computes(node: Node) -> bool:
    """Whether a node does more than lay elements out."""
    return bool(node.results) and not lays_out(node)


def layouts(graph: Graph) -> dict[int, Layout]:
    """How each value that is only laid out is made of one that was computed."""
    found: dict[int, Layout] = {}
    for node in graph.nodes:
        if node.results and lays_out(node):
            found.update(layout_of(graph, node, found))
    return found


def layout_of(graph: Graph, node: Node, known: Mapping[int, Layout]) -> dict[int, Layout]:
    """The layouts of the results of a node that lays out."""
    before = known.get(node.inputs[0], Layout(node.inputs[0]))
    packet = getattr(node.operator, "overloadpacket", None)
    if node.operator in _EDGES or packet in _COPIES:
        return dict.fromkeys(node.results, before)
    further = tuple((name, _plain(value)) for name, value in node.kwargs.items())
    given = tuple(map(_plain, node.args[1:]))
    return {
        number: Layout(before.origin, (*before.steps, Step(node.operator, given, further, k)))
        for k, number in enumerate(node.results)
    }


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
