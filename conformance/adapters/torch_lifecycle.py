"""The procedures about a layer's life and its refusals: initial values, state dicts, bad arguments."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.torch_build import layer, named
from conformance.adapters.torch_session import TorchSession
from conformance.adapters.watch import array
from spec import Array, Case, Inputs, Raised, Step, agreement, inputs
from spec.faults import Arguments, arguments
from spec.placements import local

Steps = list[Step]
_OURS = Path(__file__).parent


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
    return Step(
        name, _held(session, named(session.adapter, case, module)), facts={"random_state": _random_state(session)}
    )


def _held(session: TorchSession, parameters: Mapping[str, torch.Tensor | None]) -> dict[str, Array]:
    here = {name: session.adapter.local(p) for name, p in parameters.items() if p is not None}
    return {name: bits for name, parameter in here.items() if (bits := array(parameter)) is not None}


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
    # Not watched: to concatenate tensors of an implementation's own may communicate.
    weight = next(name for name, value in saved.items() if value.dim() == 2)
    wrong = {
        "missing": {name: value for name, value in saved.items() if name != weight},
        "unexpected": {**saved, "no_such_key": saved[weight]},
        "shape": {**saved, weight: torch.cat([saved[weight], saved[weight]])},
    }
    # Some implementations keep the row layer's bias on one rank alone.
    for bias in [name for name, value in saved.items() if value.dim() == 1]:
        wrong["missing bias"] = {name: value for name, value in saved.items() if name != bias}
        wrong["shape of the bias"] = {**saved, bias: torch.cat([saved[bias], saved[bias]])}
    with session.log:
        loud = {kind: _refuses_state(target.module, state) for kind, state in wrong.items()}
    entered = session.log.take() if session.adapter.observable else None
    first = session.start(case, data, built).step("first", keys=sorted(saved))
    return [first, Step("loaded", _held(session, target.parameters), collectives=entered, facts={"loud": loud})]


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
    refused = Step("refused", collectives=entered, raised=as_raised(caught) if caught else None)
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
    if args.input_extra or args.cut_extra or args.input_dtype:
        session.log.take()  # what is wrong comes with the call, so a layer may have cut its masters by a scatter
    sizes = list(local(agreement(case).input.value, data.x, case.P, session.group.rank).shape)
    sizes[-1] += args.input_extra
    sizes[case.dim] += args.cut_extra
    x = torch.ones(sizes, device=session.device).to(getattr(torch, args.input_dtype or case.dtype))
    session.adapter.call(module, x)


def as_raised(error: BaseException) -> Raised:
    """An exception as data."""
    types = tuple(cls.__name__ for cls in type(error).__mro__ if cls is not object)
    stack = traceback.extract_tb(error.__traceback__)
    # The suite's own frames say nothing to whoever looks for the fault in a layer.
    theirs = [frame for frame in stack if _OURS not in Path(frame.filename).parents] or list(stack)
    lines = [*traceback.format_list(theirs), *traceback.format_exception_only(error)]
    return Raised(types, str(error), "".join(lines))
