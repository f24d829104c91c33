"""What is put into a model: layers, and slices of parameters with what happens at the edges of their modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from torch_tp.group import Group
from torch_tp.layers.attention import ParallelMultiheadAttention
from torch_tp.layers.column import ColumnParallelLinear, share_input
from torch_tp.layers.fused import MergedColumnParallelLinear, QKVParallelLinear
from torch_tp.layers.row import RowParallelLinear
from torch_tp.models.boundary import Boundary
from torch_tp.models.guard import Guard
from torch_tp.models.sizes import ResizedForward, Rule, Site
from torch_tp.placements import Shard, own_slice

if TYPE_CHECKING:
    from torch_tp.models.planning import Chain, Derived, Slice


@dataclass
class Changes:
    """Everything that will be put into a model, made while the model is as it was.

    Attributes:
        layers: path of a linear -> the layer in its place.
        parameters, buffers: name of a parameter or buffer -> the shard in its place.
        boundaries: path of a module -> what happens at its edges.
        sizes: path of a module and name of an attribute -> its value on a rank.
        rules: path of a module -> the calls of views in it that get the sizes of a rank.
        sharing: path of a layer -> those that all-reduce the gradient of one input together, itself among them.
        guard: what compares the model's calls with those that were proven.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    parameters: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    buffers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    boundaries: dict[str, Boundary] = field(default_factory=dict[str, Boundary])
    sizes: dict[tuple[str, str], object] = field(default_factory=dict[tuple[str, str], object])
    rules: dict[str, dict[Site, Rule]] = field(default_factory=dict[str, dict[Site, Rule]])
    sharing: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    guard: Guard | None = None

    def apply(self, model: nn.Module) -> None:
        """Put everything in its place, wherever the model holds it; only attributes are set, which cannot fail."""
        from torch_tp.models.planning import resize

        made = {id(model.get_submodule(path)): layer for path, layer in self.layers.items()}
        sliced: dict[int, Tensor] = {id(model.get_parameter(name)): each for name, each in self.parameters.items()}
        sliced |= {id(model.get_buffer(name)): each for name, each in self.buffers.items()}
        for (path, name), size in self.sizes.items():
            resize(model.get_submodule(path), name, size)
        for path, rules in self.rules.items():
            module = model.get_submodule(path)
            vars(module)["forward"] = ResizedForward(module, rules)
        for path, boundary in self.boundaries.items():
            module = model.get_submodule(path)
            _replace(module._parameters, sliced)
            boundary.attach(module)
        for each in list(model.modules()):
            _replace(each._parameters, sliced)
            _replace(each._buffers, sliced)
            _replace(each._modules, made)
        if "" in self.layers:
            _become(model, self.layers[""])
        if self.guard is not None:
            self.guard.attach(model)


def _become(module: nn.Module, layer: nn.Module) -> None:
    """Make a module the layer that replaces it: it has no holder in which another one could be put."""
    vars(module).clear()
    vars(module).update(vars(layer))
    module.__class__ = type(layer)


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
    """What makes one rank's part of a model in which the proven chains are sharded."""
    changes = Changes()
    for path in derived.attention if group.size > 1 else ():
        module = model.get_submodule(path)
        assert isinstance(module, nn.MultiheadAttention)
        changes.layers[path] = ParallelMultiheadAttention.from_module(module, **_where(group))
    holders, edges = _holders(model), dict[str, dict[str, Any]]()
    for chain in derived.chains:
        changes.sizes.update(chain.sizes)
        for path, rules in chain.rules.items():
            changes.rules.setdefault(path, {}).update(rules)
        replaced = _replace_linears(model, chain, derived, group, changes)
        for name, cut in chain.slices.items():
            if name not in replaced:
                _take_slice(holders[name], name, cut, group, changes, edges)
        for name in set(chain.columns) - replaced:
            if name in derived.layers:  # its copies' gradients are summed where it is used, and so is its input's
                edges.setdefault(derived.layers[name], {})["copied"] = ("input",)
    found = derived.gradients
    for kind, names in (("summed", found.summed), ("once", found.once)):
        for path, attribute in (place for name in names for place in holders[name][1]):
            edges.setdefault(path, {}).setdefault(kind, []).append(attribute)
    for path, arguments in found.copied.items():
        edges.setdefault(path, {})["copied"] = tuple(sorted(arguments))
    for path, positions in found.reduced.items():
        edges.setdefault(path, {})["reduced"] = tuple(sorted(positions))
    for paths in derived.same_inputs if group.size > 1 else ():
        sharing = [path for path in paths if isinstance(changes.layers.get(path), ColumnParallelLinear)]
        if len(sharing) > 1:
            share_input([layer for path in sharing if isinstance(layer := changes.layers[path], ColumnParallelLinear)])
            changes.sharing |= dict.fromkeys(sharing, tuple(sharing))
    if group.size > 1:
        changes.boundaries = {path: Boundary(path, group, **_frozen(further)) for path, further in edges.items()}
        changes.sizes.update(_without_fused_kernels(model, changes))
    return changes


def _replace_linears(model: nn.Module, chain: Chain, derived: Derived, group: Group, changes: Changes) -> set[str]:
    """Make the layers in place of a chain's linears; returns the names of the parameters that these hold."""
    replaced: set[str] = set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name in (*chain.columns, *chain.rows):
        cut = chain.slices[name]
        if name in derived.layers and max(cut.copies) == 1:
            path = derived.layers[name]
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            style: Sequence[Any] = ("row",) if cut.dim == 1 else ("column",)
            changes.layers[path] = layer_for(linear, style if cut.plain else ("merged column", cut.sizes), group)
            replaced |= {names[id(parameter)] for parameter in linear.parameters(recurse=False)}
    return replaced


def _take_slice(
    holder: tuple[Tensor, list[tuple[str, str]]],
    name: str,
    cut: Slice,
    group: Group,
    changes: Changes,
    edges: dict[str, dict[str, Any]],
) -> None:
    """Make the shard of a parameter or buffer that its own module goes on using."""
    tensor, held = holder
    placement = _placement(cut)
    own = own_slice(tensor.detach(), placement, group.size, group.rank).clone()
    if not isinstance(tensor, nn.Parameter):
        changes.buffers[name] = own
        return
    changes.parameters[name] = nn.Parameter(own, requires_grad=tensor.requires_grad)
    for path, attribute in held:
        edges.setdefault(path, {}).setdefault("slices", {})[attribute] = placement


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


def _placement(cut: Slice) -> Shard:
    return Shard(cut.dim) if cut.plain else Shard(cut.dim, cut.sizes, cut.copies)


def _holders(model: nn.Module) -> dict[str, tuple[Tensor, list[tuple[str, str]]]]:
    """Name of a parameter or buffer -> itself, and every module and attribute that holds it."""
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    found: dict[str, tuple[Tensor, list[tuple[str, str]]]] = {}
    for path, each in model.named_modules():
        for attribute, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is not None:
                found.setdefault(names[id(tensor)], (tensor, []))[1].append((path, attribute))
    return found
