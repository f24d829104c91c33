"""The four differentiable functions: each one's value, its gradient, and the adjoint law between the two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spec.case import FUNCTIONS, Case
from spec.clauses.compare import compare, differentiates, exact, expected_local, steps, true_output
from spec.contract import agreement
from spec.observation import Observation
from spec.placements import Edge, Floats, Replicated, local
from spec.register import Applies, Violation, clause
from spec.truth import Truth

_FORWARD = {
    "copy": ("copy passes its value on", "copy: R/R to R/P. The value passes unchanged.", "pytorch/torchtitan#1805"),
    "reduce": (
        "reduce gives the sum on every rank",
        "reduce: P/R to R/R. Every rank holds the sum of the ranks' terms.",
        "microsoft/ltp-megatron-lm#68, pytorch/tutorials#1039, NVIDIA/Megatron-LM#5337, NovaSky-AI/SkyRL#1886",
    ),
    "gather": (
        "gather gives the slices in rank order",
        "gather(dim): S/S to R/R. Every rank holds the ranks' slices along dim, in the order of the ranks.",
        "NVIDIA/TransformerEngine#530, ndif-team/nnsight#719, pytorch/pytorch#159548, tenstorrent/tt-metal#19433",
    ),
    "scatter": (
        "scatter gives the rank's own slice",
        "scatter(dim): R/R to S/S. Rank r holds the r-th of P equal slices along dim.",
        "",
    ),
}
_BACKWARD = {
    "copy": (
        "copy's backward sums the ranks' gradients",
        "The upstream gradient of copy is partial; its backward is one all-reduce, and every rank holds the sum.",
        "NVIDIA/Megatron-LM#559, pytorch/torchtitan#1805, deepspeedai/DeepSpeed#8204, horovod/horovod#2654",
    ),
    "reduce": (
        "reduce's backward passes the gradient on",
        "The upstream gradient of reduce is replicated; its backward is the identity, not a second all-reduce.",
        "microsoft/ltp-megatron-lm#68, pytorch/xla#2989, horovod/horovod#2654, pytorch/pytorch#58005",
    ),
    "gather": (
        "gather's backward is a slice",
        """The loss downstream of a gathered value is computed alike on every rank, so its gradient arrives replicated
        and the backward of gather is the rank's own slice. A backward that sums makes it P times too large.""",
        "pytorch/pytorch#120386, modelscope/ms-swift#9947",
    ),
    "scatter": (
        "scatter's backward gathers",
        "The upstream gradient of scatter is sharded; its backward gathers the slices, in rank order, on every rank.",
        "NVIDIA/Megatron-LM#1635",
    ),
}


def _is(name: str, also: Applies) -> Applies:
    return lambda case: case.layer == name and also(case)


def _forward(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        yield from compare(rank, step, "output", step.output, true_output(case, truth.runs[0].output, rank))


def _backward(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    placement = agreement(case).input.gradient
    for rank, step in steps(seen):
        expected = expected_local(case, placement, truth.runs[0].gradients["x"], rank)
        yield from compare(rank, step, "gradient of x", step.gradients.get("x"), expected)


def _inner(case: Case, edge: Edge, mine: Sequence[Floats], others: Sequence[Floats]) -> float:
    """<a, b> of two values from what the ranks hold: a replicated pair counts once, all else on every rank."""
    total = sum(float(np.sum(a * b)) for a, b in zip(mine, others, strict=True))
    return total / case.P if edge == Edge(Replicated(), Replicated()) else total


def _adjoint(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    """Both sides from what the ranks saw: <C u, v> with their outputs, <u, C^T v> with their gradients."""
    terms, data = agreement(case), truth.data[0]
    outputs = [s.steps["first"].output for s in seen]
    gradients = [s.steps["first"].gradients.get("x") for s in seen]
    u = [local(terms.input.value, data.x, case.P, r) for r in range(case.P)]
    v = [local(terms.output.gradient, data.g, case.P, r) for r in range(case.P)]
    cu = [array.numbers for array, like in zip(outputs, v, strict=True) if array and array.shape == like.shape]
    ctv = [array.numbers for array, like in zip(gradients, u, strict=True) if array and array.shape == like.shape]
    if len(cu) < case.P or len(ctv) < case.P:
        return
    left, right = _inner(case, terms.output, cu, v), _inner(case, terms.input, u, ctv)
    if left != right:
        yield Violation(None, "first", "<C u, v> and <u, C^T v> differ", str(left), str(right))


for _name in FUNCTIONS:
    _title, _text, _origin = _FORWARD[_name]
    clause(f"{_name}.forward", _title, _text, _is(_name, exact), origin=_origin)(_forward)
for _name in FUNCTIONS:
    _title, _text, _origin = _BACKWARD[_name]
    clause(f"{_name}.backward", _title, _text, _is(_name, differentiates), origin=_origin)(_backward)
for _name in FUNCTIONS:
    clause(
        f"{_name}.adjoint",
        f"{_name} and its backward are adjoint",
        """<C u, v> = <u, C^T v> for rank-distinct u and v, each inner product taken of the values under their
        declared placements.""",
        _is(_name, lambda case: differentiates(case) and case.procedure == "run"),
        origin="pytorch/pytorch#172932, pytorch/pytorch#120386, jax-ml/jax#3970",
    )(_adjoint)
