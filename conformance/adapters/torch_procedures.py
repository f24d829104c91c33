"""The procedures of the contract, run on a PyTorch layer; each returns its named steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from conformance.adapters.torch_build import Built, named
from conformance.adapters.torch_compile import Compiled, unwatched
from conformance.adapters.torch_lifecycle import as_raised, init, refuse, state_dict
from conformance.adapters.torch_run import Run, as_tensor, owner
from conformance.adapters.torch_session import TorchSession
from spec import Case, Inputs, Observation, Step, inputs
from spec.contract import needs_gradient

Steps = list[Step]
Procedure = Callable[[TorchSession, Case, int], Steps]


def once(session: TorchSession, case: Case, group: int) -> Steps:
    """Forward and backward; at P = 1 the same with the unsharded layer."""
    data = inputs(case, group)
    built = session.build(case, data)
    if case.procedure in ("no-grad", "inference") and isinstance(built.module, torch.nn.Module):
        built.module.eval()
    steps = [session.step("first", case, data, built)]
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


def pipeline(session: TorchSession, case: Case, group: int) -> Steps:
    alone = once(session, case, group)[0]
    data = [inputs(case, group, number) for number in range(2)]
    built = session.build(case, data[0])
    both = [session.start(case, d, built, log=session.log.another()) for d in data]
    for run in both:
        run.forward()
    both[0].backward()
    a = both[0].step("a")
    both[1].backward()
    return [alone, a, both[1].step("b")]


def update(session: TorchSession, case: Case, group: int) -> Steps:
    before, after = (inputs(case, group, number) for number in range(2))
    built, other = session.build(case, before), session.build(case, after)
    first = session.step("first", case, before, built)
    with torch.no_grad():
        for name, parameter in built.parameters.items():
            new = other.parameters[name]
            if parameter is not None and new is not None:
                parameter.copy_(new)
    return [first, session.step("second", case, after, replace(built, masters={}))]


def interleave(session: TorchSession, case: Case, group: int) -> Steps:
    both: list[Run] = []
    for number in range(2):
        data = inputs(case, group, number)
        both.append(session.start(case, data, session.build(case, data), log=session.log.another()))
    alone = once(session, case, group)[0]
    for run in both:
        run.forward()
    for run in both:
        run.backward()
    return [alone, both[0].step("a"), both[1].step("b")]


def copied(session: TorchSession, case: Case, group: int) -> Steps:
    data = inputs(case, group)
    built = session.build(case, data)
    first = session.step("first", case, data, built)
    module = copy.deepcopy(built.module) if case.procedure == "deepcopy" else pickle.loads(pickle.dumps(built.module))
    # The original's parameters stand with the masters: a copy must own its storage.
    local = session.adapter.local
    originals = {f"master_original_{name}": owner(local(p)) for name, p in built.parameters.items() if p is not None}
    parameters = named(session.adapter, case, module)
    other = Built(module, parameters, {**built.masters, **originals})
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
    try:
        with unwatched(run):
            run.forward()
            run.backward()
    except torch._dynamo.exc.TorchDynamoException:
        return [first, Step("second", facts={"graphs": 0})]
    step = run.step("second", graphs=call.graphs)
    return [first, replace(step, collectives=call.collectives())]


_PROCEDURES: dict[str, Procedure] = {
    "twice": twice,
    "delay": delay,
    "retain": retain,
    "accumulate": accumulate,
    "pipeline": pipeline,
    "update": update,
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


class Procedures:
    """The session of `conformance.adapters.protocol`: runs cases and hands over what this rank saw."""

    def __init__(self, session: TorchSession) -> None:
        self.session = session

    def run(self, case: Case, group: int) -> Sequence[Observation]:
        """What this rank saw of the case. An exception that the procedure does not expect becomes part of it."""
        session = self.session
        session.begin()
        try:
            steps = _PROCEDURES.get(case.procedure, once)(session, case, group)
        except Exception as error:
            return (Observation(session.group.rank, {}, "raised", raised=as_raised(error)),)
        return (Observation(session.group.rank, {step.name: self._marked(step) for step in steps}),)

    def close(self) -> None:
        """Undo what opening set up."""
        self.session.close()

    def _marked(self, step: Step) -> Step:
        return replace(step, facts={**step.facts, "global_rank": self.session.group.global_rank})
