"""One run of a model on tensors without data, as a `Graph`."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from torch_tp.internals import FAKE_TENSOR_LOGGER, FakeTensor, FakeTensorMode, pytree
from torch_tp.models.caches import clear_caches_of
from torch_tp.models.decisions import sizes_of_calls
from torch_tp.models.failures import Parted, Unfollowable, unfollowable
from torch_tp.models.graph import Exit, Graph, Node
from torch_tp.models.interception import Edges, Functions, Operations, attention_in_one
from torch_tp.models.reachable import caches_in, reachable
from torch_tp.models.recorder import Recorder
from torch_tp.models.replays import seen_by
from torch_tp.models.sizes import Rule, Site
from torch_tp.models.snapshot import Snapshot


@dataclass(frozen=True)
class Example:
    """The arguments of one forward, and the mode to run it in.

    Attributes:
        args, kwargs: as the model is called; of tensors only shape, dtype and requires_grad count.
        training: whether the run is in training mode, with autograd.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: bool = False

    @property
    def label(self) -> str:
        """The names of the arguments, and the mode."""
        names = [*(str(k) for k in range(len(self.args))), *self.kwargs]
        return f"({', '.join(names)}) in {'training' if self.training else 'evaluation'} mode"


@dataclass(frozen=True)
class Stand:
    """What is one operation in a run, and what has other shapes than in the model.

    Attributes:
        layers: weights of linears that a parallel layer can replace -> paths of these.
        attention: paths of attention modules likewise.
        shapes: parameter or buffer -> the shape that it has instead.
        rules: module -> the calls in it that get other sizes.
    """

    layers: Mapping[str, str]
    attention: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    rules: Mapping[str, Mapping[Site, Rule]] = field(default_factory=dict[str, Mapping[Site, Rule]])


def capture(
    model: nn.Module,
    example: Example,
    stand: Stand,
    observe: Callable[[Node, Recorder], None] | None = None,
    before: Snapshot | None = None,
) -> Graph:
    """Run a model without data and write down what it does.

    The model is as it was afterwards; `before` is its state, where that is known already.

    Raises:
        Unfollowable: the model raised.
        Exception: whatever `observe` raises.
    """
    recorder = Recorder(example.label, observe)
    before = before or Snapshot(model, values=False, also=(example.args, example.kwargs))
    try:
        return _recorded(model, example, stand, recorder)
    finally:
        before.restore()
        _forget(recorder)


