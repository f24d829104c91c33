"""Forward of the two layers: the value on every rank, the bias in it once, replicas bit for bit the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.compare import (
    exact,
    has_values,
    same_bits,
    shown,
    steps,
)
from spec.clauses.tensors import bias_once, value
from spec.contract import agreement
from spec.observation import Observation
from spec.placements import Replicated
from spec.register import Applies, Violation, clause
from spec.truth import Truth


def _layer(name: str, *, bias: bool = False, gathered: bool | None = None, reduced: bool | None = None) -> Applies:
    def applies(case: Case) -> bool:
        return (
            case.layer == name
            and exact(case)
            and (not bias or (case.bias and not case.skip_bias_add))
            and (gathered is None or case.gather_output == gathered)
            and (reduced is None or case.reduce_output == reduced)
        )

    return applies


@clause(
    "forward.returns",
    "A pair with skip_bias_add, a tensor otherwise",
    """With skip_bias_add a layer returns (Y without bias, bias), (Y, None) without a bias; the bias is the parameter:
    the local slice for column, the whole for row. Nothing else returns a tuple.""",
    lambda case: has_values(case) and case.linear,
)
def returns(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        other = step.facts.get("returned")
        if other:
            wanted = "a pair (output, bias)" if case.skip_bias_add else "a tensor"
            yield Violation(rank, step.name, "the return value is no layer's", wanted, str(other))
            continue
        pair = step.facts.get("pair")
        if pair is not None and pair != case.skip_bias_add:
            yield Violation(
                rank,
                step.name,
                "the return value",
                "a pair" if case.skip_bias_add else "a tensor",
                "a tuple" if pair else "a tensor",
            )
        if not case.skip_bias_add or not pair:
            continue
        held = step.parameters.get("bias") if case.bias else None
        if not same_bits(step.returned_bias, held):
            yield Violation(rank, step.name, "the returned bias is not the layer's", str(held), str(step.returned_bias))
        if case.bias and step.facts.get("bias_is_parameter") is False:
            yield Violation(
                rank, step.name, "the returned bias is not the parameter itself", "the parameter", "another tensor"
            )


@clause(
    "column.forward.bias-once",
    "The bias slice enters the column output once",
    "Y_r = X W_r^T + b_r: rank r adds its own slice of the bias, once.",
    _layer("column", bias=True),
    origin="ModelTC/LightX2V#1453, vllm-project/vllm-gguf-plugin#103",
)
def column_bias_once(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from bias_once(case, truth, seen)


@clause(
    "row.forward.bias-once",
    "The bias enters the row output once",
    "Y = sum_r X_r W_r^T + b: the bias is added once, after the reduction, for every P.",
    _layer("row", bias=True),
    origin="Wenyueh/MinivLLM#80, PaddlePaddle/Paddle#35186, awslabs/slapo#10, PaddlePaddle/FastDeploy#5247",
)
def row_bias_once(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from bias_once(case, truth, seen)


@clause(
    "column.forward.value",
    "Column output: this rank's slice",
    "Y_r = X W_r^T + b_r, in every element, on every rank.",
    _layer("column", gathered=False),
    origin="predibase/lorax#47, pytorch/pytorch#117728",
)
def column_value(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from value(case, truth, seen)


@clause(
    "column.forward.gathered",
    "Column output, gathered: whole, in rank order",
    "With gather_output every rank holds Y [..., O], the slices in the order of the ranks along the last dimension.",
    _layer("column", gathered=True),
    origin="NVIDIA/TransformerEngine#530, ndif-team/nnsight#719, hpcaitech/ColossalAI#579, tenstorrent/tt-metal#19433",
)
def column_gathered(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from value(case, truth, seen)


@clause(
    "row.forward.value",
    "Row output: the whole sum on every rank",
    "Y = sum_r X_r W_r^T + b, in every element, on every rank.",
    _layer("row", reduced=True),
    origin="Wenyueh/MinivLLM#13, microsoft/ltp-megatron-lm#68, NVIDIA/Megatron-LM#5337, NovaSky-AI/SkyRL#1886",
)
def row_value(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from value(case, truth, seen)


@clause(
    "row.forward.partial",
    "Row output, not reduced: this rank's term",
    "With reduce_output=False rank r returns X_r W_r^T, without a bias and without a collective.",
    _layer("row", reduced=False),
    origin="NVIDIA-NeMo/Megatron-Bridge#5635",
)
def row_partial(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    yield from value(case, truth, seen)


@clause(
    "forward.replicas",
    "Replicated outputs are bit for bit the same",
    "An output that is replicated has the same bits on every rank.",
    lambda case: has_values(case) and case.P > 1 and isinstance(agreement(case).output.value, Replicated),
)
def replicas(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    first = seen[0].steps["first"].output
    for observation in seen[1:]:
        output = observation.steps["first"].output
        if not same_bits(output, first):
            what = "the output's bits are not those of rank 0"
            yield Violation(observation.rank, "first", what, shown(first), shown(output))


@clause(
    "forward.dtype",
    "The output has the computation's dtype",
    "The output has the input's dtype; under autocast, the autocast dtype, as F.linear has it.",
    has_values,
    origin="NVIDIA/TransformerEngine#3555",
)
def output_dtype(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        if step.output is not None and step.output.dtype != case.compute_dtype:
            yield Violation(rank, step.name, "output has the wrong dtype", case.compute_dtype, step.output.dtype)
