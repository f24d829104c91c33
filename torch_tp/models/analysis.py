"""What the graphs of a model say together about the dimensions of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from torch_tp.internals import memory_of
from torch_tp.models.cuts import label_of
from torch_tp.models.facts import Known
from torch_tp.models.graph import Graph
from torch_tp.models.ledger import Ledger
from torch_tp.models.reachable import reachable
from torch_tp.models.sharding import Sharding

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@dataclass(frozen=True)
class Analysis:
    """The first pass over all graphs of a model.

    Attributes:
        ledger: what operators said about labels.
        shardings: of each graph.
        known: what was known of the model before.
        shapes: of each parameter and buffer.
        bias_of: weight of a linear that a layer can replace -> the bias beside it.
        products: parameters that products multiply with -> paths of the modules that hold them.
        read_outside: parameters that are used where no module that holds them runs.
        attention: paths of attention modules that a layer can replace, and that were called.
        replayed: paths of modules of which some code runs again in the backward.
    """

    ledger: Ledger
    shardings: Sequence[Sharding]
    known: Known
    shapes: Mapping[str, tuple[int, ...]]
    bias_of: Mapping[str, str]
    products: Mapping[str, set[str]]
    read_outside: frozenset[str]
    attention: frozenset[str]
    replayed: frozenset[str]


def analyse(
    model: nn.Module,
    graphs: Sequence[Graph],
    known: Known,
    P: int,
    alone: frozenset[str] = frozenset(),
    inside: frozenset[str] = frozenset(),
) -> Analysis:
    """Follow every dimension of every parameter through all graphs.

    Args:
        alone, inside: labels that are to be seen in another way than usual, see `Ledger`.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    floating = [name for name, tensor in named.items() if tensor.is_floating_point() or tensor.is_complex()]
    sizes = {label_of(name, d): size for name in floating for d, size in enumerate(shapes[name])}
    ledger = Ledger(P, sizes, alone, inside)
    shardings = [Sharding(graph, ledger, known, index) for index, graph in enumerate(graphs)]
    for sharding in shardings:
        sharding.run()
    ledger.judge()
    products: dict[str, set[str]] = {}
    for sharding in shardings:
        for name, paths in sharding.products.items():
            products.setdefault(name, set()).update(paths)
    biases = {weight: name for name, weight in known.own.items() if name != weight}
    outside = frozenset(name for graph in graphs for name in _read_outside(graph))
    attention = frozenset(path for sharding in shardings for path in sharding.attention)
    replayed = frozenset(call.path for graph in graphs for call in graph.calls if call.replayed)
    return Analysis(ledger, shardings, known, shapes, biases, products, outside, attention, replayed)


def same_inputs(analysis: Analysis) -> list[list[str]]:
    """The paths of linears that take the same value wherever they are called, those of one value together."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for index, sharding in enumerate(analysis.shardings):
        for node in sharding.graph.nodes:
            if node.operator == "linear":
                weight = sharding.graph.values[node.inputs[1]].parameter
                taken.setdefault(weight, []).append((index, node.inputs[0]))
    together: dict[object, list[str]] = {}
    for weight, values in taken.items():
        together.setdefault(tuple(sorted(values)), []).append(analysis.known.layers[weight])
    return [paths for paths in together.values() if len(paths) > 1]


def _read_outside(graph: Graph) -> set[str]:
    """The parameters that are used other than through the module that holds them, while it runs."""
    first = {n: value.parameter for n, value in enumerate(graph.values) if value.parameter and value.memory == n}
    found: set[str] = set()
    for node in graph.nodes:
        for number in node.inputs:
            inside = node.operator == "enter" and graph.values[node.results[0]].parameter
            if number in first and not inside:
                found.add(first[number])
    return found


def known_of(model: nn.Module) -> Known:
    """What can be said of a model without running it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = list(model.named_modules())
    holders: dict[int, int] = {}
    for _, each in modules:
        for parameter in each._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    layers = {
        names[id(each.weight)]: path
        for path, each in modules
        if type(each) is nn.Linear
        and each._parameters.get("weight") is not None
        and each._parameters.keys() == {"weight", "bias"}
        and all(holders[id(p)] == 1 for p in each._parameters.values() if p is not None)
    }
    elsewhere, listed = _held_elsewhere(model)
    layers = {weight: path for weight, path in layers.items() if path not in listed}
    at = dict(modules)
    own = {
        names[id(parameter)]: weight
        for weight, path in layers.items()
        for parameter in at[path]._parameters.values()
        if parameter is not None
    }
    buffers = frozenset(name for name, _ in model.named_buffers())
    places = {name: holders[id(parameter)] for name, parameter in model.named_parameters()}
    return Known(layers, own, buffers, _watched(model) | elsewhere, places)


def _held_elsewhere(model: nn.Module) -> tuple[dict[str, str], set[str]]:
    """Parameters and buffers that are held by more than their modules, by what, and paths of modules likewise."""
    named = [*model.named_parameters(), *model.named_buffers()]
    names, memories = {id(tensor): name for name, tensor in named}, dict[int, str]()
    found: dict[str, str] = {}
    for name, tensor in named:
        if tensor.device.type != "meta" and tensor.numel():
            other = memories.setdefault(memory_of(tensor), name)
            if other != name:
                found |= {
                    name: f"{name} shares its memory with {other}",
                    other: f"{other} shares its memory with {name}",
                }
    paths, listed = {id(module): path for path, module in model.named_modules()}, set[str]()
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or "_hooks" in attribute:
                continue
            for item, where in reachable(value, f"attribute {attribute} of {path or 'the model'}", modules=True):
                if id(item) in names:
                    found[names[id(item)]] = f"{where} holds it, too"
                elif id(item) in paths:
                    listed.add(paths[id(item)])
    return found, listed


def _watched(model: nn.Module) -> dict[str, str]:
    """Modules and parameters whose gradients a hook of the user sees."""
    found = {
        path: f"a backward hook of {path or 'the model'} sees its gradient"
        for path, each in model.named_modules()
        if any(getattr(each, name, None) for name in _BACKWARD_HOOKS)
    }
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, hooks, None) for hooks in _PARAMETER_HOOKS):
            found[name] = f"a hook of {name} sees its gradient"
    return found
