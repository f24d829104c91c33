"""A cut model beside the one it was: the same outputs and the same gradients, up to what rounding explains.

How much that is follows from the model itself, by Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997): the
dense model runs once as it is, and a few times more with every sum and sum of products, forward and backward, off by
random signs times the worst-case error of its rounding,

    ((1 + gamma(n, u_acc)) (1 + gamma(P + 2, u)) - 1) * (|a| |b| + |c|),      gamma(k, u) = k u / (1 - k u)

for `a b + c` of n terms, u the roundoff of its dtype and u_acc that of the accumulator (N. J. Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1; P + 2 for the sum over the ranks, the bias and a cast). The
bound of a tensor is twice the largest deviation of any of its elements over these runs, and four roundoff units of its
largest element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch_tp import c10d
from torch_tp.errors import VerificationError
from torch_tp.group import Group
from torch_tp.layers.linear import ShardedLinear
from torch_tp.models.keeping import Kept
from torch_tp.placements import Placement, Shard

_RUNS = 3
_ROOM = 1024  # bytes of a rank's verdict
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot, _aten._grouped_mm}
_OPERAND_ROUNDOFF = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}  # of float32, by matmul precision

Example = tuple[Sequence[Any], Mapping[str, Any]]


def verified(
    owner: str,
    module: nn.Module,
    group: Group,
    paths: Collection[str],
    examples: Iterable[Example],
    with_data: bool,
    wrap: Callable[[], None],
) -> str:
    """Run a module, let `wrap` cut it in place, run it again, and tell how near the two are.

    To be called on every rank of the group, like any collective. Nothing but what `wrap` does is left behind: runs are
    in evaluation mode; training mode, attributes, buffers, gradients and random state are put back.

    Args:
        paths: of the modules that `wrap` replaces.
        examples: arguments of one forward; the first that the module takes are used.
        with_data: whether their floating-point tensors hold values. Else normal ones are drawn.

    Raises:
        ValueError: there is no group to communicate in, or no data, or nothing to compare.
        VerificationError: the two differ. On every rank, and the module is as it was before `wrap`.
    """
    _refuse(owner, _unfit(module, group))
    given, dense = _dense(owner, module, paths, examples, with_data)
    bounds = _bounds(module, paths, given, dense, group.size)
    _refuse(owner, _senseless(dense, bounds))
    kept = Kept(module)
    try:
        wrap()
        cut = _run(module, paths, given)
        verdict = _judged(module, group, dense, cut, bounds)
        ratios, failed = _agreed_or_not(verdict, group)
    except BaseException:
        kept.put_back()
        raise
    if failed:
        kept.put_back()
        raise VerificationError(f"{owner}: over P = {group.size} ranks {failed}; the model is as it was")
    return _summary(dense, bounds, max(ratios))


def _summary(dense: _Run, bounds: _Bounds, ratio: float) -> str:
    outputs = {name: whole for name, whole in dense.results.items() if name.startswith("output")}
    widest = max(bounds.results[name] / (_largest(whole) or 1.0) for name, whole in outputs.items())
    return (
        f"outputs and {len(dense.results) - len(outputs)} gradients lie within their bounds; the largest deviation is"
        f" {ratio:.2g} of its bound, that of the outputs {widest:.2g} of their largest element"
    )


def _refuse(owner: str, reason: str) -> None:
    if reason:
        raise ValueError(f"{owner}: verify=True: {reason}")


def _unfit(module: nn.Module, group: Group) -> str:
    """Why a module cannot be verified, or an empty string."""
    if not group.attached:
        return (
            f"rank = {group.rank}, world_size = {group.size} came without a process group, so that the cut model cannot"
            " run; verify it in one"
        )
    empty = [name for name, each in (*module.named_parameters(), *module.named_buffers()) if each.is_meta]
    return f"{empty[0]} is on the meta device and holds no values to compute with" if empty else ""


def _senseless(dense: _Run, bounds: _Bounds) -> str:
    if not any(name.startswith("output") for name in dense.results):
        return "the model's output holds no floating-point tensor to compare"
    wild = [name for name, bound in bounds.results.items() if not math.isfinite(bound)]
    return f"the {wild[0]} of the dense model is not finite; give another example=" if wild else ""


# -- one run of a model


@dataclass(frozen=True)
class _Step:
    """Something that passes through a module, once."""

    path: str
    what: str
    call: int


@dataclass
class _Run:
    """What one forward and backward gave.

    Attributes:
        results: outputs and gradients, by what they are; these are judged.
        steps: what passed through modules on the way, in the order of execution; these show where two runs part.
        raised: the error of a forward or backward that did not come to its end.
        running: paths of the modules that run, the innermost last.
    """

    results: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    steps: dict[_Step, Tensor] = field(default_factory=dict[_Step, Tensor])
    raised: Exception | None = None
    running: list[str] = field(default_factory=list[str])

    def note(self, path: str, what: str, tensor: Tensor) -> None:
        """Keep a value, and its gradient when there is one."""
        step = next(s for call in itertools.count() if (s := _Step(path, what, call)) not in self.steps)
        self.steps[step] = tensor.detach().clone()  # a later operation may write into it
        if tensor.requires_grad:
            of = _Step(path, f"gradient of its {what}", step.call)
            tensor.register_hook(lambda gradient: self.steps.update({of: gradient.detach().clone()}))


def _run(module: nn.Module, paths: Collection[str], given: Example, rounding: Any = None) -> _Run:
    """A forward and a backward of an upstream gradient that is always the same."""
    run = _Run()
    with ExitStack() as entered:
        entered.enter_context(_nothing_left_behind(module))
        entered.enter_context(_watched(module, paths, run))
        entered.enter_context(torch.inference_mode(False))
        entered.enter_context(torch.enable_grad())
        entered.enter_context(nullcontext() if rounding is None else rounding)
        module.eval()
        try:
            _forward_and_backward(module, given, run)
        except Exception as error:
            run.raised = error
    return run


def _forward_and_backward(module: nn.Module, given: Example, run: _Run) -> None:
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not _is_float(value):
            return value.clone()
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1].clone()  # which the model may write into

    args, kwargs = pytree.tree_map(leaf, given)
    outputs = [each for each in pytree.tree_leaves(module(*args, **kwargs)) if _is_float(each)]
    run.running.clear()
    run.results |= {f"output {number}": each.detach().clone() for number, each in enumerate(outputs)}
    wanted: dict[str, Tensor] = {f"gradient of {name}": p for name, p in module.named_parameters() if p.requires_grad}
    wanted |= {f"gradient of input {number}": each for number, each in enumerate(leaves)}
    ends = [each for each in outputs if each.requires_grad]
    if not ends:
        return
    upstream = [_normal(each, seed) for seed, each in enumerate(ends)]
    found = torch.autograd.grad(ends, list(wanted.values()), upstream, allow_unused=True)
    for (name, of), gradient in zip(wanted.items(), found, strict=True):
        run.results[name] = torch.zeros_like(of) if gradient is None else gradient


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _normal(like: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like.device, like.dtype)


@contextmanager
def _watched(module: nn.Module, paths: Collection[str], run: _Run) -> Iterator[None]:
    """Note what every module gives, and what those at `paths` take."""

    def enter(path: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
            run.running.append(path)
            if path not in paths or not args or not _is_float(args[0]):
                return None
            own = args[0].view_as(args[0])  # its gradient is that of this module alone
            run.note(path, "input", own)
            return own, *args[1:]

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            run.running.pop()
            for number, each in enumerate(filter(_is_float, pytree.tree_leaves(output))):
                run.note(path, f"output {number}" if number else "output", each)

        return hook

    hooks = []
    for path, each in module.named_modules():
        hooks += [each.register_forward_pre_hook(enter(path)), each.register_forward_hook(leave(path))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _nothing_left_behind(module: nn.Module) -> Iterator[None]:
    """A module's state and the random state, which is the same in each run, are put back."""
    kept = Kept(module)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed, which reaches devices that are not put back.
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        try:
            yield
        finally:
            kept.put_back()


