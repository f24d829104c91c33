"""Procedures: repetition, grad modes, initial values, state dicts, copies and transformations of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spec.case import Case
from spec.clauses.backward import added_up
from spec.clauses.compare import (
    compare,
    exact,
    expected_gradients,
    expected_local,
    gradient_placement,
    same_bits,
    same_numbers,
    shown,
    true_output,
)
from spec.contract import agreement
from spec.observation import Array, Observation, Step
from spec.placements import Sharded, local
from spec.register import Applies, Check, Violation, clause
from spec.truth import Truth

Same = Callable[[Array | None, Array | None], bool]


def _procedure(*names: str) -> Applies:
    return lambda case: case.procedure in names


def _differing(one: Step, other: Step, same: Same) -> Iterator[str]:
    if not same(one.output, other.output):
        yield "output"
    for name, array in one.gradients.items():
        if not same(array, other.gradients.get(name)):
            yield f"gradient of {name}"


def _second_as_first(same: Same) -> Check:
    def check(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
        for observation in seen:
            first, second = observation.steps["first"], observation.steps["second"]
            for name in _differing(first, second, same):
                yield Violation(
                    observation.rank, "second", f"{name} is not that of the first run", *_sides(name, first, second)
                )

    return check


def _sides(name: str, first: Step, second: Step) -> tuple[str, str]:
    def of(step: Step) -> str:
        array = step.output if name == "output" else step.gradients.get(name.removeprefix("gradient of "))
        return str(array.numbers.tolist())[:300] if array is not None else "None"

    return of(first), of(second)


clause(
    "repeat.same-bits",
    "The same case twice gives the same bits",
    "The same layer on the same data gives bit for bit the same output and gradients.",
    _procedure("twice"),
    origin="NVIDIA-NeMo/RL#1227",
)(_second_as_first(same_bits))
clause(
    "repeat.delayed",
    "Late ranks change nothing",
    "Output and gradients keep their bits when ranks reach their collectives at different times.",
    _procedure("delay"),
    origin="tenstorrent/tt-metal#46580",
)(_second_as_first(same_bits))
for _name, _title in (
    ("deepcopy", "A deep copy behaves as its original"),
    ("pickle", "A pickled layer behaves as its original"),
    ("functional-call", "functional_call gives what the layer gives"),
    ("checkpoint", "Activation checkpointing changes nothing"),
    ("checkpoint-reentrant", "Reentrant checkpointing changes nothing"),
):
    clause(
        f"transforms.{_name}",
        _title,
        f"Under {_name}, output and gradients have the bits of a plain call.",
        _procedure(_name),
    )(_second_as_first(same_bits))


@clause(
    "transforms.fullgraph",
    "A layer compiles as one graph",
    "A compiled forward needs one graph, with its collectives in it.",
    _procedure("compile", "compile-inductor"),
)
def fullgraph(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        graphs = observation.steps["second"].facts.get("graphs")
        if graphs is not None and graphs != 1:
            yield Violation(
                observation.rank, "second", "the forward was not compiled as one graph", "1 graph", str(graphs)
            )


clause(
    "transforms.compile",
    "A compiled layer gives what the layer gives",
    "Compiled as one graph, output and gradients equal those of a plain call.",
    _procedure("compile", "compile-inductor"),
    origin="vllm-project/vllm#39844, pytorch/pytorch#141830",
)(_second_as_first(same_numbers))


def _as_run(case: Case, truth: Truth, seen: Sequence[Observation], name: str, run: int) -> Iterator[Violation]:
    """The violations of a step that must show a run's own values."""
    values = truth.runs[run]
    for observation in seen:
        step = observation.steps[name]
        yield from compare(
            observation.rank, step, "output", step.output, true_output(case, values.output, observation.rank)
        )
        for tensor in sorted(expected_gradients(case)):
            placement = gradient_placement(case, tensor)
            expected = expected_local(case, placement, values.gradients[tensor], observation.rank)
            yield from compare(observation.rank, step, f"gradient of {tensor}", step.gradients.get(tensor), expected)


@clause(
    "instances.pipelined",
    "Two forwards of one layer, then both backwards",
    """Forward a, forward b, backward a, backward b of one layer: each backward uses what its own forward saved, the
    parameters' gradients add up, and a's output stays what it was.""",
    lambda case: case.procedure == "pipeline" and exact(case),
    origin="pytorch/pytorch#131264",
)
def pipelined(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "a", 0)
    yield from added_up(case, truth, seen, "b")


@clause(
    "instances.current-parameters",
    "A layer computes with its parameters as they are",
    """After its parameters were overwritten in place, as an optimizer or a loader does, a layer computes with the new
    ones: nothing of the old is kept.""",
    lambda case: case.procedure == "update" and exact(case),
    origin="vllm-project/vllm#48025",
)
def current_parameters(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "second", 1)


