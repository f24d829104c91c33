"""One forward and backward of a model, and everything of it that is compared with another one."""

from __future__ import annotations

import inspect
import itertools
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_tp.internals import TorchDispatchMode, pytree
from torch_tp.models.agreement import Call
from torch_tp.models.rounding import is_float
from torch_tp.models.snapshot import Snapshot


@dataclass(frozen=True)
class Step:
    """Something that passes through a module, once.

    Attributes:
        path: of the module.
        what: its input or an output, or the gradient of one.
        call: how many calls of the module came before.
    """

    path: str
    what: str
    call: int


@dataclass
class Pass:
    """The results of one forward and backward.

    Attributes:
        results: outputs and gradients by name; these are judged.
        steps: values that passed through modules, in the order of execution; these show where two passes part.
        raised: the error of a forward or backward that did not come to its end.
        running: paths of the modules that run, the innermost last.
        draws: the operations that drew random numbers, and the shapes for which they did.
        dropped: whether a dropout was turned off.
    """

    results: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    steps: dict[Step, Tensor] = field(default_factory=dict[Step, Tensor])
    raised: Exception | None = None
    running: list[str] = field(default_factory=list[str])
    draws: list[tuple[str, tuple[int, ...]]] = field(default_factory=list[tuple[str, tuple[int, ...]]])
    dropped: bool = False

    def note(self, path: str, what: str, tensor: Tensor) -> None:
        """Remember a value, and its gradient once there is one."""
        step = next(s for call in itertools.count() if (s := Step(path, what, call)) not in self.steps)
        self.steps[step] = tensor.detach().clone()  # a later operation may write into it
        if tensor.requires_grad:
            of = Step(path, f"gradient of its {what}", step.call)
            tensor.register_hook(lambda gradient: self.steps.update({of: gradient.detach().clone()}))


def run_once(
    model: nn.Module,
    call: Call,
    *,
    training: bool,
    snapshot: Snapshot,
    paths: Collection[str],
    silent: Collection[int] = (),
    rounding: Any = None,
) -> Pass:
    """Run a forward and a backward with equal random states and upstream gradients, then restore the snapshot.

    In training mode dropout is off: masks of sharded values differ from those of the dense model. `nn.Dropout`,
    `torch.nn.functional.dropout` and its relatives, and the dropout of attention and recurrent layers become the
    identity by a `TorchFunctionMode`, which leaves the model alone.

    Args:
        training: whether the model is in training or in evaluation mode.
        snapshot: the state of the model and the call before the pass.
        paths: modules whose inputs are compared, too.
        silent: ids of hooks that must not run when a parameter's gradient is there, such as one that optimizes it.
        rounding: a mode that is active meanwhile.
    """
    found = Pass()
    try:
        with ExitStack() as entered:
            entered.enter_context(_watched(model, paths, found))
            entered.enter_context(torch.inference_mode(False))
            entered.enter_context(torch.enable_grad())
            entered.enter_context(_WithoutDropout(found) if training else nullcontext())
            entered.enter_context(_Draws(found))
            entered.enter_context(nullcontext() if rounding is None else rounding)
            _seed()
            model.train(training)
            for parameter in model.parameters():
                parameter.grad = None
                _silence(parameter, silent)
            try:
                _forward_and_backward(model, call, found)
            except Exception as error:
                found.raised = error
    finally:
        snapshot.restore()
    return found


def gradient_hooks(model: nn.Module) -> set[int]:
    """The ids of all hooks that run when the gradient of a parameter was accumulated."""
    return {id(hook) for each in model.parameters() for hook in (each._post_accumulate_grad_hooks or {}).values()}


def _silence(parameter: Tensor, silent: Collection[int]) -> None:
    hooks = parameter._post_accumulate_grad_hooks or {}
    for key in [key for key, hook in hooks.items() if id(hook) in silent]:
        del hooks[key]


