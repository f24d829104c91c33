"""An adapter without a framework: a column layer without a bias, and one process that holds all ranks.

Its products are NumPy's; yours would call a library, a server or another language, and hand back what each rank held.
"""

import numpy as np

from conformance.adapters.protocol import Declaration, Group
from spec import Array, Case, Collective, Observation, Step, agreement, inputs
from spec.contract import needs_gradient, runs_backward
from spec.numerics import encode
from spec.placements import local


class Columns:
    contract = 1
    controller = True

    def declare(self) -> Declaration:
        return Declaration("columns", {"numpy": np.__version__}, controller=True)

    def declines(self, case: Case) -> str:
        if case.layer != "column":
            return f"has no {case.layer}"
        for flag in ("bias", "gather_output", "skip_bias_add", "autocast"):
            if getattr(case, flag):
                return f"has no {flag}"
        return "" if case.procedure == "run" else f"has no procedure {case.procedure}"

    def open(self, group: Group) -> "Columns":
        return self  # nothing to set up for a group

    def close(self) -> None:
        pass

    def run(self, case: Case, group: int) -> list[Observation]:
        """What every rank of group number `group` saw, in the order of its ranks."""
        data, terms, ranks = inputs(case, group), agreement(case), range(case.P)
        weights = [local(terms.parameters["weight"], data.weight, case.P, r) for r in ranks]
        outputs = [data.x @ weight.T for weight in weights]
        gradients, entered = [dict[str, Array | None](x=None, weight=None) for _ in ranks], ()
        if runs_backward(case):
            upstream = [local(terms.output.gradient, data.g, case.P, r) for r in ranks]
            if "x" in needs_gradient(case):
                total = sum(g @ weight for g, weight in zip(upstream, weights, strict=True))
                if case.P > 1:
                    size = len(array(total, case.dtype).bits)
                    entered = (Collective("all-reduce", size, case.dtype, "backward", case.group_ranks[group]),)
                for mine in gradients:
                    mine["x"] = array(total, case.dtype)
            if "weight" in needs_gradient(case):
                x = data.x.reshape(case.rows, case.in_features)
                for mine, g in zip(gradients, upstream, strict=True):
                    mine["weight"] = array(g.reshape(case.rows, g.shape[-1]).T @ x, case.dtype)
        return [
            Observation(r, {"first": self.step(case, weights[r], outputs[r], gradients[r], entered)}) for r in ranks
        ]

    def step(self, case, weight, output, gradients, entered) -> Step:
        return Step(
            "first",
            parameters={"weight": array(weight, case.dtype)},
            output=array(output, case.dtype),
            gradients=gradients,
            collectives=entered,
            facts={"pair": False, "requires_grad": runs_backward(case)},
        )


def array(value: np.ndarray, dtype: str) -> Array:
    """A tensor as the suite wants it: its bits in row-major order, the name of its dtype, its shape."""
    return Array(encode(value, dtype).tobytes(), dtype, value.shape)
