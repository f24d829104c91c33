"""Procedures: repetition, copies and transformations of a layer, grad modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import (
    same_bits,
    same_numbers,
)
from spec.observation import Array, Observation, Step
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