def _recorded(model: nn.Module, example: Example, stand: Stand, recorder: Recorder) -> Graph:
    """The graph of a run, whose tensors are gone when this returns, but for those that others hold."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    held = _stand_ins(model, stand.shapes, fake)
    for name, (tensor, stand_in) in held.items():
        recorder.begin(stand_in, name)
        recorder.originals[id(tensor)] = name
    args, kwargs = pytree.tree_map(
        lambda leaf: fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf,
        (tuple(example.args), dict(example.kwargs)),
    )
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for tensor in inputs:
        recorder.begin(tensor)
    recorder.sizes = sizes_of_calls(inputs)
    with ExitStack() as entered:
        for each in (torch.set_grad_enabled(example.training), _quiet(), seen_by(recorder)):
            entered.enter_context(each)
        entered.enter_context(saved_tensors_hooks(_nothing, _nothing))  # so that autograd keeps nothing alive
        _put_in(model, recorder, stand, held, example.training)
        for mode in (fake, Operations(recorder), Functions(recorder, stand.layers, stand.rules)):
            entered.enter_context(mode)
        seen = set(_plain(model, None))
        out = [_called(model, args, kwargs)]
    recorder.plain = sorted(set(_plain(model, out)) - seen)
    return recorder.graph(_exits(model, recorder, out, (args, kwargs)))


def _forget(recorder: Recorder) -> None:
    """Empty what remembers tensors of a run outside of the model. Raises `Unfollowable` where that cannot be done."""
    if recorder.made():
        gc.collect()
    left = clear_caches_of([tensor for tensor in recorder.made() if isinstance(tensor, FakeTensor)])
    if left and sys.exc_info()[0] is None:
        raise Unfollowable(f"tensors without data of a run would stay in {left[0]}")


def _called(model: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return model(*args, **kwargs)
    except Parted:
        raise
    except Exception as error:
        raise unfollowable(model, error) from error


def _plain(model: nn.Module, out: Any) -> Iterator[str]:
    """The numbers and texts in what a model returned, and in the attributes of its modules."""
    places = [("the model's output", out)]
    places += [(f"{n} of {path}", v) for path, m in model.named_modules() for n, v in vars(m).items() if n[:1] != "_"]
    for where, value in places:
        if isinstance(value, (int, float, str, list, dict, tuple)):
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, (int, float, str)):
                    yield f"{where}: {leaf!r}"


def _nothing(_: Any) -> Any:
    return None


def _stand_ins(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], fake: FakeTensorMode
) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a parameter or buffer -> itself, and the tensor without data in its place."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        stand_in: Tensor = fake.from_tensor(tensor)
        if name in shapes:
            with fake:
                stand_in = stand_in.new_empty(shapes[name]).requires_grad_(tensor.requires_grad)
        found[name] = tensor, stand_in
    return found


def _put_in(
    model: nn.Module, recorder: Recorder, stand: Stand, held: Mapping[str, tuple[Tensor, Tensor]], training: bool
) -> None:
    """Everything that is changed in the model itself while a run lasts."""
    model.train(training)
    by_identity = {id(tensor): stand_in for tensor, stand_in in held.values()}
    for each in model.modules():
        mine: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for tensors in mine:
            tensors.update({name: by_identity[id(old)] for name, old in tensors.items() if old is not None})
    plain = {*stand.layers.values(), *stand.attention}
    for path, each in model.named_modules():
        if path in stand.attention:
            assert isinstance(each, nn.MultiheadAttention)
            vars(each)["forward"] = attention_in_one(recorder, each)
        Edges(recorder, path, path in plain).attach(each)


def _exits(model: nn.Module, recorder: Recorder, out: list[Any], given: Any) -> list[Exit]:
    """The values that others can reach after a run. Empties `out`.

    Caches of keys and values are the model's own memory: they go on holding shards.
    """
    own = {id(t) for cache in caches_in((out, given)) for t, _ in reachable(cache, "")}
    exits = _numbers(recorder, reachable(out[0], "the model's output"), own, every=True)
    out.clear()
    if not any(True for _ in recorder.alive()):
        return [Exit(number, where) for number, where in exits.items()]
    exits |= {k: v for k, v in _numbers(recorder, _in_modules(model), own).items() if k not in exits}
    made = {number for _, number in recorder.alive()} & exits.keys()
    if {number for t, number in recorder.alive() if id(t) not in own} - made:
        gc.collect()
    for tensor, number in recorder.alive():
        if id(tensor) not in own:
            exits.setdefault(number, "something outside of the model")
    return [Exit(number, where) for number, where in exits.items()]


def _numbers(
    recorder: Recorder, found: Iterator[tuple[Tensor, str]], own: set[int], every: bool = False
) -> dict[int, str]:
    """The values among tensors that were made or overwritten in the run, or of every one, and where they lie."""
    made = {id(tensor): number for tensor, number in recorder.alive(every)}
    return {made[id(t)]: where for t, where in found if id(t) in made and id(t) not in own}


def _in_modules(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """The tensors that modules hold as attributes, in containers, and in place of buffers."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from reachable(value, f"attribute {name} of {path or 'the model'}", seen)


@contextmanager
def _quiet() -> Iterator[None]:
    """While it lasts, torch does not log what a stand-in for an operation refuses: it is raised, too."""
    logger = logging.getLogger(FAKE_TENSOR_LOGGER)
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was
