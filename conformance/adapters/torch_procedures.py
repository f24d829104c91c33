"""The procedures of the contract, run on a PyTorch layer; each returns its named steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from conformance.adapters.torch_build import Built, layer, named
from conformance.adapters.torch_compile import Compiled, unwatched
from conformance.adapters.torch_run import Run, as_tensor
from conformance.adapters.torch_session import TorchSession, raised
from conformance.adapters.watch import CollectiveLog, array
from spec import Array, Case, Inputs, Step, agreement, inputs
from spec.contract import needs_gradient
from spec.faults import Arguments, arguments
from spec.placements import local

Steps = list[Step]
Procedure = Callable[[TorchSession, Case, int], Steps]


def procedure_of(case: Case) -> Procedure:
    """The function that runs a case's procedure."""
    return _PROCEDURES.get(case.procedure, once)


def once(session: TorchSession, case: Case, group: int) -> Steps:
    """Forward and backward; at P = 1 the same with the unsharded layer."""
    data = inputs(case, group)
    steps = [session.step("first", case, data, session.build(case, data))]
    return [*steps, _dense(session, case, data)] if case.P == 1 and case.linear else steps


def _dense(session: TorchSession, case: Case, data: Inputs) -> Step:
    """The same values, with the same strides, through F.linear with whole parameters."""
    needed = needs_gradient(case)
    whole = {
        name: torch.nn.Parameter(as_tensor(value, case.dtype, session.device), name in needed)
        for name, value in data.parameters.items()
    }
    weight, bias = whole["weight"], None if case.skip_bias_add else whole.get("bias")
    return session.step("dense", case, data, Built(None, whole, {}), call=lambda x: F.linear(x, weight, bias))


