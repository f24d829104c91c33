"""A model's state before a run, so that everything that the run changes can be restored.

A forward may write anywhere: it fills caches, counts calls, draws random numbers. A `Snapshot` covers what a forward
can reach from its model: the modules and the objects that they hold, their classes, and the globals of the files that
define these classes. Caches of `functools` cannot be copied; `torch_tp.models.caches` empties them.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.internals import FakeTensor, memory_of
from torch_tp.models import restoring

# Files of these packages hold no state of a model, and other code depends on the state that they do hold.
_LIBRARIES = {"torch", "torch_tp", "numpy"}
_PLAIN_STANDARD_MODULES = {"types", "argparse", "collections"}  # SimpleNamespace, Namespace, UserDict and the like
_ATOMS = {int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
_Undo = Callable[[], Any]


class Snapshot:
    """The state of a model and of everything that its forward can reach.

    `restore` puts everything back in place: the same objects hold the same items, by identity and in the same order.
    It covers

    - modules: classes, attributes, parameters, buffers, children, hooks and training flags;
    - lists, dicts, sets, deques and objects with attributes that modules hold, at any depth;
    - attributes of the modules' classes, and globals of the files that define them, if these are not torch's;
    - parameters, buffers and other tensors: memory, `requires_grad`, `.grad`, hooks and attributes;
    - the random states of torch (CPU, and CUDA if it is in use), Python and NumPy, and of generators that modules hold.

    Args:
        model: the model.
        values: copy the elements of the model's tensors and of their gradients too.
        also: further objects to cover, such as the arguments of a call.
    """

    def __init__(self, model: nn.Module, *, values: bool, also: Any = ()) -> None:
        walk = _Walk(model, values)
        for module in model.modules():
            walk.module(module)
        walk.follow(also)
        for kind in list(dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__)):
            walk.file_of(kind)
        self._undo = [*walk.undo, *_random_states()]
        self._alive = walk.alive

    def restore(self) -> None:
        """Put everything back; it may be called more than once.

        An interrupt from the keyboard does not stop this. It is raised once everything is back, and so is the first
        error of an object that refuses to be changed.
        """
        interrupt: KeyboardInterrupt | None = None
        done = False
        while not done:
            try:
                error = self._restore()
                done = True
            except KeyboardInterrupt as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt
        if error is not None:
            raise error

    def _restore(self) -> Exception | None:
        first: Exception | None = None
        with torch.inference_mode(False), torch.no_grad():
            for undo in self._undo:
                try:
                    undo()
                except Exception as error:
                    first = first or error
        return first


class _Walk:
    """Visits every object once and collects the calls that restore it.

    Attributes:
        undo: the calls, in the order in which they must run.
        alive: every visited object, so that no other object gets its id.
    """

    def __init__(self, model: nn.Module, values: bool) -> None:
        self.undo: list[_Undo] = []
        self.alive: list[Any] = []
        self._seen: set[int] = set()
        self._values = values
        self._storages: set[int] = set()

    def module(self, module: nn.Module) -> None:
        self._seen.add(id(module))
        self.undo.append(partial(restoring.restore_class, module, type(module)))
        self.undo.append(partial(restoring.restore_attributes, module, vars(module)))
        self.follow(vars(module))

    def follow(self, root: Any) -> None:
        """Cover an object, and the objects that it holds at any depth."""
        waiting = [root]
        while waiting:
            each = waiting.pop()
            if type(each) in _ATOMS or id(each) in self._seen:
                continue
            self._seen.add(id(each))
            self.alive.append(each)
            if isinstance(each, Tensor):
                waiting += self._tensor(each)
            else:
                waiting += self._container(each)

    def file_of(self, kind: type) -> None:
        """Cover a class, and the globals of the file that defines it."""
        file = sys.modules.get(kind.__module__)
        if _package(kind) in _LIBRARIES | sys.stdlib_module_names or file is None:
            return
        self._values, values = False, self._values  # a script's globals may hold a whole data set
        self._class(kind)
        if id(file) not in self._seen:
            self._seen.add(id(file))
            self._names(
                vars(file), partial(restoring.set_global, vars(file)), partial(restoring.delete_global, vars(file))
            )
            for value in list(vars(file).values()):
                if isinstance(value, type) and value.__module__ == kind.__module__:
                    self._class(value)
                elif _attributes_of(value) is None or type(value).__module__ == kind.__module__:
                    self.follow(value)
        self._values = values

    def _class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        self.alive.append(kind)
        self._names(vars(kind), partial(type.__setattr__, kind), partial(type.__delattr__, kind))
        for value in list(vars(kind).values()):
            self.follow(value)

    def _names(self, now: Mapping[str, Any], put: Callable[[str, Any], None], drop: Callable[[str], None]) -> None:
        was = {name: value for name, value in now.items() if not restoring.is_special(name)}
        self.undo.append(partial(restoring.restore_names, now, was, put, drop))

    def _container(self, each: Any) -> Iterable[Any]:
        """Note the items and attributes of an object that can be changed; return the objects that it holds."""
        items: list[Any] = []
        if isinstance(each, dict):
            kind = OrderedDict if isinstance(each, OrderedDict) else dict
            keys, items = list(kind.keys(each)), list(kind.values(each))
            self.undo.append(partial(restoring.restore_dict, each, keys, items))
        elif isinstance(each, (list, deque)):
            items = list(each)
            self.undo.append(partial(restoring.restore_sequence, each, items))
        elif isinstance(each, set):
            items = list(each)
            self.undo.append(partial(restoring.restore_set, each, items))
        elif isinstance(each, (tuple, frozenset)):
            items = list(each)
        elif isinstance(each, torch.Generator):
            self.undo.append(partial(each.set_state, each.get_state()))
        elif isinstance(each, random.Random):
            self.undo.append(partial(each.setstate, each.getstate()))
        attributes = _attributes_of(each)
        if attributes is not None:
            self.undo.append(partial(restoring.restore_attributes, each, attributes))
            items = [*items, attributes]
        slots = dict(_slots_of(each))
        if slots:
            self.undo.append(partial(restoring.restore_slots, each, slots))
            items = [*items, *slots.values()]
        return items

    def _tensor(self, tensor: Tensor) -> Iterable[Any]:
        """Note a tensor; return the dicts of its hooks and attributes, and its gradient."""
        if isinstance(tensor, FakeTensor):
            return []
        leaf = tensor.is_leaf
        gradient = tensor.grad if leaf else None
        memory = tensor.detach() if _is_plain(tensor) else None
        self.undo.append(partial(restoring.restore_tensor, tensor, memory, leaf, tensor.requires_grad, gradient))
        if self._values and not tensor.is_meta:
            self._elements(tensor, memory)
        attributes = vars(tensor) if type(tensor) in (Tensor, nn.Parameter) else None
        hooks = {name: getattr(tensor, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
        self.undo.append(partial(restoring.restore_hooks, tensor, hooks))
        return [each for each in (attributes, *hooks.values(), gradient) if each is not None]

    def _elements(self, tensor: Tensor, memory: Tensor | None) -> None:
        """Note elements by the memory that holds them, which tied tensors and views share."""
        if memory is None:
            self.undo.append(partial(tensor.copy_, tensor.detach().clone()))
            return
        storage = memory.untyped_storage()
        if memory_of(memory) not in self._storages:
            self._storages.add(memory_of(memory))
            self.undo.append(partial(restoring.restore_storage, storage, storage.clone()))


def _attributes_of(each: Any) -> dict[str, Any] | None:
    """The attributes of a plain object, such as a configuration or a cache; None of any other object."""
    kind = type(each)
    if issubclass(kind, (type, ModuleType, FunctionType, nn.Module, Tensor)):
        return None
    standard = _package(kind) in sys.stdlib_module_names and kind.__module__ not in _PLAIN_STANDARD_MODULES
    if standard or _package(kind) in _LIBRARIES:
        return None
    try:
        attributes = object.__getattribute__(each, "__dict__")
    except AttributeError:
        return None
    return attributes if type(attributes) is dict else None


def _slots_of(each: Any) -> Iterator[tuple[Any, Any]]:
    """The slots of an object that are set, and their values."""
    if _package(type(each)) in _LIBRARIES | sys.stdlib_module_names or issubclass(type(each), (nn.Module, type)):
        return
    for kind in type(each).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else tuple(names):
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            slot = vars(kind).get(mangled)
            if slot is not None and name not in ("__dict__", "__weakref__") and hasattr(slot, "__set__"):
                try:
                    yield slot, slot.__get__(each)
                except AttributeError:
                    continue


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def _is_plain(tensor: Tensor) -> bool:
    """True if a tensor's elements lie in memory of its own, as those of sparse tensors and wrappers do not."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta


def _random_states() -> Iterator[_Undo]:
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    for generator in generators:
        yield partial(generator.set_state, generator.get_state())
    yield partial(random.setstate, random.getstate())
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)  # nothing is imported that is not there already
    if numpy is not None:
        yield partial(numpy.set_state, numpy.get_state())
