"""Runs of a model on tensors without data, which tell a `Run` of everything that happens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as checkpoints
from torch.utils._python_dispatch import TorchDispatchMode

from torch_tp.layers.attention import unfit
from torch_tp.models.cuts import label_of
from torch_tp.models.keeping import Kept
from torch_tp.models.ledger import Ledger
from torch_tp.models.operations import tensors_in
from torch_tp.models.trace import Run, Step

aten = torch.ops.aten


class _Functions(TorchFunctionMode):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._nn.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            if self.run.names.get(id(given["weight"])) in self.run.layers:
                return self.run.linear(given["input"], given["weight"], given.get("bias"))
        if "grouped_mm" in getattr(func, "__name__", "") and len(args) > 1 and kwargs.get("bias") is None:
            return self.run.grouped(func, args, kwargs)
        return func(*args, **kwargs)


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives; where the number of chosen entries depends on data, as if all were chosen.

    How many rows there are says nothing about how features are cut, and both runs take them to be as many.
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


class _Operations(TorchDispatchMode):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _computed(func, args, kwargs or {})
        results = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        self.run.operation(func, args, kwargs or {}, results)
        return out


def layers_of(model: nn.Module) -> dict[str, str]:
    """The weights of linears that a parallel layer can stand for -> the paths of these."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = list(model.named_modules())
    holders: dict[int, int] = {}
    for _, each in modules:
        for parameter in each._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {
        names[id(each.weight)]: path
        for path, each in modules
        if type(each) is nn.Linear
        and each._parameters.get("weight") is not None
        and each._parameters.keys() == {"weight", "bias"}
        and all(holders[id(p)] == 1 for p in each._parameters.values() if p is not None)
    }


def run_of(
    model: nn.Module,
    P: int,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    check: Callable[[Step], None] = lambda step: None,
    path: list[str] | None = None,
    alone: frozenset[str] = frozenset(),
    attention: int | None = None,
) -> Run:
    """Run a module without data, in evaluation mode, and note what is said of its parameters' dimensions.

    With `shapes`, those of parameters in place of their own, only the steps are noted. `path` is where to keep the
    modules that run; `attention` is over how many ranks modules are cut by heads, if not P. Labels in `alone` are seen
    as one block with copies on all ranks, where they can be. Raises whatever the module raises: control flow that
    depends on data does.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def without_data(leaf: Any) -> Any:
        return fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

    named = dict(model.named_parameters())
    held = {id(tensor): without_data(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, shape in (shapes or {}).items():
        with fake:
            held[id(named[name])] = held[id(named[name])].new_empty(shape)
    sizes = {label_of(name, dim): size for name, p in named.items() for dim, size in enumerate(p.shape)}
    names = {id(held[id(p)]): name for name, p in named.items()}
    run = Run(model, names, layers_of(model), Ledger(P, sizes, alone), follow=shapes is None, check=check)
    run.path = [] if path is None else path
    given, further = pytree.tree_map(without_data, (tuple(args), dict(kwargs)))
    for name, parameter in named.items():
        run.begin(held[id(parameter)], name)
    for tensor in tensors_in((given, further)):
        run.begin(tensor)
    with ExitStack() as entered:
        entered.enter_context(_as_it_was(model))
        entered.enter_context(torch.no_grad())
        entered.enter_context(_quiet())
        entered.enter_context(_functions(run))
        model.eval()
        _tell(model, run)
        _put_in(model, held)
        _stand_in(model, run, P if attention is None else attention)
        for mode in (fake, _Operations(run), _Functions(run)):
            entered.enter_context(mode)
        out = model(*given, **further)
    if run.follow:
        run.end(out)
        run.ledger.judge()
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """While it lasts, torch does not log what a stand-in for an operation refuses: it is raised, too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was


@contextmanager
def _functions(run: Run) -> Iterator[None]:
    """While it lasts, the run is told of every `autograd.Function`, and of what may run again in the backward."""
    generator = "_checkpoint_without_reentrant_generator"  # asked for by every checkpoint that is no Function
    was, again = vars(torch.autograd.Function)["apply"], getattr(checkpoints, generator)

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        out = was.__get__(None, kind)(*args, **kwargs)
        run.function(kind, (args, kwargs), out)
        return out

    def checkpoint(*args: Any, **kwargs: Any) -> Any:
        run.opaque.update(run.path)  # its code runs again when its module has returned
        return again(*args, **kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010 - torch declares it otherwise
    setattr(checkpoints, generator, checkpoint)
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", was)  # noqa: B010
        setattr(checkpoints, generator, again)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Whatever is done to a model meanwhile, such as what its forward keeps, is undone."""
    kept = Kept(model, data=False)
    try:
        yield
    finally:
        kept.put_back()


def _tell(model: nn.Module, run: Run) -> None:
    """From now on the run is told of every module that is called and returns."""

    def entering(path: str) -> Any:
        return lambda _, args, kwargs: run.enter(path, args, kwargs)

    def leaving(_: Any, args: Any, kwargs: Any, out: Any) -> Any:
        return run.leave(out)

    for path, each in model.named_modules():
        each.register_forward_pre_hook(entering(path), with_kwargs=True)
        each.register_forward_hook(leaving, with_kwargs=True, prepend=True)  # as a boundary is: hooks see what it gives


def _stand_in(model: nn.Module, run: Run, P: int) -> None:
    """From now on attention modules for which a layer can stand are one operation each."""
    names = list(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]

    def standing_in(path: str, module: nn.MultiheadAttention) -> Any:
        return lambda *args, **kwargs: run.attention(path, module, dict(zip(names, args, strict=False)) | kwargs)

    for path, each in model.named_modules():
        if isinstance(each, nn.MultiheadAttention) and not unfit(each, P):
            vars(each)["forward"] = standing_in(path, each)


def _put_in(model: nn.Module, held: Mapping[int, Tensor]) -> None:
    """From now on the module computes with other tensors than its parameters and buffers, by their identity.

    torch.func.functional_call leaves its own tensors behind in a module that is held under two names.
    """
    for each in model.modules():
        mine: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for tensors in mine:
            tensors.update({name: held[id(tensor)] for name, tensor in tensors.items() if tensor is not None})
