"""A layer's life: the values it starts with, and the state dict that it saves and loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spec.case import Case
from spec.clauses.compare import compare, same_bits, shown
from spec.contract import agreement
from spec.observation import Observation, Step
from spec.placements import Floats, local
from spec.register import Applies, Violation, clause
from spec.truth import Truth


def _procedure(name: str) -> Applies:
    return lambda case: case.procedure == name


def _drawn(seen: Sequence[Observation]) -> Iterator[tuple[Observation, Step]]:
    """Every step in which a rank drew initial values."""
    for observation in seen:
        for name in ("first", "reset", "meta"):
            if name in observation.steps:
                yield observation, observation.steps[name]


def _shard(case: Case, observation: Observation, step: Step, name: str, whole: Floats) -> Iterator[Violation]:
    expected = local(agreement(case).parameters[name], whole, case.P, observation.rank)
    yield from compare(observation.rank, step, name, step.parameters.get(name), expected)


@clause(
    "init.shards",
    "Initial weights are the shards of nn.Linear's",
    """Given equal random states, the weight is the rank's shard of the weight that the unsharded layer would draw, for
    every P: not the same values on every rank, and not scaled by the shard's own fan-in.""",
    _procedure("init"),
    origin="modelscope/ms-swift#7944, allenai/OLMo-core#307, allenai/OLMo-core#319, NVIDIA-NeMo/Automodel#1291",
)
def initial_shards(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation, step in _drawn(seen):
        yield from _shard(case, observation, step, "weight", observation.steps["dense"].parameters["weight"].numbers)


@clause(
    "init.bias-zero",
    "The bias starts at zero",
    "The bias is zero on every rank, after construction and after drawing again.",
    lambda case: case.procedure == "init" and case.bias,
    origin="NVIDIA-NeMo/Automodel#1291",
)
def initial_bias(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation, step in _drawn(seen):
        yield from _shard(case, observation, step, "bias", np.zeros(case.out_features))


@clause(
    "init.random-state",
    "Construction leaves the random state that nn.Linear leaves",
    "After drawing initial values the random state is the one that the unsharded layer leaves, on every rank.",
    _procedure("init"),
    origin="NVIDIA-NeMo/Automodel#1291",
)
def random_state(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation, step in _drawn(seen):
        wanted = observation.steps["dense"].facts.get("random_state")
        got = step.facts.get("random_state")
        if got is not None and got != wanted:
            what = "the random state afterwards is another"
            yield Violation(observation.rank, step.name, what, str(wanted), str(got))


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