def _seed() -> None:
    """Set the random states, but only of generators that a snapshot covers: torch.manual_seed reaches others, too."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    for generator in generators:
        generator.manual_seed(0)
    random.seed(0)
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    if numpy is not None:
        numpy.seed(0)


def _forward_and_backward(model: nn.Module, call: Call, found: Pass) -> None:
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not is_float(value):
            return value.clone()
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1].clone()  # which the model may write into

    args, kwargs = pytree.tree_map(leaf, (tuple(call[0]), dict(call[1])))
    outputs = [each for each in pytree.tree_leaves(model(*args, **kwargs)) if is_float(each)]
    found.running.clear()
    found.results |= {f"output {number}": each.detach().clone() for number, each in enumerate(outputs)}
    wanted: dict[str, Tensor] = {f"gradient of {name}": p for name, p in model.named_parameters() if p.requires_grad}
    wanted |= {f"gradient of input {number}": each for number, each in enumerate(leaves)}
    ends = [each for each in outputs if each.requires_grad]
    if not ends:
        return
    # Not torch.autograd.grad, which reentrant checkpoints refuse.
    torch.autograd.backward(ends, [drawn(each, seed) for seed, each in enumerate(ends)])
    for name, tensor in wanted.items():
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach()
        found.results[name] = gradient.to_dense() if gradient.is_sparse else gradient


def drawn(like: Tensor, seed: int) -> Tensor:
    """Normal values, the same on every rank and device."""
    values = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return values.to(like.device, like.dtype)


@contextmanager
def _watched(model: nn.Module, paths: Collection[str], found: Pass) -> Iterator[None]:
    """Note the outputs of every module, and the inputs of those at `paths`."""

    def enter(path: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
            found.running.append(path)
            if path not in paths or not args or not is_float(args[0]):
                return None
            own = args[0].view_as(args[0])  # its gradient is that of this module alone
            found.note(path, "input", own)
            return own, *args[1:]

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found.running.pop()
            for number, each in enumerate(filter(is_float, pytree.tree_leaves(output))):
                found.note(path, f"output {number}" if number else "output", each)

        return hook

    hooks = []
    for path, each in model.named_modules():
        hooks += [each.register_forward_pre_hook(enter(path)), each.register_forward_hook(leave(path))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Draws(TorchDispatchMode):
    """While it is active, operations that draw random numbers are noted."""

    def __init__(self, found: Pass) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        # Fused attention and recurrent layers draw for their dropout alone, which is off.
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name and "rnn" not in name:
            shapes = [tuple(each.shape) for each in pytree.tree_leaves(out) if isinstance(each, Tensor)]
            self._found.draws += [(name, shape) for shape in shapes[:1]]
        return out


_DROPOUTS = "dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d"
_IDENTITIES = {name + ending for name in _DROPOUTS.split() for ending in ("", "_")}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def _backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """As torch.autograd.backward, which leaves every TorchFunctionMode before it starts."""
    ends = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    upstream = (grad_tensors,) * len(ends) if grad_tensors is None or isinstance(grad_tensors, Tensor) else grad_tensors
    pairs = zip(ends, upstream, strict=True)
    gradients = tuple(torch.ones_like(end) if gradient is None else gradient for end, gradient in pairs)
    targets = () if inputs is None else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(ends, gradients, keep, create_graph, targets, allow_unreachable=True, accumulate_grad=True)


class _WithoutDropout(TorchFunctionMode):
    """While it is active, dropout is the identity, whoever calls it."""

    def __init__(self, found: Pass) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in _IDENTITIES:
            probability, active = args[1:3] if len(args) > 2 else (1, 1)
            self._found.dropped |= bool(named.get("p", probability) and named.get("training", active))
            return args[0] if args else named["input"]
        if name == "scaled_dot_product_attention":
            args, named = self._off(args, named, "dropout_p", 4)
        elif name == "multi_head_attention_forward" and inspect.isfunction(func):
            at = list(inspect.signature(func).parameters).index("dropout_p")
            args, named = self._off(args, named, "dropout_p", at)
        elif name in _RECURRENT and len(args) == 9:
            # The fourth argument is `has_biases` with a tensor, and the weights with a packed sequence.
            args, named = self._off(args, named, "dropout", 5 if isinstance(args[3], bool) else 6)
        elif func is torch.autograd.backward:
            with self:  # a checkpoint runs its forward again in the backward
                return _backward(*args, **named)
        return func(*args, **named)

    def _off(self, args: Sequence[Any], named: Mapping[str, Any], name: str, at: int) -> tuple[Any, Any]:
        """Arguments with a dropout probability of zero in place of the one by this name or position."""
        probability = args[at] if len(args) > at else named.get(name, 0.0)
        if not probability:
            return args, named
        self._found.dropped = True
        if len(args) > at:
            return (*args[:at], 0.0, *args[at + 1 :]), named
        return args, {**named, name: 0.0}
