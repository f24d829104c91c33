"""A PyTorch implementation on one rank: builds the layer of a case and runs the case's procedure on it."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from conformance.adapters import torch_compile
from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer, TorchAdapter
from conformance.adapters.torch_run import Owned, Run, as_tensor, owned
from conformance.adapters.watch import CollectiveLog, array
from spec import Case, Inputs, Observation, Raised, Step, agreement, inputs
from spec.contract import needs_gradient
from spec.faults import Arguments, arguments
from spec.placements import local

Steps = list[Step]


class TorchSession:
    """Runs cases on one rank of one group."""

    def __init__(
        self, adapter: TorchAdapter, group: Group, announce: Callable[[str], None] = lambda line: None
    ) -> None:
        self.adapter, self.group = adapter, group
        self.device: torch.device = group.device or torch.device("cpu")
        self.announce = announce
        self._log = CollectiveLog(announce)
        adapter.set_up(group)

    def close(self) -> None:
        self.adapter.tear_down()

    def run(self, case: Case, group: int) -> Sequence[Observation]:
        """What this rank saw of the case. An exception that the procedure does not expect becomes part of it."""
        self._log = CollectiveLog(self.announce)
        procedure = _PROCEDURES.get(case.procedure, TorchSession._once)
        try:
            steps = procedure(self, case, group)
        except Exception as error:
            return (Observation(self.group.rank, {}, "raised", raised=_raised(error)),)
        marked = {step.name: _marked(step, self.group.global_rank) for step in steps}
        return (Observation(self.group.rank, marked),)

    # Building

    def _module(self, case: Case, data: Inputs, **changes: Any) -> tuple[Any, dict[str, Owned]]:
        """The layer of a case, holding its shards of the masters, and those masters."""
        masters: dict[str, Owned] = {}
        if data.weight is not None:
            masters["master_weight"] = owned(data.weight, case.dtype, self.device)
        if data.bias is not None:
            masters["master_bias"] = owned(data.bias, case.dtype, self.device)
        layer = self._layer(
            case, arguments(case), **{name.removeprefix("master_"): m.tensor for name, m in masters.items()}, **changes
        )
        module = self.adapter.build(layer, self.group.handle)
        for name, parameter in self._parameters(case, module).items():
            if parameter is not None and name not in needs_gradient(case):
                parameter.requires_grad_(False)
        return module, masters

    def _layer(self, case: Case, args: Arguments, weight: Any = None, bias: Any = None, **changes: Any) -> Layer:
        fields: dict[str, Any] = {
            "kind": case.layer,
            "in_features": args.in_features,
            "out_features": args.out_features,
            "weight": weight,
            "bias": bias,
            "wants_bias": case.bias,
            "dtype": getattr(torch, case.dtype),
            "device": self.device,
            "rank": self.group.rank,
            "size": self.group.size,
            "flags": args.flags,
            "dim": args.dim if args.dim is not None else case.dim,
        }
        return Layer(**(fields | changes))

    def _parameters(self, case: Case, module: Any) -> dict[str, torch.Tensor | None]:
        return dict(self.adapter.parameters(module)) if case.linear else {}

    def _run(self, case: Case, data: Inputs, module: Any, masters: Mapping[str, Owned], **changes: Any) -> Run:
        fields: dict[str, Any] = {
            "log": self._log,
            "call": lambda x: self.adapter.call(module, x),
            "parameters": self._parameters(case, module) if module is not None else {},
            "masters": dict(masters),
            "observable": self.adapter.observable,
        }
        return Run(case, self.group.rank, self.device, data=data, **(fields | changes))

    # Procedures: each returns its steps

    def _once(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        run = self._run(case, data, module, masters)
        run.forward()
        run.backward()
        steps = [run.step("first")]
        if case.P == 1 and case.linear:
            steps.append(self._dense(case, data))
        return steps

    def _dense(self, case: Case, data: Inputs) -> Step:
        """The same values through F.linear with whole parameters."""
        assert data.weight is not None
        weight = torch.nn.Parameter(as_tensor(data.weight, case.dtype, self.device), "weight" in needs_gradient(case))
        bias = None
        if data.bias is not None:
            bias = torch.nn.Parameter(as_tensor(data.bias, case.dtype, self.device), "bias" in needs_gradient(case))
        added = None if case.skip_bias_add else bias
        run = self._run(
            case, data, None, {}, call=lambda x: F.linear(x, weight, added), parameters={"weight": weight, "bias": bias}
        )
        run.forward()
        run.backward()
        return run.step("dense")

    def _twice(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        return [self._fresh(case, data, module, masters, name) for name in ("first", "second")]

    def _fresh(
        self, case: Case, data: Inputs, module: Any, masters: Mapping[str, Owned], name: str, **changes: Any
    ) -> Step:
        """One forward and backward with fresh gradients."""
        run = self._run(case, data, module, masters, **changes)
        for parameter in run.parameters.values():
            if parameter is not None:
                parameter.grad = None
        run.forward()
        run.backward()
        return run.step(name)

    def _delay(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        first = self._fresh(case, data, module, masters, "first")
        self._log.delay = 0.004 * ((self.group.rank + case.seed) % case.P)
        return [first, self._fresh(case, data, module, masters, "second")]

    def _accumulate(self, case: Case, group: int) -> Steps:
        module, masters = self._module(case, inputs(case, group))
        steps: Steps = []
        for number, name in enumerate(("first", "second")):
            run = self._run(case, inputs(case, group, number), module, masters)
            run.forward()
            run.backward()
            steps.append(run.step(name))
        return steps

    def _interleave(self, case: Case, group: int) -> Steps:
        both: list[Run] = []
        for number in range(2):
            data = inputs(case, group, number)
            both.append(self._run(case, data, *self._module(case, data), log=CollectiveLog(self.announce)))
        for run in both:
            run.forward()
        for run in both:
            run.backward()
        return [both[0].step("first"), both[1].step("second")]

    def _copied(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        first = self._fresh(case, data, module, masters, "first")
        other = copy.deepcopy(module) if case.procedure == "deepcopy" else pickle.loads(pickle.dumps(module))
        return [first, self._fresh(case, data, other, masters, "second")]

    def _functional_call(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        first = self._fresh(case, data, module, masters, "first")
        passed = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in module.named_parameters()}
        names = {id(p): n for n, p in module.named_parameters()}
        own = self._parameters(case, module)
        parameters = {role: passed[names[id(p)]] if p is not None else None for role, p in own.items()}

        def call(x: torch.Tensor) -> Any:
            return torch.func.functional_call(module, passed, (x,))

        return [first, self._fresh(case, data, module, masters, "second", call=call, parameters=parameters)]

    def _checkpoint(self, case: Case, group: int) -> Steps:
        from torch.utils.checkpoint import checkpoint

        data = inputs(case, group)
        module, masters = self._module(case, data)
        first = self._fresh(case, data, module, masters, "first")
        reentrant = case.procedure == "checkpoint-reentrant"

        def call(x: torch.Tensor) -> Any:
            biases: list[Any] = []

            def forward(x: torch.Tensor) -> torch.Tensor:
                result = self.adapter.call(module, x)
                biases[:] = result[1:] if isinstance(result, tuple) else []
                return result[0] if isinstance(result, tuple) else result

            # A parameter that leaves the reentrant variant as an output gets that very node as its history, and the
            # backward never ends; so a returned bias goes around it.
            output = checkpoint(forward, x, use_reentrant=reentrant)
            return (output, *biases) if biases else output

        return [first, self._fresh(case, data, module, masters, "second", call=call)]

    def _compile(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        first = self._fresh(case, data, module, masters, "first")
        compiled = torch_compile.Compiled(lambda x: self.adapter.call(module, x), case.procedure == "compile-inductor")
        run = self._run(case, data, module, masters, call=compiled)
        for parameter in run.parameters.values():
            if parameter is not None:
                parameter.grad = None
        with torch_compile.unwatched(run):
            run.forward()
            run.backward()
        step = run.step("second", graphs=compiled.graphs)
        return [first, _with_collectives(step, compiled.collectives())]

    def _init(self, case: Case, group: int) -> Steps:
        module = dense = None
        steps: Steps = []
        layer = self._layer(case, arguments(case))
        torch.manual_seed(case.seed)
        module = self.adapter.build(layer, self.group.handle)
        steps.append(self._held(case, module, "first"))
        torch.manual_seed(case.seed)
        module.reset_parameters()
        steps.append(self._held(case, module, "reset"))
        later = self.adapter.build(self._layer(case, arguments(case), device=torch.device("meta")), self.group.handle)
        later = later.to_empty(device=self.device)
        torch.manual_seed(case.seed)
        later.reset_parameters()
        steps.append(self._held(case, later, "meta"))
        torch.manual_seed(case.seed)
        dense = torch.nn.Linear(case.in_features, case.out_features, case.bias, self.device, getattr(torch, case.dtype))
        steps.append(Step("dense", {"weight": _bits(dense.weight)}, facts={"random_state": self._random_state()}))
        return steps

    def _held(self, case: Case, module: Any, name: str) -> Step:
        held = {k: _bits(v) for k, v in self._parameters(case, module).items() if v is not None}
        return Step(name, held, facts={"random_state": self._random_state()})

    def _random_state(self) -> str:
        import hashlib

        state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        return hashlib.blake2b(state.numpy().tobytes(), digest_size=8).hexdigest()

    def _state_dict(self, case: Case, group: int) -> Steps:
        data = inputs(case, group)
        module, masters = self._module(case, data)
        saved = module.state_dict()
        other = Inputs(
            data.x, -data.weight if data.weight is not None else None, None if data.bias is None else -data.bias, data.g
        )
        target, _ = self._module(case, other)
        target.load_state_dict(
            {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in saved.items()}
        )
        weight = next(name for name, value in saved.items() if isinstance(value, torch.Tensor) and value.dim() == 2)
        wrong = {
            "missing": {name: value for name, value in saved.items() if name != weight},
            "unexpected": {**saved, "no_such_key": saved[weight]},
            "shape": {**saved, weight: torch.cat([saved[weight], saved[weight]])},
        }
        keys = sorted(name for name, value in saved.items() if isinstance(value, torch.Tensor))
        run = self._run(case, data, module, masters)
        first = run.step("first", keys=keys)
        loaded = {k: _bits(v) for k, v in self._parameters(case, target).items() if v is not None}
        return [
            first,
            Step("loaded", loaded, facts={"loud": {kind: _raises(target, state) for kind, state in wrong.items()}}),
        ]

    def _refuse(self, case: Case, group: int) -> Steps:
        args, data = arguments(case), inputs(case, group)
        caught: Exception | None = None
        with self._log:
            try:
                self._refused_call(case, args, data)
            except Exception as error:
                caught = error
        entered = self._log.take() if self.adapter.observable else None
        refused = Step("refused", collectives=entered, raised=_raised(caught) if caught else None)
        total = torch.tensor([float(self.group.rank + 1)], device=self.device)
        dist.all_reduce(total, group=self.group.handle)
        return [refused, Step("after", output=array(total))]

    def _refused_call(self, case: Case, args: Arguments, data: Inputs) -> None:
        weight = bias = None
        if case.linear:
            whole = data.weight if data.weight is not None else None
            shape = args.weight_shape or (_size(args.out_features), _size(args.in_features))
            del whole
            dtype = getattr(torch, args.weight_dtype or case.dtype)
            weight = torch.ones(shape, device=self.device).to(dtype)
            bias_shape = args.bias_shape or (_size(args.out_features),)
            bias = torch.ones(bias_shape, dtype=getattr(torch, case.dtype), device=self.device) if case.bias else None
        module = self.adapter.build(self._layer(case, args, weight, bias), self.group.handle)
        x = local(agreement(case).input.value, data.x, case.P, self.group.rank)
        tensor = torch.ones(_spoiled(x.shape, args, case), device=self.device).to(
            getattr(torch, args.input_dtype or case.dtype)
        )
        self.adapter.call(module, tensor)


def _size(value: Any) -> int:
    """A size that a tensor can have, for masters of a layer whose own size is bad."""
    return max(int(value), 0)


def _spoiled(shape: tuple[int, ...], args: Arguments, case: Case) -> tuple[int, ...]:
    sizes = list(shape)
    if args.input_extra:
        sizes[-1] += args.input_extra
    if args.cut_extra:
        sizes[case.dim] += args.cut_extra
    return tuple(sizes)


def _raises(module: Any, state: Mapping[str, Any]) -> bool:
    try:
        module.load_state_dict(state)
    except Exception:
        return True
    return False


def _bits(tensor: torch.Tensor) -> Any:
    return array(tensor)


def _raised(error: BaseException) -> Raised:
    types = tuple(cls.__name__ for cls in type(error).__mro__ if cls is not object)
    return Raised(types, str(error), "".join(traceback.format_exception(error)))


def _marked(step: Step, global_rank: int) -> Step:
    return Step(**{**vars(step), "facts": {**step.facts, "global_rank": global_rank}})


def _with_collectives(step: Step, collectives: Any) -> Step:
    return Step(**{**vars(step), "collectives": collectives})


_PROCEDURES: dict[str, Callable[[TorchSession, Case, int], Steps]] = {
    "twice": TorchSession._twice,
    "delay": TorchSession._delay,
    "accumulate": TorchSession._accumulate,
    "interleave": TorchSession._interleave,
    "deepcopy": TorchSession._copied,
    "pickle": TorchSession._copied,
    "functional-call": TorchSession._functional_call,
    "checkpoint": TorchSession._checkpoint,
    "checkpoint-reentrant": TorchSession._checkpoint,
    "compile": TorchSession._compile,
    "compile-inductor": TorchSession._compile,
    "init": TorchSession._init,
    "state-dict": TorchSession._state_dict,
    "refuse": TorchSession._refuse,
}
