"""P ranks simulated with NumPy in one process: the positive control, and a place to try a mutant in milliseconds.

Every rank's part is computed from that rank's shards alone; the collectives are the methods of `Exchange`. A mutant
is a subclass that overrides one method.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np

from conformance.adapters.protocol import Declaration, Group
from spec import Array, Case, Collective, Inputs, Observation, Raised, Step, agreement, inputs
from spec.case import FUSED
from spec.contract import ITEM_BYTES, needs_gradient, runs_backward
from spec.faults import FAULTS, arguments
from spec.numerics import encode, round_to
from spec.placements import Floats, local

# The steps of each procedure, with the run whose data they have.
STEPS = {
    **dict.fromkeys(("run", "precision", "no-grad", "inference"), (("first", 0),)),
    "twice": (("first", 0), ("second", 0)),
    **dict.fromkeys(("accumulate", "update"), (("first", 0), ("second", 1))),
    **dict.fromkeys(("pipeline", "interleave"), (("first", 0), ("a", 0), ("b", 1))),
}
PROCEDURES = (*STEPS, "refuse")


class Exchange:
    """The collectives of one simulated group: lists of the ranks' values in, lists out, every call recorded."""

    def __init__(self, case: Case) -> None:
        self.case, self.phase = case, "forward"
        self.log: list[Collective] = []

    def all_reduce(self, parts: Sequence[Floats]) -> list[Floats]:
        """The sum, added up in the order of the ranks and rounded after every addition."""
        if self.case.P == 1:
            return list(parts)
        self._record("all-reduce", parts[0])
        total = parts[0]
        for part in parts[1:]:
            total = round_to(total + part, self.case.compute_dtype)
        return [total.copy() for _ in parts]

    def all_reduce_among(self, parts: Sequence[Floats], size: int) -> list[Floats]:
        """The same within each block of so many neighbouring ranks."""
        self._record("all-reduce", parts[0])
        blocks = [Exchange(self.case).all_reduce(parts[start : start + size]) for start in range(0, len(parts), size)]
        return [total for block in blocks for total in block]

    def all_gather(self, parts: Sequence[Floats], dim: int) -> list[Floats]:
        """The parts joined along a dimension, in the order of the ranks."""
        if self.case.P == 1:
            return list(parts)
        self._record("all-gather", parts[0])
        whole = np.concatenate(parts, axis=dim)
        return [whole.copy() for _ in parts]

    def _record(self, kind: str, part: Floats) -> None:
        dtype = self.case.compute_dtype
        ranks = self.case.group_ranks[0]
        self.log.append(
            Collective(
                kind,
                part.size * ITEM_BYTES[dtype],
                dtype,
                self.phase,
                ranks if self.case.world == self.case.P else None,
            )
        )


