"""What happens in a run, written down as a `Graph` while it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_tp.internals import FakeTensor, WeakTensorKeyDictionary, memory_of, pytree, without_modes
from torch_tp.models.graph import Exit, Graph, ModuleCall, Node, Ref, Value, refs
from torch_tp.models.sizes import Sized, calling_line

aten = torch.ops.aten
_SMALL = 2**20  # entries of a constant that are worth keeping
_RANDOM = frozenset({aten.rand, aten.randn, aten.randint, aten.randperm, aten.bernoulli, aten.uniform_, aten.normal_})


class Recorder:
    """Builds the graph of one run.

    Tensors are known by weak references, so that whatever is alive after the run is alive for another reason.

    Args:
        label: which call and mode this is, in words.
        observe: called with every node and the graph so far; what it raises ends the run.
    """

    def __init__(self, label: str, observe: Callable[[Node, Recorder], None] | None = None) -> None:
        self.label = label
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.calls: list[ModuleCall] = []
        self.stack: list[int] = []
        self.hooked: dict[int, str] = {}
        self.sizes: frozenset[int] = frozenset()  # those that another call may have otherwise
        self.originals: dict[int, str] = {}  # identity of a parameter or buffer with data -> its name
        self.leaked: set[str] = set()
        self.plain: list[str] = []
        self.decided: set[str] = set()
        self.by_chance: set[str] = set()
        self.sized: list[Sized] = []
        self.paused = False
        self._observe = observe
        self._known: Any = WeakTensorKeyDictionary()
        self._first: Any = WeakTensorKeyDictionary()
        self._random: set[int] = set()
        self.live = Graph(label, self.values, self.nodes, self.calls)  # what there is so far, always

    def graph(self, exits: Sequence[Exit] = ()) -> Graph:
        """The graph so far."""
        return Graph(
            self.label,
            self.values,
            self.nodes,
            self.calls,
            exits,
            self.hooked,
            self.sized,
            sorted(self.decided),
            sorted(self.by_chance),
            sorted(self.leaked),
            self.plain,
        )

    # Values.

    def begin(self, tensor: Tensor, parameter: str = "", identity: int = 0) -> int:
        """Record a tensor that was there before the run."""
        number = self._value(tensor, len(self.values), parameter, not parameter, identity)
        self._first[tensor] = number
        return number

    def number(self, tensor: Tensor) -> int:
        """The number of the value that a tensor is now."""
        found: int | None = self._known.get(tensor)
        if found is None:
            self.leaked |= {self.originals[id(tensor)]} if id(tensor) in self.originals else set[str]()
            return self.begin(tensor, identity=id(tensor))
        return found

    def alive(self, every: bool = False) -> Iterator[tuple[Tensor, int]]:
        """The tensors that exist and were made or overwritten in this run, or all that exist."""
        for tensor, number in list(self._known.items()):
            if every or self._first.get(tensor) != number:
                yield tensor, number

    def made(self) -> list[Tensor]:
        """The tensors that exist and were made in this run."""
        return [tensor for tensor, _ in self.alive() if tensor not in self._first]

    def _value(self, tensor: Tensor, memory: int, parameter: str = "", given: bool = False, identity: int = 0) -> int:
        constant = getattr(tensor, "constant", None)  # of a FakeTensor that the code's own numbers were made into
        entries = _entries(constant) if isinstance(constant, Tensor) else None
        shape = tuple(int(size) for size in tensor.shape)
        value = Value(shape, tensor.dtype, memory, parameter, given, identity, entries, tensor.requires_grad)
        self.values.append(value)
        self._known[tensor] = len(self.values) - 1
        return len(self.values) - 1

    def _result(self, tensor: Tensor, inputs: Sequence[Tensor]) -> int:
        """The number of a value that an operation made, or overwrote."""
        for each in inputs:
            if each is tensor or _same_memory(each, tensor):
                return self._value(tensor, self.values[self._known[each]].memory)
        return self._value(tensor, len(self.values))

    # Operations.

    def operation(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Record an operation that has run."""
        if self.paused:
            return
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        taken_args, taken_kwargs = self._refs((args, kwargs))
        written = [self.number(each) for each in _written(func, args, kwargs)]
        if not results and not written and func is not aten._local_scalar_dense.default:
            return
        numbers = tuple(self._result(each, inputs) for each in results)
        if func is aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
            self.values[numbers[0]] = replace(self.values[numbers[0]], entries=_entries(args[0]))
        taken = tuple(refs((taken_args, taken_kwargs)))
        if (taken and all(k in self._random for k in taken)) or (not taken and func.overloadpacket in _RANDOM):
            self._random.update(numbers)
        self._append(Node(func, taken_args, taken_kwargs, numbers, self.call, calling_line(), tuple(written), taken))

    def word(self, operator: str, args: Any, kwargs: Mapping[str, Any], results: Sequence[Tensor]) -> tuple[int, ...]:
        """Record what is one operation for the planner, though it is none of torch's."""
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        taken, named = self._refs((tuple(args), dict(kwargs)))
        numbers = tuple(self._result(each, inputs) for each in results)
        self._append(Node(operator, taken, named, numbers, self.call, calling_line(), (), tuple(refs((taken, named)))))
        return numbers

    def alias(self, operator: str, tensor: Tensor, path: str, where: object, parameter: str = "") -> Tensor:
        """A view of a tensor that stands for it inside of a module, or outside again.

        Args:
            path: of the module.
            where: the name of the argument or parameter, or the position of the result.
        """
        with self.pausing():
            view = tensor.view_as(tensor)
        (number,) = self.word(operator, (tensor, path, where), {}, [view])
        if parameter:
            self.values[number] = replace(self.values[number], parameter=parameter)
        return view

    def decide(self, tensor: Tensor) -> Any:
        """What control flow may take a random number for; None if it is more than a random number."""
        if self.number(tensor) not in self._random:
            return None
        self.by_chance.add(calling_line())
        return {torch.bool: False}.get(tensor.dtype, 0.5 if tensor.is_floating_point() else 0)

    def decide_by_size(self) -> None:
        """Record that the model's code decides by a size."""
        if not self.paused:
            self.decided.add(calling_line())

    @property
    def call(self) -> int:
        """The module call that runs."""
        return self.stack[-1] if self.stack else -1

    def open(self, path: str) -> None:
        """Record that a module is called."""
        self.calls.append(ModuleCall(path, self.call))
        self.stack.append(len(self.calls) - 1)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Record nothing while it lasts."""
        was, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = was

    def hook(self, tensor: Tensor, what: str) -> None:
        """Record that a hook of the user will see the gradient of a tensor."""
        self.hooked[self.number(tensor)] = f"{what} at {calling_line()}"

    def replay(self) -> None:
        """Record that some code of the running modules runs again in the backward."""
        for number in self.stack:
            self.calls[number] = ModuleCall(self.calls[number].path, self.calls[number].parent, True)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        if self._observe is not None:
            self._observe(node, self)

    def _refs(self, tree: Any) -> Any:
        return pytree.tree_map(lambda leaf: Ref(self.number(leaf)) if isinstance(leaf, Tensor) else leaf, tree)


def _entries(constant: Tensor) -> tuple[Any, ...]:
    if constant.numel() > _SMALL:
        return (object(),)  # which is like no other one
    with without_modes():
        return tuple(constant.flatten().tolist())


def _same_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return bool(memory_of(a) == memory_of(b))
    except (NotImplementedError, RuntimeError):  # a sparse or nested tensor has no storage of its own
        return False


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    declared = func._schema.arguments
    values = [*args, *(kwargs.get(each.name) for each in declared[len(args) :])]
    pairs = zip(declared, values, strict=False)
    return [v for each, v in pairs if each.alias_info and each.alias_info.is_write and isinstance(v, Tensor)]
