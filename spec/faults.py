"""The bad arguments of the contract, as data: how each spoils a case, when it must be refused, and in what words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spec.case import Case


@dataclass(frozen=True)
class Arguments:
    """The arguments with which a layer is built and called; a fault changes some of them.

    Attributes:
        sizes: in_features and out_features as they are passed.
        flags: the layer's flags by name.
        weight_shape, weight_dtype, bias_shape: of the master tensors.
        input_extra: how much too large the last dimension of what a rank passes is; cut_extra: likewise the dimension
            that a function cuts; input_dtype: None for the right one.
        dim: of gather and scatter.
    """

    in_features: Any
    out_features: Any
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    weight_shape: tuple[int, ...] | None = None
    weight_dtype: str | None = None
    bias_shape: tuple[int, ...] | None = None
    input_extra: int = 0
    input_dtype: str | None = None
    cut_extra: int = 0
    dim: int | None = None


@dataclass(frozen=True)
class Fault:
    """One bad argument.

    Attributes:
        layers: where it exists; `needs` says which further cases have it.
        at: whether building the layer refuses it, or calling it.
        types: the built-in exceptions that suit; a subclass of one of them is right too.
        words: for a case, words that a helpful text has: the parameter, the size, P.
    """

    title: str
    layers: tuple[str, ...]
    at: str
    types: tuple[str, ...]
    spoil: Callable[[Case, Arguments], Arguments]
    words: Callable[[Case], tuple[str, ...]]
    needs: Callable[[Case], bool] = lambda case: True


def arguments(case: Case) -> Arguments:
    """The arguments of a case, with its fault if it has one."""
    flags = {
        "column": ("gather_output", "skip_bias_add"),
        "row": ("input_is_parallel", "reduce_output", "skip_bias_add"),
    }
    chosen = {name: bool(getattr(case, name)) for name in flags.get(case.layer, ())}
    plain = Arguments(
        case.in_features, case.out_features, chosen, dim=case.dim if case.layer in ("gather", "scatter") else None
    )
    return FAULTS[case.fault].spoil(case, plain) if case.fault else plain


def _cut(case: Case) -> str:
    return "out_features" if case.layer == "column" else "in_features"


def _cut_size(case: Case) -> int:
    return case.out_features if case.layer == "column" else case.in_features


def _with_cut(case: Case, args: Arguments, size: Any) -> Arguments:
    return replace(args, **{_cut(case): size})


def _bias_flags(case: Case, args: Arguments, **flags: bool) -> Arguments:
    return replace(args, flags={**args.flags, **flags})


_LINEAR = ("column", "row")

FAULTS: dict[str, Fault] = {
    "indivisible": Fault(
        "P does not divide the cut dimension",
        _LINEAR,
        "build",
        ("ValueError",),
        lambda case, args: _with_cut(case, args, _cut_size(case) + 1),
        lambda case: (_cut(case), str(_cut_size(case) + 1), str(case.P)),
        lambda case: case.P > 1,
    ),
    "zero-size": Fault(
        "the cut dimension is zero",
        _LINEAR,
        "build",
        ("ValueError",),
        lambda case, args: _with_cut(case, args, 0),
        lambda case: (_cut(case), "0"),
    ),
    "negative-size": Fault(
        "the cut dimension is negative",
        _LINEAR,
        "build",
        ("ValueError",),
        lambda case, args: _with_cut(case, args, -case.P),
        lambda case: (_cut(case), str(-case.P)),
    ),
    "fractional-size": Fault(
        "the cut dimension is no integer",
        _LINEAR,
        "build",
        ("ValueError", "TypeError"),
        lambda case, args: _with_cut(case, args, _cut_size(case) + 0.5),
        lambda case: (_cut(case), str(_cut_size(case) + 0.5)),
    ),
    "master-shape": Fault(
        "the master weight has another shape",
        _LINEAR,
        "build",
        ("ValueError",),
        lambda case, args: replace(args, weight_shape=(case.out_features + case.P, case.in_features)),
        lambda case: (str(case.out_features + case.P), str(case.out_features)),
    ),
    "master-integer": Fault(
        "the master weight holds integers",
        _LINEAR,
        "build",
        ("TypeError",),
        lambda case, args: replace(args, weight_dtype="int64"),
        lambda case: ("int64",),
    ),
    "master-bias-shape": Fault(
        "the master bias has another shape",
        _LINEAR,
        "build",
        ("ValueError",),
        lambda case, args: replace(args, bias_shape=(case.out_features + case.P,)),
        lambda case: (str(case.out_features + case.P), str(case.out_features)),
        lambda case: case.bias,
    ),
    "gathered-and-skipped": Fault(
        "a gathered output cannot leave a sharded bias to the caller",
        ("column",),
        "build",
        ("ValueError",),
        lambda case, args: _bias_flags(case, args, gather_output=True, skip_bias_add=True),
        lambda case: ("gather_output", "skip_bias_add"),
        lambda case: case.bias,
    ),
    "unreduced-bias": Fault(
        "a bias in a partial output would be counted P times",
        ("row",),
        "build",
        ("ValueError",),
        lambda case, args: _bias_flags(case, args, reduce_output=False, skip_bias_add=False),
        lambda case: ("reduce_output", "bias"),
        lambda case: case.bias,
    ),
    "input-width": Fault(
        "the input's last dimension is wrong",
        _LINEAR,
        "call",
        ("ValueError",),
        lambda case, args: replace(args, input_extra=1),
        lambda case: (str(_input_width(case) + 1), str(_input_width(case))),
    ),
    "input-dtype": Fault(
        "the input's dtype is not the weight's",
        _LINEAR,
        "call",
        ("TypeError",),
        lambda case, args: replace(args, input_dtype="float64" if case.dtype != "float64" else "float32"),
        lambda case: (case.dtype, "float64" if case.dtype != "float64" else "float32"),
    ),
    "input-integer": Fault(
        "the input holds integers",
        _LINEAR,
        "call",
        ("TypeError",),
        lambda case, args: replace(args, input_dtype="int64"),
        lambda case: ("int64",),
    ),
    "scatter-indivisible": Fault(
        "P does not divide the scattered dimension",
        ("scatter",),
        "call",
        ("ValueError",),
        lambda case, args: replace(args, cut_extra=1),
        lambda case: (str((*case.batch, case.in_features)[case.dim] + 1), str(case.P)),
        lambda case: case.P > 1,
    ),
    "dim-out-of-range": Fault(
        "the dimension does not exist",
        ("gather", "scatter"),
        "call",
        ("ValueError", "IndexError"),
        lambda case, args: replace(args, dim=len(case.batch) + 1),
        lambda case: (str(len(case.batch) + 1),),
    ),
}


def _input_width(case: Case) -> int:
    return case.in_features // case.P if case.layer == "row" and case.input_is_parallel else case.in_features


def faults_of(case: Case) -> tuple[str, ...]:
    """The names of the faults that a case's layer and flags can have."""
    return tuple(name for name, fault in FAULTS.items() if case.layer in fault.layers and fault.needs(case))