def twice(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    return [session.step(name, case, data, built) for name in ("first", "second")]


def delay(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    session.log.delay = 0.002 * ((session.group.rank + case.seed) % case.P)
    return [first, session.step("second", case, data, built)]


def retain(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    run = session.start(case, data, session.build(case, data))
    run.forward()
    run.backward(retain_graph=True)
    first = run.step("first")
    run.backward()
    return [first, run.step("second")]


def accumulate(session: TorchSession, case: Case, group: int) -> Steps:
    built = session.build(case, inputs(case, group))
    data = [inputs(case, group, number) for number in range(2)]
    return [session.step(name, case, d, built, fresh=False) for name, d in zip(("first", "second"), data, strict=True)]


def interleave(session: TorchSession, case: Case, group: int) -> Steps:
    both: list[Run] = []
    for number in range(2):
        data = inputs(case, group, number)
        both.append(session.start(case, data, session.build(case, data), log=CollectiveLog(session.announce)))
    for run in both:
        run.forward()
    for run in both:
        run.backward()
    return [both[0].step("first"), both[1].step("second")]


def copied(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    module = copy.deepcopy(built.module) if case.procedure == "deepcopy" else pickle.loads(pickle.dumps(built.module))
    other = replace(built, module=module, parameters=named(session.adapter, case, module))
    return [first, session.step("second", case, data, other)]


def functional_call(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    own = dict(built.module.named_parameters())
    passed = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in own.items()}
    names = {id(parameter): name for name, parameter in own.items()}
    parameters = {role: passed[names[id(p)]] if p is not None else None for role, p in built.parameters.items()}

    def call(x: torch.Tensor) -> Any:
        return torch.func.functional_call(built.module, passed, (x,))

    return [first, session.step("second", case, data, replace(built, parameters=parameters), call=call)]


def checkpoint(session: TorchSession, case: Case, group: int) -> Steps:
    from torch.utils.checkpoint import checkpoint

    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    reentrant = case.procedure == "checkpoint-reentrant"

    def call(x: torch.Tensor) -> Any:
        biases: list[Any] = []

        def forward(x: torch.Tensor) -> torch.Tensor:
            result = session.adapter.call(built.module, x)
            biases[:] = result[1:] if isinstance(result, tuple) else []
            return result[0] if isinstance(result, tuple) else result

        # A parameter that leaves the reentrant variant as an output gets that very node as its history, and the
        # backward never ends; so a returned bias goes around it.
        output = checkpoint(forward, x, use_reentrant=reentrant)
        return (output, *biases) if biases else output

    return [first, session.step("second", case, data, built, call=call)]


def compiled(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    call = Compiled(lambda x: session.adapter.call(built.module, x), case.procedure == "compile-inductor")
    run = session.start(case, data, built, call=call)
    with unwatched(run):
        run.forward()
        run.backward()
    step = run.step("second", graphs=call.graphs)
    return [first, replace(step, collectives=call.collectives())]


def init(session: TorchSession, case: Case, group: int) -> Steps:
    asked = layer(case, session.group, arguments(case))
    adapter, handle = session.adapter, session.group.handle
    torch.manual_seed(case.seed)
    module: Any = adapter.build(asked, handle)
    steps = [_drawn(session, case, module, "first")]
    torch.manual_seed(case.seed)
    module.reset_parameters()
    steps.append(_drawn(session, case, module, "reset"))
    later: Any = adapter.build(replace(asked, device=torch.device("meta")), handle)
    later = later.to_empty(device=session.device)
    torch.manual_seed(case.seed)
    later.reset_parameters()
    steps.append(_drawn(session, case, later, "meta"))
    torch.manual_seed(case.seed)
    dense = torch.nn.Linear(case.in_features, case.out_features, case.bias, session.device, getattr(torch, case.dtype))
    weight = array(dense.weight)
    assert weight is not None
    return [*steps, Step("dense", {"weight": weight}, facts={"random_state": _random_state(session)})]


def _drawn(session: TorchSession, case: Case, module: Any, name: str) -> Step:
    return Step(name, _held(named(session.adapter, case, module)), facts={"random_state": _random_state(session)})


def _held(parameters: Mapping[str, torch.Tensor | None]) -> dict[str, Array]:
    return {name: bits for name, parameter in parameters.items() if (bits := array(parameter)) is not None}


def _random_state(session: TorchSession) -> str:
    device = session.device
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return blake2b(state.numpy().tobytes(), digest_size=8).hexdigest()


def state_dict(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    target = session.build(case, replace(data, weight=_negative(data.weight), bias=_negative(data.bias)))
    with session.log:
        saved = {name: v for name, v in built.module.state_dict().items() if isinstance(v, torch.Tensor)}
        target.module.load_state_dict({name: value.clone() for name, value in saved.items()}, strict=False)
        weight = next(name for name, value in saved.items() if value.dim() == 2)
        wrong = {
            "missing": {name: value for name, value in saved.items() if name != weight},
            "unexpected": {**saved, "no_such_key": saved[weight]},
            "shape": {**saved, weight: torch.cat([saved[weight], saved[weight]])},
        }
        loud = {kind: _refuses_state(target.module, state) for kind, state in wrong.items()}
    entered = session.log.take() if session.adapter.observable else None
    first = session.start(case, data, built).step("first", keys=sorted(saved))
    return [first, Step("loaded", _held(target.parameters), collectives=entered, facts={"loud": loud})]


def _negative(value: Any) -> Any:
    return None if value is None else -value


def _refuses_state(module: Any, state: Mapping[str, Any]) -> bool:
    try:
        module.load_state_dict(state)
    except Exception:
        return True
    return False


def refuse(session: TorchSession, case: Case, group: int) -> Steps:
    caught: Exception | None = None
    with session.log:
        try:
            _refused_call(session, case, arguments(case), inputs(case, group))
        except Exception as error:
            caught = error
    entered = session.log.take() if session.adapter.observable else None
    refused = Step("refused", collectives=entered, raised=raised(caught) if caught else None)
    total = torch.tensor([float(session.group.rank + 1)], device=session.device)
    dist.all_reduce(total, group=session.group.handle)
    return [refused, Step("after", output=array(total))]


def _refused_call(session: TorchSession, case: Case, args: Arguments, data: Inputs) -> None:
    """Build and call with the bad argument; the masters fit a size that is bad itself, where a tensor can."""
    weight = bias = None
    if case.linear:
        out, into = max(int(args.out_features), 0), max(int(args.in_features), 0)
        dtype = getattr(torch, args.weight_dtype or case.dtype)
        weight = torch.ones(args.weight_shape or (out, into), device=session.device).to(dtype)
        if case.bias:
            bias = torch.ones(args.bias_shape or (out,), device=session.device).to(getattr(torch, case.dtype))
    module = session.adapter.build(layer(case, session.group, args, weight, bias), session.group.handle)
    sizes = list(local(agreement(case).input.value, data.x, case.P, session.group.rank).shape)
    sizes[-1] += args.input_extra
    sizes[case.dim] += args.cut_extra
    x = torch.ones(sizes, device=session.device).to(getattr(torch, args.input_dtype or case.dtype))
    session.adapter.call(module, x)


_PROCEDURES: dict[str, Procedure] = {
    "twice": twice,
    "delay": delay,
    "retain": retain,
    "accumulate": accumulate,
    "interleave": interleave,
    "deepcopy": copied,
    "pickle": copied,
    "functional-call": functional_call,
    "checkpoint": checkpoint,
    "checkpoint-reentrant": checkpoint,
    "compile": compiled,
    "compile-inductor": compiled,
    "init": init,
    "state-dict": state_dict,
    "refuse": refuse,
}