def _dense(
    owner: str, module: nn.Module, paths: Collection[str], examples: Iterable[Example], with_data: bool
) -> tuple[Example, _Run]:
    """The first example that the module takes, and what it makes of it."""
    failures = []
    for example in examples:
        given = pytree.tree_map(lambda leaf: _values(leaf, module, with_data), example)
        run = _run(module, paths, given)
        if run.raised is None:
            return given, run
        failures.append(f"{type(run.raised).__name__}: {' '.join(str(run.raised).split())[:160]}")
    raise ValueError(
        f"{owner}: verify=True: the dense model cannot run; give example=, the arguments of one forward"
        f" ({'; '.join(failures) or 'nothing is known of its inputs'})"
    )


def _values(leaf: Any, module: nn.Module, with_data: bool) -> Any:
    """A leaf of an example, with values."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_meta or isinstance(leaf, FakeTensor):
        device = next((each.device for each in module.parameters()), torch.device("cpu"))
        leaf = torch.full(tuple(leaf.shape), leaf.dtype == torch.bool, dtype=leaf.dtype, device=device)
        with_data = False
    return leaf if with_data or not _is_float(leaf) else _normal(leaf, 1)


# -- what rounding explains


@dataclass(frozen=True)
class _Bounds:
    results: Mapping[str, float]
    steps: Mapping[_Step, float]


def _bounds(module: nn.Module, paths: Collection[str], given: Example, dense: _Run, P: int) -> _Bounds:
    """How far each tensor of the cut model may be from that of the dense one."""
    results, steps = dict.fromkeys(dense.results, 0.0), dict.fromkeys(dense.steps, 0.0)
    for seed in range(_RUNS):
        other = _run(module, paths, given, _Rounding(P, seed))
        if other.raised is not None:
            raise other.raised
        _widen(results, dense.results, other.results)
        _widen(steps, dense.steps, other.steps)
    return _Bounds(_in_all(results, dense.results), _in_all(steps, dense.steps))


def _widen(found: dict[Any, float], dense: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> None:
    for key in dense.keys() & other.keys():
        found[key] = max(found[key], deviation(other[key], dense[key]))


def _in_all(found: Mapping[Any, float], dense: Mapping[Any, Tensor]) -> dict[Any, float]:
    return {key: 2 * worst + 4 * _roundoff(dense[key].dtype) * _largest(dense[key]) for key, worst in found.items()}


class _Rounding(TorchDispatchMode):
    """While it lasts, sums and sums of products are off by as much as their rounding may be, up or down at random.

    They are seen below autograd, so that those of the backward, and whoever computes them, are among them. Sums alone
    matter where a gradient is zero but for rounding, as that of a bias that is added to all keys of an attention.
    """

    def __init__(self, P: int, seed: int) -> None:
        super().__init__()
        self._P = P
        self._source = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operands = [each for each in args if isinstance(each, Tensor)]
        if func.overloadpacket in _PRODUCTS:
            grouped = func.overloadpacket is _aten._grouped_mm
            terms = operands[0].shape[-1] if grouped else operands[-2].shape[-1] + len(operands) - 2
        elif func.overloadpacket is _aten.sum:
            terms = operands[0].numel() // max(1, out.numel())
        else:
            return out
        if not _is_float(out):
            return out
        magnitude = func(*(each.abs() if isinstance(each, Tensor) else each for each in args), **(kwargs or {}))
        signs = torch.randint(0, 2, out.shape, generator=self._source).mul_(2).sub_(1).to(out.device)
        error = magnitude.to(_wide(out.dtype)) * _relative_error(terms, self._P, out.dtype) * signs
        return (out + error).to(out.dtype)


def _relative_error(terms: int, P: int, dtype: torch.dtype) -> float:
    """Of a sum of so many products, to the sum of their absolute values."""
    u = _roundoff(dtype)
    own, after = _gamma(terms, min(u, 2.0**-24)), _gamma(P + 2, u)
    operands = 2 * _OPERAND_ROUNDOFF[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 0.0
    return (1 + own) * (1 + after) * (1 + operands) - 1


def _gamma(k: int, u: float) -> float:
    return k * u / (1 - k * u) if k * u < 0.5 else 1.0


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is narrower than float32 is compared in it."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest of any element; 0 where both are infinite alike, or no numbers, and infinite where one alone is."""
    a, b = actual.detach().to(_wide(actual.dtype)), expected.detach().to(_wide(expected.dtype))
    off = (a - b).abs().masked_fill_((a == b) | (a.isnan() & b.isnan()), 0)
    return float(off.nan_to_num_(nan=math.inf, posinf=math.inf).max()) if off.numel() else 0.0


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach().abs().nan_to_num_(nan=0, posinf=0)
    return float(finite.max()) if finite.numel() else 0.0


