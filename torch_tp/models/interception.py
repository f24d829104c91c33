"""What sees a run while it lasts: torch's operations, calls of modules, and what is one operation for the planner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from torch_tp.internals import LINEAR, TorchDispatchMode, pytree
from torch_tp.models.decisions import watched
from torch_tp.models.recorder import Recorder
from torch_tp.models.signatures import positional_names
from torch_tp.models.sizes import NAMES, Rule, Site, replaced, sized

aten = torch.ops.aten
_LOOKS = frozenset({"size", "numel", "nelement", "__get__"})
_HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook", "retain_grad"})


class Edges:
    """The hooks that see one module called and return.

    Inside of a module its arguments, and the parameters that it holds itself, are values of their own, so that what
    happens to them there can be told from what happens elsewhere.

    Args:
        plain: the module is one operation, and its arguments stay what they are.
    """

    def __init__(self, recorder: Recorder, path: str, plain: bool) -> None:
        self.recorder, self.path, self.plain = recorder, path, plain
        self.depth = 0

    def attach(self, module: nn.Module) -> None:
        """Hook this into its module, next to the module's own code: hooks of the user see what it gives."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, prepend=True, always_call=True)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The module is called."""
        if not self.plain:
            names = positional_names(module, len(args))
            given = [*zip(names, args, strict=True), *kwargs.items()]
            held: dict[int, tuple[str, ...]] = {}
            for name, value in given:
                for tensor in _tensors(value):
                    held[id(tensor)] = tuple(dict.fromkeys((*held.get(id(tensor), ()), name)))
            seen: dict[int, Tensor] = {}
            inside = [self._inside(value, held, seen) for _, value in given]
            args, kwargs = tuple(inside[: len(args)]), dict(zip(kwargs, inside[len(args) :], strict=True))
        recorder = self.recorder
        recorder.open(self.path)
        self.depth += 1
        for name, parameter in module._parameters.items() if self.depth == 1 else ():
            if parameter is not None and not isinstance(module, nn.MultiheadAttention):
                whose = recorder.values[recorder.number(parameter)].parameter
                vars(module)[name] = recorder.alias("enter", parameter, self.path, (name,), whose)
        return args, kwargs

    def leave(self, module: nn.Module, args: Any, out: Any) -> Any:
        """The module returns, or raises."""
        self.depth -= 1
        for name in module._parameters if not self.depth else ():
            vars(module).pop(name, None)
        if not self.plain:
            leaves = pytree.tree_leaves(out)
            out = self._outside(out, [id(leaf) for leaf in leaves])
        self.recorder.stack.pop()
        return out

    def _inside(self, value: Any, names: Mapping[int, tuple[str, ...]], seen: dict[int, Tensor]) -> Any:
        if type(value) is tuple:
            return tuple(self._inside(each, names, seen) for each in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if id(value) not in seen:
            seen[id(value)] = self.recorder.alias("enter", value, self.path, names[id(value)])
        return seen[id(value)]

    def _outside(self, value: Any, order: Sequence[int]) -> Any:
        if type(value) is tuple:
            return tuple(self._outside(each, order) for each in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        positions = tuple(k for k, each in enumerate(order) if each == id(value))
        return self.recorder.alias("leave", value, self.path, positions)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an argument that can be exchanged: itself, or in tuples."""
    if isinstance(value, Tensor):
        yield value
    for each in value if type(value) is tuple else ():
        yield from _tensors(each)


class Functions(TorchFunctionMode):
    """Sees linears and grouped products before torch takes them apart, and hooks on tensors."""

    def __init__(self, recorder: Recorder, layers: Mapping[str, str], rules: Mapping[str, Mapping[Site, Rule]]) -> None:
        super().__init__()
        self.recorder, self.layers, self.rules = recorder, layers, rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func is LINEAR:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            recorder, weight = self.recorder, given["weight"]
            if recorder.values[recorder.number(weight)].parameter in self.layers:
                with recorder.pausing():
                    y = func(*args, **kwargs)
                recorder.word("linear", (given["input"], weight, given.get("bias")), {}, [y])
                return y
        elif "grouped_mm" in name and len(args) > 1 and args[1].dim() == 3 and kwargs.get("bias") is None:
            return _grouped(self.recorder, args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
        elif name in NAMES and not self.recorder.paused:
            return self._sized(func, name, args, kwargs)
        elif name == "__get__" and getattr(func, "__self__", None) is Tensor.grad_fn:
            self.recorder.hook(args[0], "a look at grad_fn")
        elif name in _HOOKS:
            self.recorder.hook(args[0], f"a call of {name}")
            if not args[0].requires_grad:
                return RemovableHandle({})
        out = func(*args, **kwargs)
        return watched(func, out, self.recorder.sizes, self.recorder.decide_by_size) if name in _LOOKS else out

    def _sized(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A call that is given sizes."""
        recorder = self.recorder
        path = recorder.calls[recorder.call].path if recorder.stack else ""
        if path in self.rules:
            args = replaced(self.rules[path], name, args, kwargs)
        out = func(*args, **kwargs)
        found = sized(name, recorder.call, args, kwargs, out, recorder.number)
        recorder.sized += [] if found is None else [found]
        return out


def _grouped(recorder: Recorder, x: Tensor, w: Tensor, ends: Tensor | None) -> Tensor:
    """A product of rows with one matrix of several for each; torch's own stand-in refuses most dtypes."""
    with recorder.pausing():
        y = x[..., :1].expand(*x.shape[:-1], w.shape[-1]).clone()
    recorder.operation(aten._grouped_mm.default, (x, w), {} if ends is None else {"offs": ends}, y)
    return y


class Operations(TorchDispatchMode):
    """Sees torch's own operations."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where operations arrive that torch has not taken apart
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func is aten._local_scalar_dense.default and (known := self.recorder.decide(args[0])) is not None:
            return known
        out = _computed(func, args, kwargs)
        self.recorder.operation(func, args, kwargs, out)
        return out


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives; where the number of chosen entries depends on data, as if all were chosen.

    How many rows there are says nothing about how features are sharded, and all runs take them to be as many.
    """
    if func is aten.nonzero.default:
        x = args[0]
        return x.new_empty((x.numel(), x.dim()), dtype=torch.long)
    if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        chosen: list[Any] = []
        for index in args[1]:
            mask = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            chosen += [index.new_empty(index.numel(), dtype=torch.long)] * index.dim() if mask else [index]
        args = (args[0], chosen, *args[2:])
    return func(*args, **kwargs)


def attention_in_one(recorder: Recorder, module: nn.MultiheadAttention) -> Callable[..., Any]:
    """The forward of an attention module as one operation."""
    names = list(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        given = dict(zip(names, args, strict=False)) | kwargs
        query, parameters = given["query"], [p for p in module.parameters() if p is not None]
        taken = (query, given["key"], given["value"], *parameters)
        with recorder.pausing():
            y = query.new_empty(query.shape)
            shape = _weights_shape(module, given)
            weights = query.new_empty(shape) if given.get("need_weights", True) else None
            if torch.is_grad_enabled() and any(each.requires_grad for each in taken):
                y = y.requires_grad_().clone()
                weights = None if weights is None else weights.requires_grad_().clone()
        recorder.word("attention", taken, {}, [y] if weights is None else [y, weights])
        return y, weights

    return forward


def _weights_shape(module: nn.MultiheadAttention, given: Mapping[str, Any]) -> list[int]:
    """`[N, L, S]` of the averaged weights, `[N, heads, L, S]` of all; without N where nothing is batched."""
    query, key, first = given["query"], given["key"], int(module.batch_first)
    heads = [] if given.get("average_attn_weights", True) else [module.num_heads]
    if query.dim() == 2:
        return [*heads, query.shape[0], key.shape[0]]
    return [query.shape[1 - first], *heads, query.shape[first], key.shape[first]]
