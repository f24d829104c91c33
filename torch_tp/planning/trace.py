"""One run of a model on tensors without data, operation by operation.

Linears are seen as one operation each, by the weight that they multiply with, whoever calls
`torch.nn.functional.linear`; what a linear is, and what is computed between linears, is read off the computation alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch_tp.planning.cuts import NONE, Cuts, Unprovable
from torch_tp.planning.rules import Call, propagate


@dataclass(frozen=True)
class Step:
    """One operation of a run: what it is, where, and the shapes and cuts of its results."""

    operation: str
    path: str
    shapes: tuple[tuple[int, ...], ...]
    cuts: tuple[Cuts, ...]


@dataclass
class Trace:
    """What one run tells of each linear, by the name of its weight.

    Attributes:
        shapes: `[out_features, in_features]` of each.
        failures: why the output features of a linear cannot be cut.
        shared: why neither these nor its input features can be.
        takers: linear -> those whose input features are cut with its output features.
        parts: linear -> the sizes of the parts that its output is split into.
    """

    P: int
    names: Mapping[int, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    shared: dict[str, str] = field(default_factory=dict[str, str])
    takers: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    _alike: dict[str, str] = field(default_factory=dict[str, str])
    _cuts: dict[int, Cuts] = field(default_factory=dict[int, Cuts])
    _alive: list[Any] = field(default_factory=list[Any])
    _within: bool = False
    path: list[str] = field(default_factory=list[str])
    steps: list[Step] = field(default_factory=list["Step"])

    def together(self, label: str) -> str:
        """The same for all linears that must be cut together."""
        while (up := self._alike.setdefault(label, label)) != label:
            label = up
        return label

    def cuts_of(self, tensor: Tensor) -> Cuts:
        """How a value of this run is cut."""
        return self._cuts.get(id(tensor), NONE)

    def cut(self, tensor: Tensor, cuts: Cuts) -> None:
        """Note how a value is cut; it is kept alive, since it is known by its identity."""
        self._alive.append(tensor)
        self._cuts[id(tensor)] = {dim: labels for dim, labels in cuts.items() if labels}

    def join(self, labels: Any) -> None:
        """These linears are cut together or not at all."""
        roots = [self.together(label) for label in labels]
        for root in roots[1:]:
            self._alike[self.together(root)] = self.together(roots[0])

    def fail(self, labels: Any, why: str) -> None:
        """These linears stay whole; the first reason counts."""
        where = f" (in {self.path[-1]})" if self.path else ""
        for label in labels:
            self.failures.setdefault(label, why + where)

    def divide(self, label: str, sizes: Sequence[int]) -> None:
        """The output of a linear is split into parts."""
        if self.parts.setdefault(label, tuple(sizes)) != tuple(sizes):
            raise Unprovable("its output is split in two ways")

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """A linear: what is cut in its input's last dimension it takes up, and its output starts a cut."""
        label, (outputs, inputs) = self.names[id(weight)], weight.shape
        self.shapes.setdefault(label, (outputs, inputs))
        if x.shape[-1:] != (inputs,):
            raise RuntimeError(f"a linear of {inputs} input features was given a value of shape {list(x.shape)}")
        last, cuts = x.dim() - 1, dict(self.cuts_of(x))
        taken = cuts.pop(last, {})
        self.fail(
            (other for other, outer in taken.items() if outer != 1), "its blocks are not those of a linear's input"
        )
        self.join(taken)
        for other in taken:
            self.takers.setdefault(other, set()).add(label)
        self._within = True
        y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
        self._within = False
        if outputs % self.P:
            self.fail([label], f"P = {self.P} does not divide its {outputs} output features")
        self.cut(y, {**cuts, last: {label: 1}})
        self._step(f"linear with {label}", [y])
        return y

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Tensor]) -> None:
        """Any other operation."""
        if self._within:
            return
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if id(tensor) in self.names:
                self.shared.setdefault(self.names[id(tensor)], f"its weight is used by {func} too")
        labels = {label for tensor in tensors for part in self.cuts_of(tensor).values() for label in part}
        found: Sequence[Cuts] = [NONE] * len(results)
        if labels and func is torch.ops.aten._local_scalar_dense.default:
            self.fail(labels, "control flow may depend on its values")
        elif labels and results:
            call = Call(func, args, kwargs, tensors, results, self.P, self.cuts_of, self.join, self.divide)
            try:
                found = propagate(call)
            except Unprovable as reason:
                self.fail(labels, str(reason))
        for result, cuts in zip(results, found, strict=False):
            self.cut(result, cuts)
        self._step(str(func), results)

    def _step(self, operation: str, results: Sequence[Tensor]) -> None:
        shapes = tuple(tuple(result.shape) for result in results)
        path = self.path[-1] if self.path else "the model"
        self.steps.append(Step(operation, path, shapes, tuple(map(self.cuts_of, results))))


class _Linears(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._nn.linear:
            x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
            if id(weight) in self.trace.names:
                return self.trace.linear(x, weight)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        self.trace.operation(func, args, kwargs or {}, results)
        return out


def trace_of(
    module: nn.Module,
    P: int,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Trace:
    """Run a module without data, in evaluation mode, and tell what becomes of each linear's output.

    `shapes` are those of parameters in place of their own. Raises whatever the module raises: control flow that depends
    on data does.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def without_data(leaf: Any) -> Any:
        return fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

    named_parameters = dict(module.named_parameters())
    held = {id(tensor): without_data(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for name, shape in (shapes or {}).items():
        with fake:
            held[id(named_parameters[name])] = held[id(named_parameters[name])].new_empty(shape)
    names = {id(held[id(p)]): name for name, p in named_parameters.items() if p.dim() == 2}
    trace = Trace(P, names)
    given, named = pytree.tree_map(without_data, (tuple(args), dict(kwargs)))
    with ExitStack() as entered:
        entered.enter_context(_evaluating(module))
        entered.enter_context(_paths(module, trace.path))
        entered.enter_context(torch.no_grad())
        entered.enter_context(_in_place_of(module, held))
        for mode in (fake, _Operations(trace), _Linears(trace)):
            entered.enter_context(mode)
        out = module(*given, **named)
        trace.path.clear()
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                for labels in trace.cuts_of(leaf).values():
                    trace.fail(labels, "it is part of the model's output")
    return trace


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, training in was.items():
            each.training = training


@contextmanager
def _paths(module: nn.Module, path: list[str]) -> Iterator[None]:
    """While it lasts, the last entry is the path of the module that runs."""

    def enter(name: str) -> Any:
        return lambda *_: path.append(name)

    def leave(*_: Any) -> None:
        path.pop()

    hooks = []
    for name, each in module.named_modules():
        if name:
            hooks += [each.register_forward_pre_hook(enter(name)), each.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_place_of(module: nn.Module, held: Mapping[int, Tensor]) -> Iterator[None]:
    """While it lasts, the module computes with other tensors than its parameters and buffers, by their identity.

    torch.func.functional_call leaves its own tensors behind in a module that is held under two names.
    """
    was: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for each in module.modules():
        mine: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for tensors in mine:
            was.append((tensors, dict(tensors)))
            tensors.update({name: held[id(tensor)] for name, tensor in tensors.items() if tensor is not None})
    try:
        yield
    finally:
        for tensors, own in was:
            tensors.update(own)
