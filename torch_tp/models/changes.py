"""What is put into a model: layers, and slices of parameters with what happens at the edges of their modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from torch_tp.group import Group
from torch_tp.layers.attention import ParallelMultiheadAttention
from torch_tp.layers.column import ColumnParallelLinear
from torch_tp.layers.fused import MergedColumnParallelLinear, QKVParallelLinear
from torch_tp.layers.row import RowParallelLinear
from torch_tp.models.boundary import Boundary
from torch_tp.placements import Shard, own_slice

if TYPE_CHECKING:
    from torch_tp.models.planning import Derived, Slice


@dataclass
class Changes:
    """Everything that will be put into a model, made while the model is as it was.

    Attributes:
        layers: path of a linear -> the layer in its place.
        parameters: name of a parameter -> the slice in its place.
        boundaries: path of a module -> what happens at its edges.
        sizes: path of a module and name of an attribute -> its value on a rank.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    parameters: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    boundaries: dict[str, Boundary] = field(default_factory=dict[str, Boundary])
    sizes: dict[tuple[str, str], object] = field(default_factory=dict[tuple[str, str], object])

    def apply(self, model: nn.Module) -> None:
        """Put everything in its place, wherever the model holds it; only attributes are set, which cannot fail."""
        from torch_tp.models.planning import resize

        made = {id(model.get_submodule(path)): layer for path, layer in self.layers.items()}
        sliced = {id(model.get_parameter(name)): parameter for name, parameter in self.parameters.items()}
        for (path, name), size in self.sizes.items():
            resize(model.get_submodule(path), name, size)
        for path, boundary in self.boundaries.items():
            module = model.get_submodule(path)
            _replace(module._parameters, sliced)
            boundary.attach(module)
        for each in list(model.modules()):
            _replace(each._parameters, sliced)
            _replace(each._modules, made)


def _replace(held: dict[str, Any], by: Mapping[int, Any]) -> None:
    for name, value in held.items():
        if id(value) in by:
            held[name] = by[id(value)]


def layer_for(linear: nn.Linear, style: Sequence[Any], group: Group) -> nn.Module:
    """This rank's layer in place of a linear, with its hooks; `style` is a name and the arguments that it needs."""
    where = _where(group)
    name, *further = style
    made: nn.Module
    if name == "row":
        made = RowParallelLinear.from_linear(linear, **where)
    elif name == "row of a whole input":
        made = RowParallelLinear.from_linear(linear, input_is_parallel=False, **where)
    elif name == "column":
        made = ColumnParallelLinear.from_linear(linear, **where)
    elif name == "column with a whole output":
        made = ColumnParallelLinear.from_linear(linear, gather_output=True, **where)
    elif name == "merged column":
        made = MergedColumnParallelLinear.from_linear(linear, *further, **where)
    else:
        made = QKVParallelLinear.from_linear(linear, *further, **where)
    for attribute, value in vars(linear).items():
        if attribute.endswith("_hooks") or "_hooks_" in attribute:
            getattr(made, attribute).update(value)
    return made


def _where(group: Group) -> dict[str, Any]:
    detached = {"rank": group.rank, "world_size": group.size}
    return {"group": group.process_group} if group.attached else detached


def changes_of(model: nn.Module, derived: Derived, group: Group) -> Changes:
    """What makes one rank's part of a model in which the proven chains are cut."""
    changes, layers = Changes(), derived.layers
    for path in derived.attention if group.size > 1 else ():
        module = model.get_submodule(path)
        assert isinstance(module, nn.MultiheadAttention)
        changes.layers[path] = ParallelMultiheadAttention.from_module(module, **_where(group))
    holders = _holders(model)
    for chain in derived.chains:
        changes.sizes.update(chain.sizes)
        by_layers: set[str] = set()
        for name in (*chain.columns, *chain.rows):
            cut = chain.slices[name]
            if name in layers and max(cut.copies) == 1:
                linear = model.get_submodule(layers[name])
                assert isinstance(linear, nn.Linear)
                style: Sequence[Any] = ("row",) if cut.dim == 1 else ("column",)
                changes.layers[layers[name]] = layer_for(
                    linear, style if cut.plain else ("merged column", cut.sizes), group
                )
                replaced = {id(parameter) for parameter in linear.parameters(recurse=False)}
                by_layers |= {name for name, (parameter, _) in holders.items() if id(parameter) in replaced}
        edges: dict[str, dict[str, Any]] = {}
        for name, cut in chain.slices.items():
            if name not in by_layers:
                parameter, held = holders[name]
                placement = _placement(cut)
                own = own_slice(parameter.detach(), placement, group.size, group.rank).clone()
                changes.parameters[name] = nn.Parameter(own, requires_grad=parameter.requires_grad)
                for path, attribute in held:
                    edges.setdefault(path, {}).setdefault("slices", {})[attribute] = placement
        for kind, names in (("summed", chain.summed), ("once", chain.once)):
            for path, attribute in (place for name in names for place in holders[name][1]):
                edges.setdefault(path, {}).setdefault(kind, []).append(attribute)
        for name in set(chain.columns) - by_layers:
            if name in layers:  # its copies' gradients are summed where it is used, and so is its input's
                edges.setdefault(layers[name], {})["copied"] = (0, "input")
        for path, region in chain.regions.items():
            edges.setdefault(path, {}).update(copied=region.copied, reduced=region.reduced)
        for path, further in edges.items():
            changes.boundaries[path] = _merged(changes.boundaries.get(path), Boundary(path, group, **_frozen(further)))
    if group.size == 1:
        changes.boundaries.clear()
    else:
        changes.sizes.update(_without_fused_kernels(model, changes))
    return changes


def _without_fused_kernels(model: nn.Module, changes: Changes) -> Iterator[tuple[tuple[str, str], object]]:
    """Attributes that keep torch's encoders from kernels that know whole modules alone."""
    for path, each in model.named_modules():
        inside = f"{path}." if path else ""
        if any(name.startswith(inside) for name in changes.layers):
            if isinstance(each, nn.TransformerEncoderLayer):
                yield (path, "activation_relu_or_gelu"), 0
            if isinstance(each, nn.TransformerEncoder):
                yield (path, "use_nested_tensor"), False


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _merged(one: Boundary | None, other: Boundary) -> Boundary:
    """What two chains want at the edges of one module."""
    if one is None:
        return other
    return Boundary(
        one.owner,
        one.group,
        one.copied or other.copied,
        tuple(sorted({*one.reduced, *other.reduced})),
        {**one.slices, **other.slices},
        one.summed + other.summed,
        one.once + other.once,
    )


def _placement(cut: Slice) -> Shard:
    return Shard(cut.dim) if cut.plain else Shard(cut.dim, cut.sizes, cut.copies)


def _holders(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[tuple[str, str]]]]:
    """Name of a parameter -> itself, and every module and attribute that holds it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[nn.Parameter, list[tuple[str, str]]]] = {}
    for path, each in model.named_modules():
        for attribute, parameter in each._parameters.items():
            if parameter is not None:
                found.setdefault(names[id(parameter)], (parameter, []))[1].append((path, attribute))
    return found
