"""The contract's tables as data: for a case, who holds what, and which collectives run.

`agreement(case)` answers every question of placement and communication; the clauses, the reference and the adapters ask
it and derive nothing themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from spec.case import COLUMN_LIKE, Case
from spec.placements import Edge, Partial, Parts, Placement, Replicated, Sharded

R, P_, LAST = Replicated(), Partial(), Sharded(-1)

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Budget:
    """One collective that a case must make: its kind, and the bytes that the calling rank puts in."""

    kind: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.bytes} B"


@dataclass(frozen=True)
class Agreement:
    """What the contract says of one case.

    Attributes:
        input: placements of X and of its gradient.
        output: placements of Y and of the upstream gradient.
        parameters: placement of each parameter, by name; a parameter's gradient is placed as the parameter.
        input_shape, output_shape: of the whole tensors; an output of which ranks hold copies has each of them, since
            each rank goes on with its own and has its own upstream gradient for it.
        forward, backward: the collectives of each pass at P > 1, in order.
        returns_bias: the layer returns a pair (Y, bias).
    """

    input: Edge
    output: Edge
    parameters: Mapping[str, Placement]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    forward: tuple[Budget, ...]
    backward: tuple[Budget, ...]
    returns_bias: bool = False


@lru_cache(maxsize=4096)
def agreement(case: Case) -> Agreement:
    """The agreement of a case; for each layer the table of the contract, read for the case's flags."""
    return (_column if case.layer in COLUMN_LIKE else {"row": _row, "pair": _pair}.get(case.layer, _function))(case)


def needs_gradient(case: Case) -> frozenset[str]:
    """Which of x, weight, bias (of a pair also weight2, bias2) require a gradient: those there and not frozen."""
    letters = {"x": "x", "w": "weight", "b": "bias"} if case.bias else {"x": "x", "w": "weight"}
    if not case.has_parameters:
        letters = {"x": "x"}
    needed = {name for letter, name in letters.items() if letter not in case.frozen}
    if case.layer == "pair":
        needed |= {f"{name}2" for name in needed - {"x"}}
    return frozenset(needed)


def runs_backward(case: Case) -> bool:
    """Whether the output requires a gradient at all."""
    needed = needs_gradient(case)
    bias_unused = case.skip_bias_add
    return case.procedure not in ("no-grad", "inference") and bool(needed - ({"bias"} if bias_unused else set()))


def _collectives(case: Case, *planned: tuple[str, int]) -> tuple[Budget, ...]:
    size = ITEM_BYTES[case.compute_dtype]
    return tuple(Budget(kind, elements * size) for kind, elements in planned) if case.P > 1 else ()


def _column(case: Case) -> Agreement:
    """The column layer, and the layers of several parts that are cut like it."""
    held, slices = cut_of_outputs(case)
    width = sum(size * c for size, c in zip(case.sizes, case.copies, strict=True))
    wants_x = "x" in needs_gradient(case) and runs_backward(case)
    reduced = [("all-reduce", case.rows * case.in_features)] * wants_x
    return Agreement(
        input=Edge(R, R),
        output=Edge(R, R) if case.gather_output else Edge(slices, slices),
        parameters={"weight": held, **({"bias": held} if case.bias else {})},
        input_shape=(*case.batch, case.in_features),
        output_shape=(*case.batch, width),
        forward=_collectives(case, *[("all-gather", case.rows * width // case.P)] * case.gather_output),
        backward=_collectives(case, *reduced, *_shared_gradients(case)),
        returns_bias=case.skip_bias_add,
    )


def cut_of_outputs(case: Case) -> tuple[Placement, Placement]:
    """How a column-like layer cuts its output features: those of parameters, and those of what each rank computes."""
    if case.layer == "column":
        return Sharded(0), LAST
    return Parts(0, case.sizes, case.copies), Parts(-1, case.sizes, case.copies).expanded(case.P)


def _shared_gradients(case: Case) -> list[tuple[str, int]]:
    """What the holders of one slice add up of their parameters' gradients: the rows that they have in common."""
    rows = sum(size * c // case.P for size, c in zip(case.sizes, case.copies, strict=True) if c > 1)
    elements = {"weight": rows * case.in_features, "bias": rows}
    unused = {"bias"} if case.skip_bias_add else set()
    trained = sorted(needs_gradient(case) - unused - {"x"}) if rows and runs_backward(case) else []
    return [("all-reduce", elements[name]) for name in trained]


def _row(case: Case) -> Agreement:
    rows, width = case.rows, case.in_features // case.P
    gathers = "x" in needs_gradient(case) and runs_backward(case) and not case.input_is_parallel
    return Agreement(
        input=Edge(LAST, LAST) if case.input_is_parallel else Edge(R, R),
        output=Edge(R, R) if case.reduce_output else Edge(P_, R),
        parameters={"weight": Sharded(1), **({"bias": R} if case.bias else {})},
        input_shape=(*case.batch, case.in_features),
        output_shape=(*case.batch, case.out_features),
        forward=_collectives(case, *[("all-reduce", rows * case.out_features)] * case.reduce_output),
        backward=_collectives(case, *[("all-gather", rows * width)] * gathers),
        returns_bias=case.skip_bias_add,
    )


def _pair(case: Case) -> Agreement:
    """Column, relu, row: the collectives of both, in the order of the pass."""
    width, wants_x = case.rows * case.hidden_features // case.P, "x" in needs_gradient(case)
    between = [("all-gather", width)] * case.gather_output
    reduced_x = [("all-reduce", case.rows * case.in_features)] * wants_x
    # The row layer's input needs a gradient as soon as anything before it does.
    before_row = bool(needs_gradient(case) & {"x", "weight", "bias"})
    backward = [*(between if before_row else []), *reduced_x] if runs_backward(case) else []
    biases: dict[str, Placement] = {"bias": Sharded(0), "bias2": R} if case.bias else {}
    return Agreement(
        input=Edge(R, R),
        output=Edge(R, R),
        parameters={"weight": Sharded(0), "weight2": Sharded(1), **biases},
        input_shape=(*case.batch, case.in_features),
        output_shape=(*case.batch, case.out_features),
        forward=_collectives(case, *between, ("all-reduce", case.rows * case.out_features)),
        backward=_collectives(case, *backward),
    )


def _function(case: Case) -> Agreement:
    shape = (*case.batch, case.in_features)
    elements, part = case.rows * case.in_features, case.rows * case.in_features // case.P
    slices = Sharded(case.dim)
    gathered, reduced = ("all-gather", part), ("all-reduce", elements)
    edges: dict[str, tuple[Edge, Edge, list[tuple[str, int]], list[tuple[str, int]]]] = {
        "copy": (Edge(R, R), Edge(R, P_), [], [reduced]),
        "reduce": (Edge(P_, R), Edge(R, R), [reduced], []),
        "gather": (Edge(slices, slices), Edge(R, R), [gathered], []),
        "scatter": (Edge(R, R), Edge(slices, slices), [], [gathered]),
    }
    before, after, forward, backward = edges[case.layer]
    return Agreement(
        input=before,
        output=after,
        parameters={},
        input_shape=shape,
        output_shape=shape,
        forward=_collectives(case, *forward),
        backward=_collectives(case, *(backward if runs_backward(case) else [])),
    )
