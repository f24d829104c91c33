"""Backward of the two layers: three gradients, on every rank; who gets none; and what a second backward adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import (
    compare,
    differentiates,
    expected_gradients,
    expected_local,
    gradient_placement,
    has_values,
    same_bits,
    shown,
    steps,
)
from spec.clauses.tensors import gradient
from spec.contract import runs_backward
from spec.observation import Observation
from spec.placements import Replicated
from spec.register import Applies, Violation, clause
from spec.truth import Truth


def _wants(layer: str, name: str, parallel: bool | None = None) -> Applies:
    return lambda case: (
        case.layer == layer
        and differentiates(case)
        and name in expected_gradients(case)
        and (parallel is None or case.input_is_parallel == parallel)
    )


def _enter(name: str, of: str, title: str, text: str, applies: Applies, origin: str) -> None:
    def check(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
        yield from gradient(case, truth, seen, of)

    clause(name, title, text, applies, origin=origin)(check)


_enter(
    "column.backward.input-grad-reduced",
    "x",
    "Column: the input's gradient is summed over ranks",
    """dX = sum_r G_r W_r, replicated: every rank's term enters once, and every rank holds the sum. With gather_output
    each rank's G_r is its slice of the replicated upstream gradient.""",
    _wants("column", "x"),
    "pytorch/torchtitan#1805, pytorch/torchtitan#3412, pytorch/pytorch#175867, pytorch/pytorch#172932",
)
_enter(
    "row.backward.input-grad",
    "x",
    "Row: the input's gradient is this rank's slice",
    "dX_r = G W_r, sharded as the input, every element right on every rank, without a collective.",
    _wants("row", "x", parallel=True),
    "huggingface/nanotron#172, pytorch/pytorch#58005",
)
_enter(
    "row.backward.input-grad-gathered",
    "x",
    "Row, replicated input: the gradient is gathered",
    "With input_is_parallel=False the input is replicated, and so is its gradient: G W, whole on every rank.",
    _wants("row", "x", parallel=False),
    "NVIDIA/Megatron-LM#1635",
)
for _layer, _formula, _origin in (
    (
        "column",
        "dW_r = G_r^T X over the flattened batch: rank r's rows, whole.",
        "NVIDIA/TransformerEngine#530, bigcode-project/Megatron-LM#35, modelscope/ms-swift#9947",
    ),
    (
        "row",
        "dW_r = G^T X_r over the flattened batch: rank r's columns, whole.",
        "NVIDIA/TransformerEngine#530, pytorch/pytorch#153595, pytorch/pytorch#58005",
    ),
):
    _enter(
        f"{_layer}.backward.weight-grad",
        "weight",
        f"{_layer.capitalize()}: the weight's gradient",
        _formula,
        _wants(_layer, "weight"),
        _origin,
    )
_enter(
    "column.backward.bias-grad",
    "bias",
    "Column: the bias gradient is this rank's slice",
    "db_r = the sum of G_r over the flattened batch.",
    _wants("column", "bias"),
    "",
)
_enter(
    "row.backward.bias-grad",
    "bias",
    "Row: the bias gradient is whole and equal on every rank",
    "db = the sum of G over the flattened batch, on every rank: neither divided nor multiplied by P.",
    _wants("row", "bias"),
    "pytorch/torchtitan#4332, pytorch/torchtitan#2106, awslabs/slapo#23, huggingface/text-generation-inference#1036",
)


@clause(
    "backward.replicas",
    "Replicated gradients are bit for bit the same",
    "A gradient of a replicated value has the same bits on every rank.",
    lambda case: case.P > 1 and has_values(case) and runs_backward(case),
    origin="bigscience-workshop/Megatron-DeepSpeed#271, PaddlePaddle/Paddle#50676",
)
def replicas(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for name in expected_gradients(case):
        if not isinstance(gradient_placement(case, name), Replicated):
            continue
        first = seen[0].steps["first"].gradients.get(name)
        for observation in seen[1:]:
            got = observation.steps["first"].gradients.get(name)
            if not same_bits(got, first):
                what = f"the bits of {name}'s gradient are not those of rank 0"
                yield Violation(observation.rank, "first", what, shown(first), shown(got))


@clause(
    "backward.dtype",
    "A gradient has its tensor's dtype",
    "Every gradient has the dtype of the tensor that it belongs to, also under autocast.",
    lambda case: has_values(case) and runs_backward(case),
)
def gradient_dtype(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        for name, array in step.gradients.items():
            if array is not None and array.dtype != case.dtype:
                yield Violation(rank, step.name, f"gradient of {name} has the wrong dtype", case.dtype, array.dtype)


@clause(
    "backward.frozen",
    "What is frozen gets no gradient",
    """A weight, bias or input that requires no gradient gets none, nor does a bias that is only returned; the others'
    gradients are right all the same.""",
    lambda case: (
        has_values(case) and (bool(case.frozen) or not runs_backward(case) or (case.skip_bias_add and case.bias))
    ),
    origin="NVIDIA/TransformerEngine#373, NVIDIA/Megatron-LM#548, modelscope/ms-swift#9790",
)
def frozen(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    wanted = expected_gradients(case)
    for rank, step in steps(seen):
        for name, array in step.gradients.items():
            if array is not None and name not in wanted:
                yield Violation(rank, step.name, f"{name} has a gradient", "None", str(array))


@clause(
    "backward.retain-graph",
    "Two backwards through one graph double the gradients",
    """Backward with retain_graph and backward again adds the same gradients once more: the first leaves what it saved
    as it was.""",
    lambda case: case.procedure == "retain" and differentiates(case),
)
def retain_graph(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        step = observation.steps["second"]
        for name in expected_gradients(case):
            whole = 2 * truth.runs[0].gradients[name]
            expected = expected_local(case, gradient_placement(case, name), whole, observation.rank)
            got = step.gradients.get(name)
            yield from compare(observation.rank, step, f"gradient of {name} after two backwards", got, expected)


def added_up(case: Case, truth: Truth, seen: Sequence[Observation], name: str) -> Iterator[Violation]:
    """The violations of a step after two backwards on different data: parameters' gradients are sums."""
    one, two = truth.runs
    for observation in seen:
        step = observation.steps[name]
        for tensor in expected_gradients(case):
            whole = two.gradients[tensor] if tensor == "x" else one.gradients[tensor] + two.gradients[tensor]
            expected = expected_local(case, gradient_placement(case, tensor), whole, observation.rank)
            got = step.gradients.get(tensor)
            yield from compare(observation.rank, step, f"gradient of {tensor} after two backwards", got, expected)


clause(
    "backward.accumulate",
    "Two backwards accumulate",
    """After a second forward and backward, on other data, every parameter's gradient is the sum of both; the inputs'
    gradients are each their own.""",
    lambda case: case.procedure == "accumulate" and differentiates(case),
    origin="pytorch/torchtitan#3412",
)(lambda case, truth, seen: added_up(case, truth, seen, "second"))