@clause(
    "instances.independent",
    "Two layers do not touch each other",
    "Forward a, forward b, backward a, backward b gives each layer what it gives alone: calls share no state.",
    lambda case: case.procedure == "interleave" and exact(case),
    origin="pytorch/pytorch#131264, hpcaitech/ColossalAI#579",
)
def independent(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from _as_run(case, truth, seen, "a", 0)
    yield from _as_run(case, truth, seen, "b", 1)


@clause(
    "modes.no-grad",
    "no_grad leaves no graph",
    "Under no_grad the output is right and requires no gradient.",
    _procedure("no-grad"),
)
def no_grad(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        if observation.steps["first"].facts.get("requires_grad"):
            yield Violation(observation.rank, "first", "the output requires a gradient", "False", "True")


@clause(
    "modes.inference",
    "inference_mode gives inference tensors",
    "Under inference_mode the output is right, requires no gradient and is an inference tensor.",
    _procedure("inference"),
)
def inference(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        facts = observation.steps["first"].facts
        # copy and scatter may return views of an input that is none.
        plain = facts.get("inference") is False and case.has_parameters
        if facts.get("requires_grad") or plain:
            got = "a plain tensor" + " that requires a gradient" * bool(facts.get("requires_grad"))
            yield Violation(observation.rank, "first", "the output", "an inference tensor", got)


@clause(
    "init.shards",
    "Initial weights are the shards of nn.Linear's",
    """Given equal random states, the weight is the rank's shard of the weight that the unsharded layer would draw, for
    every P: not the same values on every rank, and not scaled by the shard's own fan-in.""",
    _procedure("init"),
    origin="modelscope/ms-swift#7944, allenai/OLMo-core#307, allenai/OLMo-core#319, NVIDIA-NeMo/Automodel#1291",
)
def initial_shards(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    placement = agreement(case).parameters["weight"]
    assert isinstance(placement, Sharded)
    for observation in seen:
        dense = observation.steps["dense"].parameters["weight"].numbers
        for name in ("first", "reset", "meta"):
            step = observation.steps.get(name)
            if step is not None:
                yield from compare(
                    observation.rank,
                    step,
                    "weight",
                    step.parameters.get("weight"),
                    local(placement, dense, case.P, observation.rank),
                )


@clause(
    "init.bias-zero",
    "The bias starts at zero",
    "The bias is zero on every rank, after construction and after drawing again.",
    lambda case: case.procedure == "init" and case.bias,
    origin="NVIDIA-NeMo/Automodel#1291",
)
def initial_bias(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    placement = agreement(case).parameters["bias"]
    zeros = np.zeros(case.out_features)
    for observation in seen:
        for name in ("first", "reset", "meta"):
            step = observation.steps.get(name)
            if step is not None:
                yield from compare(
                    observation.rank,
                    step,
                    "bias",
                    step.parameters.get("bias"),
                    local(placement, zeros, case.P, observation.rank),
                )


@clause(
    "init.random-state",
    "Construction leaves the random state that nn.Linear leaves",
    "After drawing initial values the random state is the one that the unsharded layer leaves, on every rank.",
    _procedure("init"),
    origin="NVIDIA-NeMo/Automodel#1291",
)
def random_state(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        wanted = observation.steps["dense"].facts.get("random_state")
        for name in ("first", "reset", "meta"):
            step = observation.steps.get(name)
            got = step.facts.get("random_state") if step else None
            if got is not None and got != wanted:
                yield Violation(observation.rank, name, "the random state afterwards is another", str(wanted), str(got))


@clause(
    "state.keys",
    "The state dict has nn.Linear's keys",
    "The keys are weight and, with a bias, bias, on every rank.",
    lambda case: case.procedure == "state-dict",
    origin="huggingface/text-generation-inference#1036",
)
def state_keys(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    wanted = ["bias", "weight"] if case.bias else ["weight"]
    for observation in seen:
        keys = observation.steps["first"].facts.get("keys")
        if keys is not None and list(keys) != wanted:
            yield Violation(observation.rank, "first", "the state dict's keys", str(wanted), str(keys))


@clause(
    "state.round-trip",
    "A state dict round-trips bit for bit",
    "A layer that loads what another saved holds the same bits.",
    _procedure("state-dict"),
    origin="PaddlePaddle/FastDeploy#5247, vllm-project/vllm#48025",
)
def round_trip(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        saved, loaded = observation.steps["first"], observation.steps["loaded"]
        for name, array in saved.parameters.items():
            if not same_bits(array, loaded.parameters.get(name)):
                got = loaded.parameters.get(name)
                yield Violation(observation.rank, "loaded", f"{name} changed", shown(array), shown(got))


@clause(
    "state.local",
    "Saving and loading communicate nothing",
    "A rank saves and loads its own shards without a collective, so that one rank may do it alone.",
    _procedure("state-dict"),
    level="SHOULD",
    origin="huggingface/transformers#48569",
)
def local_state(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        entered = observation.steps["loaded"].collectives
        if entered:
            yield Violation(observation.rank, "loaded", "entered a collective", "none", "; ".join(map(str, entered)))


@clause(
    "state.loud",
    "A state dict that does not fit is refused",
    "Loading a state dict with a missing key, an unexpected key or a wrong shape raises.",
    _procedure("state-dict"),
    origin="ServiceNow/Fast-LLM#436, areal-project/AReaL#1468",
)
def loud(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        for kind, raised in observation.steps["loaded"].facts.get("loud", {}).items():
            if not raised:
                yield Violation(
                    observation.rank,
                    "loaded",
                    f"loading a state dict with a {kind} fault was silent",
                    "an exception",
                    "none",
                )