class Simulated:
    """The contract in NumPy, once more and by another hand than the reference."""

    controller = True

    def declare(self) -> Declaration:
        return Declaration(
            "numpy",
            {"numpy": np.__version__, "python": platform.python_version()},
            strict=True,
            controller=True,
            fused=FUSED,
        )

    def declines(self, case: Case) -> str:
        if case.layer == "pair":
            return "a simulation has no pair"
        return "" if case.procedure in PROCEDURES else f"a simulation has no {case.procedure}"

    def open(self, group: Group) -> Simulated:
        return self

    def close(self) -> None:
        """Nothing to undo."""

    def run(self, case: Case, group: int) -> list[Observation]:
        """All ranks' observations of one group."""
        if case.procedure == "refuse":
            return [_refusal(case, rank) for rank in range(case.P)]
        runs = {name: self.steps(case, inputs(case, group, number)) for name, number in STEPS[case.procedure]}
        last = {"accumulate": "second", "pipeline": "b"}.get(case.procedure)
        if last:
            runs[last] = [_added(case, *pair) for pair in zip(runs["first"], runs[last], strict=True)]
        by_rank = [{name: _named(run[rank], name) for name, run in runs.items()} for rank in range(case.P)]
        return [Observation(rank, steps) for rank, steps in enumerate(by_rank)]

    # One run, on all ranks

    def steps(self, case: Case, data: Inputs) -> list[Step]:
        """Forward and backward on every rank."""
        terms, ranks, exchange = agreement(case), range(case.P), Exchange(case)
        x = [local(terms.input.value, data.x, case.P, r) for r in ranks]
        held = [self.shards(case, data, r) for r in ranks]
        y = self.forward(case, x, held, exchange)
        gradients: list[dict[str, Floats | None]] = [{} for _ in ranks]
        if runs_backward(case):
            exchange.phase = "backward"
            g = [local(terms.output.gradient, data.g, case.P, r) for r in ranks]
            gradients = [dict(entry) for entry in self.backward(case, x, held, g, exchange)]
        wanted = needs_gradient(case) - ({"bias"} if case.skip_bias_add else frozenset())
        return [self._step(case, y[r], held[r], gradients[r], wanted, exchange) for r in ranks]

    def shards(self, case: Case, data: Inputs, r: int) -> dict[str, Floats]:
        """What rank r keeps of the masters."""
        if not case.linear:
            return {}
        assert data.weight is not None
        if case.layer in FUSED:
            rows = rows_of(case, r)
            return {"weight": data.weight[rows]} | ({"bias": data.bias[rows]} if data.bias is not None else {})
        size = (case.out_features if case.layer == "column" else case.in_features) // case.P
        mine = slice(r * size, (r + 1) * size)
        if case.layer == "row":
            return {"weight": data.weight[:, mine]} | ({"bias": data.bias} if data.bias is not None else {})
        return {"weight": data.weight[mine]} | ({"bias": data.bias[mine]} if data.bias is not None else {})

    def forward(
        self, case: Case, x: Sequence[Floats], held: Sequence[Mapping[str, Floats]], exchange: Exchange
    ) -> list[Floats]:
        """Every rank's output."""
        return getattr(self, f"{case.layer}_forward")(case, x, held, exchange)

    def backward(
        self,
        case: Case,
        x: Sequence[Floats],
        held: Sequence[Mapping[str, Floats]],
        g: Sequence[Floats],
        exchange: Exchange,
    ) -> list[dict[str, Floats]]:
        """Every rank's gradients, by name."""
        return getattr(self, f"{case.layer}_backward")(case, x, held, g, exchange)

    def column_forward(
        self, case: Case, x: Sequence[Floats], held: Sequence[Mapping[str, Floats]], exchange: Exchange
    ) -> list[Floats]:
        y = [self.product(case, a, h["weight"].T) for a, h in zip(x, held, strict=True)]
        if case.bias and not case.skip_bias_add:
            y = [round_to(part + h["bias"], case.compute_dtype) for part, h in zip(y, held, strict=True)]
        if not case.gather_output:
            return y
        wholes = exchange.all_gather(y, -1)
        return [whole[..., np.argsort(self.gathered_order(case))] for whole in wholes]

    def gathered_order(self, case: Case) -> list[int]:
        """Which columns of the whole output the ranks' outputs hold, one behind the other."""
        return [row for r in range(case.P) for row in rows_of(case, r)]

    def column_backward(
        self,
        case: Case,
        x: Sequence[Floats],
        held: Sequence[Mapping[str, Floats]],
        g: Sequence[Floats],
        exchange: Exchange,
    ) -> list[dict[str, Floats]]:
        if case.gather_output:
            g = [whole[..., rows_of(case, r)] for r, whole in enumerate(g)]
        dx = [self.product(case, upstream, h["weight"]) for upstream, h in zip(g, held, strict=True)]
        if "x" in needs_gradient(case):
            dx = exchange.all_reduce(dx)
        return [{"x": d, **self.parameter_gradients(case, a, up)} for d, a, up in zip(dx, x, g, strict=True)]

    merged_forward, merged_backward, qkv_forward = column_forward, column_backward, column_forward

    def qkv_backward(
        self,
        case: Case,
        x: Sequence[Floats],
        held: Sequence[Mapping[str, Floats]],
        g: Sequence[Floats],
        exchange: Exchange,
    ) -> list[dict[str, Floats]]:
        gradients = self.column_backward(case, x, held, g, exchange)
        sharers = max(1, case.P // case.kv_heads)
        trained = needs_gradient(case) - {"x"} - ({"bias"} if case.skip_bias_add else set())
        for name in sorted(trained) if sharers > 1 else ():
            self.sum_copies(case, [entry[name] for entry in gradients], sharers, exchange)
        return gradients

    def sum_copies(self, case: Case, gradients: Sequence[Floats], sharers: int, exchange: Exchange) -> None:
        """Replace the key and value rows of a parameter's gradients by their sum over the ranks that hold them."""
        first = case.heads // case.P * case.head_size
        totals = exchange.all_reduce_among([gradient[first:] for gradient in gradients], sharers)
        for gradient, total in zip(gradients, totals, strict=True):
            gradient[first:] = total

    def row_forward(
        self, case: Case, x: Sequence[Floats], held: Sequence[Mapping[str, Floats]], exchange: Exchange
    ) -> list[Floats]:
        y = [self.product(case, a, h["weight"].T) for a, h in zip(self.own_inputs(case, x), held, strict=True)]
        if case.reduce_output:
            y = exchange.all_reduce(y)
        if case.bias and not case.skip_bias_add:
            y = [round_to(part + h["bias"], case.compute_dtype) for part, h in zip(y, held, strict=True)]
        return y

    def row_backward(
        self,
        case: Case,
        x: Sequence[Floats],
        held: Sequence[Mapping[str, Floats]],
        g: Sequence[Floats],
        exchange: Exchange,
    ) -> list[dict[str, Floats]]:
        dx = [self.product(case, upstream, h["weight"]) for upstream, h in zip(g, held, strict=True)]
        if not case.input_is_parallel and "x" in needs_gradient(case):
            dx = exchange.all_gather(dx, -1)
        own = self.own_inputs(case, x)
        return [{"x": d, **self.parameter_gradients(case, a, up)} for d, a, up in zip(dx, own, g, strict=True)]

    def own_inputs(self, case: Case, x: Sequence[Floats]) -> list[Floats]:
        """Every rank's slice of the input."""
        if case.input_is_parallel:
            return list(x)
        width = case.in_features // case.P
        return [whole[..., r * width : (r + 1) * width] for r, whole in enumerate(x)]

    def parameter_gradients(self, case: Case, x: Floats, g: Floats) -> dict[str, Floats]:
        """dW = G^T X and db = the sum of G, over the flattened batch."""
        rows = g.reshape(-1, g.shape[-1])
        dw = self.product(case, rows.T, x.reshape(-1, x.shape[-1]))
        return {"weight": dw, "bias": self.sum_rows(case, rows)}

    def product(self, case: Case, a: Floats, b: Floats) -> Floats:
        """A matrix product as the dtype computes it: accumulated wide, rounded once."""
        return round_to(a @ b, case.compute_dtype)

    def sum_rows(self, case: Case, rows: Floats) -> Floats:
        """The sum over the first dimension, accumulated wide, rounded once."""
        return round_to(rows.sum(0), case.compute_dtype)

    def copy_forward(self, case: Case, x: Sequence[Floats], held: object, exchange: Exchange) -> list[Floats]:
        return list(x)

    def copy_backward(
        self, case: Case, x: object, held: object, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        return [{"x": d} for d in exchange.all_reduce(g)]

    def reduce_forward(self, case: Case, x: Sequence[Floats], held: object, exchange: Exchange) -> list[Floats]:
        return exchange.all_reduce(x)

    def reduce_backward(
        self, case: Case, x: object, held: object, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        return [{"x": d} for d in g]

    def gather_forward(self, case: Case, x: Sequence[Floats], held: object, exchange: Exchange) -> list[Floats]:
        return exchange.all_gather(x, case.dim)

    def gather_backward(
        self, case: Case, x: object, held: object, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        return [{"x": part} for part in self.slices(case, g)]

    def scatter_forward(self, case: Case, x: Sequence[Floats], held: object, exchange: Exchange) -> list[Floats]:
        return self.slices(case, x)

    def scatter_backward(
        self, case: Case, x: object, held: object, g: Sequence[Floats], exchange: Exchange
    ) -> list[dict[str, Floats]]:
        return [{"x": d} for d in exchange.all_gather(g, case.dim)]

    def slices(self, case: Case, wholes: Sequence[Floats]) -> list[Floats]:
        """Every rank's slice of what it holds whole."""
        return [np.split(whole, case.P, axis=case.dim)[r] for r, whole in enumerate(wholes)]

    def _step(
        self,
        case: Case,
        y: Floats,
        held: Mapping[str, Floats],
        gradients: Mapping[str, Floats | None],
        wanted: frozenset[str],
        exchange: Exchange,
    ) -> Step:
        pair = case.skip_bias_add
        names = ("x", "weight", "bias") if case.bias else (("x", "weight") if case.linear else ("x",))
        kept = {name: gradients.get(name) if name in wanted else None for name in names}
        return Step(
            "first",
            {name: _array(value, case.dtype) for name, value in held.items()},
            _array(y, case.compute_dtype),
            _array(held["bias"], case.dtype) if pair and "bias" in held else None,
            {
                name: None if value is None else _array(round_to(value, case.compute_dtype), case.dtype)
                for name, value in kept.items()
            },
            tuple(exchange.log),
            facts={"pair": pair, "requires_grad": runs_backward(case)},
        )


def rows_of(case: Case, r: int) -> list[int]:
    """The output features of the whole layer that rank r has, part by part or head by head, in its order."""
    if case.layer == "qkv":
        units, size = [case.heads, case.kv_heads, case.kv_heads], case.head_size
    else:
        units, size = list(case.parts or (case.out_features,)), 1
    rows: list[int] = []
    for number, count in enumerate(units):
        spread = [unit for unit in range(count) for _ in range(max(1, case.P // count) if number else 1)]
        each = len(spread) // case.P
        first = sum(units[:number])
        rows += [(first + unit) * size + n for unit in spread[r * each : (r + 1) * each] for n in range(size)]
    return rows


def _array(value: Floats, dtype: str) -> Array:
    return Array(encode(value, dtype).tobytes(), dtype, value.shape)


def _named(step: Step, name: str) -> Step:
    return Step(**{**vars(step), "name": name})


def _added(case: Case, one: Step, two: Step) -> Step:
    """The second of two runs whose parameters' gradients accumulate."""
    total = dict(two.gradients)
    for name in ("weight", "bias"):
        a, b = one.gradients.get(name), two.gradients.get(name)
        if a is not None and b is not None:
            total[name] = _array(a.numbers + b.numbers, a.dtype)
    return Step(**{**vars(two), "gradients": total})


def _refusal(case: Case, rank: int) -> Observation:
    """A refusal as the contract words it; the exchange afterwards is simulated as well."""
    fault = FAULTS[case.fault]
    text = f"{fault.title}: {', '.join(fault.words(case))} ({arguments(case)})"
    refused = Step("refused", collectives=(), raised=Raised((fault.types[0], "Exception"), text))
    total = np.array([case.P * (case.P + 1) / 2])
    return Observation(rank, {"refused": refused, "after": Step("after", output=_array(total, "float32"))})