# -- the verdict


@dataclass(frozen=True)
class _Verdict:
    """The largest deviation of any result, as a share of its bound, and what is wrong: empty if nothing is."""

    ratio: float
    reason: str = ""


def _judged(module: nn.Module, group: Group, dense: _Run, cut: _Run, bounds: _Bounds) -> _Verdict:
    """What this rank makes of the cut model."""
    ratio, wrong = 0.0, []
    for name, whole in dense.results.items() if cut.raised is None else ():
        wanted, found, bound = _own(whole, _placement(module, name), group), cut.results.get(name), bounds.results[name]
        if found is None or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            wrong.append((name, f"{name} is {_kind(found)} in place of {_kind(wanted)}"))
            continue
        off = deviation(found, wanted)
        ratio = max(ratio, off / bound if bound else math.inf if off else 0.0)
        if off > bound:
            wrong.append((name, f"{name} is off by {off:.3g}, where rounding explains {bound:.3g}"))
    if cut.raised is None and not wrong:
        return _Verdict(ratio)
    if cut.raised is None:
        name, what = wrong[0]
        owner = _owner(name)
        if len(wrong) > 1:
            what += f" (and {len(wrong) - 1} more of its {len(dense.results)} outputs and gradients are wrong)"
    else:
        owner = cut.running[-1] if cut.running else ""
        what = f"it raises {type(cut.raised).__name__}: {' '.join(str(cut.raised).split())[:300]}"
    where = _first_apart(module, group, dense, cut, bounds) or _named(module, owner)
    return _Verdict(ratio, f"the model does not compute what it did: it goes wrong at {where}; {what}")


