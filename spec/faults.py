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
        in_features, out_features, parts, heads, kv_heads, head_size: as they are passed; of a layer of several parts
            out_features is what these add up to.
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
    parts: tuple[Any, ...] = ()
    heads: Any = 0
    kv_heads: Any = 0
    head_size: Any = 0


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
        "merged": ("gather_output", "skip_bias_add"),
        "qkv": ("skip_bias_add",),
    }
    chosen = {name: bool(getattr(case, name)) for name in flags.get(case.layer, ())}
    plain = Arguments(
        case.in_features,
        case.out_features,
        chosen,
        dim=case.dim if case.layer in ("gather", "scatter") else None,
        parts=case.parts,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_size=case.head_size,
    )
    return FAULTS[case.fault].spoil(case, plain) if case.fault else plain


def _cut(case: Case) -> str:
    """The name of the argument that P must divide; of a merged layer its last part is spoiled."""
    names = {"column": "out_features", "row": "in_features", "merged": "output_sizes", "qkv": "total_num_heads"}
    return names[case.layer]


def _cut_size(case: Case) -> int:
    sizes = {"column": case.out_features, "row": case.in_features, "qkv": case.heads}
    return case.parts[-1] if case.layer == "merged" else sizes[case.layer]


def _with_cut(case: Case, args: Arguments, size: Any) -> Arguments:
    if case.layer == "merged":
        parts = (*case.parts[:-1], size)
        return replace(args, parts=parts, out_features=sum(parts))
    if case.layer == "qkv":
        return _with_heads(args, size, case.kv_heads)
    return replace(args, **{_cut(case): size})


def _with_heads(args: Arguments, heads: Any, kv_heads: Any) -> Arguments:
    return replace(args, heads=heads, kv_heads=kv_heads, out_features=(heads + 2 * kv_heads) * args.head_size)


def _bias_flags(case: Case, args: Arguments, **flags: bool) -> Arguments:
    return replace(args, flags={**args.flags, **flags})


_LINEAR = ("column", "row", "merged", "qkv")

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
        ("column", "merged"),
        "build",
        ("ValueError",),
        lambda case, args: _bias_flags(case, args, gather_output=True, skip_bias_add=True),
        lambda case: ("gather_output", "skip_bias_add"),
        lambda case: case.bias,
    ),
    "no-parts": Fault(
        "there are no parts",
        ("merged",),
        "build",
        ("ValueError",),
        lambda case, args: replace(args, parts=(), out_features=0),
        lambda case: ("output_sizes",),
    ),
    "kv-heads-indivisible": Fault(
        "the number of key heads neither divides P nor is a multiple of it",
        ("qkv",),
        "build",
        ("ValueError",),
        lambda case, args: _with_heads(args, case.P * (case.P + 1), case.P + 1),
        lambda case: ("total_num_kv_heads", str(case.P + 1), str(case.P)),
        lambda case: case.P > 1,
    ),
    "kv-heads-unequal": Fault(
        "the key heads cannot serve equal numbers of query heads",
        ("qkv",),
        "build",
        ("ValueError",),
        lambda case, args: _with_heads(args, case.heads, case.heads + 1),
        lambda case: ("total_num_heads", "total_num_kv_heads", str(case.heads), str(case.heads + 1)),
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
