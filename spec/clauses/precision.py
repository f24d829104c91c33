"""Precision on real values: sums accumulate wide and lose no more than the derived bound allows.

Integers cannot see a sum that is kept in a narrow dtype, and a tuned tolerance cannot tell it from rounding; the
bound of `spec.bounds` can, because it is derived from the dtype and the length of the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.bounds import bound
from spec.case import EXACT, Case
from spec.clauses.compare import (
    compare,
    expected_gradients,
    expected_local,
    gradient_placement,
    has_values,
    steps,
    true_output,
)
from spec.contract import agreement, runs_backward
from spec.observation import Observation
from spec.placements import Partial
from spec.register import Applies, Violation, clause
from spec.truth import Truth


def _real(case: Case) -> bool:
    return has_values(case) and case.values not in EXACT


def _wants(name: str) -> Applies:
    return lambda case: _real(case) and runs_backward(case) and name in expected_gradients(case)


@clause(
    "precision.forward",
    "The output's error stays within the bound",
    """Values are rounded to the dtype first. Products accumulate with roundoff u_acc: that of float32 for float32,
    bfloat16 and float16, that of float64 for float64; a reduction over ranks rounds P + 1 times in its own dtype.""",
    _real,
    origin="pytorch/pytorch#144359, NVIDIA/TransformerEngine#3555, NVIDIA/Megatron-LM#6624, tenstorrent/tt-metal#36749",
)
def forward(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for rank, step in steps(seen):
        values = truth.runs[0]
        limit = bound(case, "output", values.magnitudes["output"])
        if not isinstance(agreement(case).output.value, Partial):
            limit = true_output(case, limit, rank)
        yield from compare(rank, step, "output", step.output, true_output(case, values.output, rank), limit)


def _gradients(name: str, title: str) -> None:
    def check(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
        placement = gradient_placement(case, name)
        for rank, step in steps(seen):
            values = truth.runs[0]
            limit = expected_local(case, placement, bound(case, name, values.magnitudes[name]), rank)
            expected = expected_local(case, placement, values.gradients[name], rank)
            yield from compare(rank, step, f"gradient of {name}", step.gradients.get(name), expected, limit)

    kind = {"x": "input", "weight": "weight", "bias": "bias"}[name]
    text = f"The error of the {kind}'s gradient stays within the bound derived for its sum, with the same accumulation."
    clause(f"precision.{kind}-grad", title, text, _wants(name), origin="NVIDIA/Megatron-LM#6624")(check)


_gradients("x", "The input gradient's error stays within the bound")
_gradients("weight", "The weight gradient's error stays within the bound")
_gradients("bias", "The bias gradient's error stays within the bound")