def _first_apart(module: nn.Module, group: Group, dense: _Run, cut: _Run, bounds: _Bounds) -> str:
    """The first module in the order of execution through which other values pass, and which; empty if there is none.

    Inside a chain values lie in slices. Those of parallel layers are known; others are passed over.
    """
    for step, whole in dense.steps.items():
        layer, mine = module.get_submodule(step.path), cut.steps.get(step)
        if mine is None:
            continue
        if mine.shape != whole.shape and isinstance(layer, ShardedLinear):
            placement = layer.weight_placement
            if isinstance(placement, Shard) and (placement.dim == 0) == ("output" in step.what):
                whole = _own(whole, Shard(whole.dim() - 1, placement.sizes, placement.copies), group)
        if mine.shape == whole.shape and (off := deviation(mine, whole)) > bounds.steps[step]:
            more = f" in call {step.call + 1}" if step.call else ""
            return (
                f"{_named(module, step.path)}, whose {step.what.removeprefix('gradient of its ')}"
                f"{' has a gradient that' if step.what.startswith('gradient') else ''}{more} is off by {off:.3g}, where"
                f" rounding explains {bounds.steps[step]:.3g}"
            )
    return ""


def _named(module: nn.Module, path: str) -> str:
    return f"{path} ({type(module.get_submodule(path)).__name__})" if path else "the model's own forward"


def _owner(result: str) -> str:
    """The path of the module whose parameter has this gradient."""
    return "" if result.startswith(("output", "gradient of input ")) else result.split()[-1].rpartition(".")[0]


def _placement(module: nn.Module, result: str) -> Placement | None:
    if result.startswith(("output", "gradient of input ")):
        return None
    placement: Placement | None = getattr(module.get_parameter(result.split()[-1]), "placement", None)
    return placement


def _own(whole: Tensor, placement: Placement | None, group: Group) -> Tensor:
    """This rank's part."""
    if not isinstance(placement, Shard):
        return whole
    held = placement.ranges(whole.shape[placement.dim], group.size, group.rank)
    return torch.cat([whole.narrow(placement.dim, part.start, len(part)) for part in held], placement.dim)


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _agreed_or_not(verdict: _Verdict, group: Group) -> tuple[list[float], str]:
    """What the ranks agree on; this rank's own reason where they cannot, as after one of them has raised alone."""
    try:
        return _agreed(verdict, group)
    except RuntimeError:
        if not verdict.reason:
            raise
        return [], f"{verdict.reason} (on rank {group.rank}; after that the ranks could not reach one another)"


def _agreed(verdict: _Verdict, group: Group) -> tuple[list[float], str]:
    """The ratios of all ranks, and what the first rank that has found a fault says of it."""
    process_group = group.require("verify=True", "the ranks tell one another what they found")
    text = f"{verdict.ratio} {verdict.reason}".encode()[:_ROOM].ljust(_ROOM)
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(c10d.device_of(process_group))
    everyone = mine.new_empty(group.size * _ROOM)
    c10d.all_gather_single(everyone, mine, group=process_group)
    texts = [bytes(row.tolist()).decode(errors="ignore").strip() for row in everyone.cpu().view(group.size, _ROOM)]
    ratios, reasons = zip(*(text.partition(" ")[::2] for text in texts), strict=True)
    found = [rank for rank, reason in enumerate(reasons) if reason]
    if not found:
        return [float(ratio) for ratio in ratios], ""
    return [], f"{reasons[found[0]]} (found on rank{'s' * (len(found) > 1)} {', '.join(map(str, found))})"
