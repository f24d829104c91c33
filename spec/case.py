"""A Case: everything that one example of the contract depends on, as one line of text.

    row P=2 batch=3 in=4 out=2 float32 bias seed=7

`str(case)` writes the line and `Case.parse` reads it back, so that a failure can be replayed, pinned and listed as
known by pasting it. Words that have their default value are left out. The element values of every tensor follow from
the line too (see `spec.values`), so nothing else has to travel.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Final

from spec.grammar import CaseSyntaxError, fields_of, line_of, pointing_at
from spec.vocabulary import (
    AUTOCAST,
    COLUMN_LIKE,
    COMPOSED,
    DTYPES,
    EXACT,
    FUNCTIONS,
    FUSED,
    GROUPS,
    LAYERS,
    LAYOUTS,
    LINEAR,
    PROCEDURES,
    VALUES,
    WITHOUT_VALUES,
)

__all__ = [
    "AUTOCAST",
    "COLUMN_LIKE",
    "COMPOSED",
    "DTYPES",
    "EXACT",
    "FUNCTIONS",
    "FUSED",
    "GROUPS",
    "LAYERS",
    "LAYOUTS",
    "LINEAR",
    "PROCEDURES",
    "VALUES",
    "WITHOUT_VALUES",
    "Case",
    "CaseSyntaxError",
]


@dataclass(frozen=True)
class Case:
    """One example of the contract.

    Sizes are those of the whole, unsharded tensors. For the linear layers X is `[*batch, in_features]`, W is
    `[out_features, in_features]`; of a merged layer `parts` are the sizes of its parts, of a qkv layer `heads`,
    `kv_heads` and `head_size` say how wide query, key and value are, and out_features follows from them; a pair is a
    column layer to `hidden_features`, relu, and a row layer to `out_features`; for the four functions the tensor is
    `[*batch, in_features]` and `dim` the dimension that is gathered or scattered. `P` is the size of the
    tensor-parallel group, `world` the number of ranks that run: a multiple of P, whose ranks form world / P groups
    with different data.

    Raises:
        ValueError: a field that its layer does not have, or a value that no case can have.
    """

    layer: str
    P: int
    in_features: int
    out_features: int = 0
    hidden_features: int = 0
    parts: tuple[int, ...] = ()
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    batch: tuple[int, ...] = ()
    dim: int = -1
    dtype: str = "float32"
    bias: bool = False
    gather_output: bool = False
    skip_bias_add: bool = False
    input_is_parallel: bool = True
    reduce_output: bool = True
    x: str = "contiguous"
    g: str = "contiguous"
    frozen: str = ""
    autocast: str = ""
    values: str = "exact"
    world: int = 0
    groups: str = "neighbouring"
    procedure: str = "run"
    fault: str = ""
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        if self.world == 0:
            object.__setattr__(self, "world", self.P)
        if self.layer in FUSED:
            object.__setattr__(self, "out_features", sum(self.sizes))
        reason = _reason_against(self)
        if reason:
            raise ValueError(reason)

    @cached_property
    def text(self) -> str:
        """The canonical line; `Case.parse(case.text) == case`."""
        return line_of(self, _DEFAULTS)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Case.parse({self.text!r})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis and IPython would print every field

    @classmethod
    def parse(cls, line: str) -> Case:
        """Read a case line.

        Raises:
            CaseSyntaxError: with the line, a caret under the word at fault, and what would be right.
        """
        given = fields_of(line)
        try:
            return cls(**given)
        except ValueError as error:
            raise CaseSyntaxError(pointing_at(line, 0, line, str(error))) from None

    @property
    def linear(self) -> bool:
        """Whether this is one linear layer."""
        return self.layer in LINEAR

    @property
    def has_parameters(self) -> bool:
        """Whether the layer has weights: the linear layers, and a pair of them."""
        return self.layer not in FUNCTIONS

    @property
    def sizes(self) -> tuple[int, ...]:
        """How the output features of a linear layer divide into parts that are cut one by one."""
        if self.layer == "qkv":
            kv = self.kv_heads * self.head_size
            return self.heads * self.head_size, kv, kv
        return self.parts if self.layer == "merged" else (self.out_features,)

    @property
    def copies(self) -> tuple[int, ...]:
        """By part: how many neighbouring ranks hold each slice of it."""
        if self.layer == "qkv":
            shared = max(1, self.P // self.kv_heads)
            return 1, shared, shared
        return (1,) * len(self.sizes)

    @property
    def rows(self) -> int:
        """Number of rows of the flattened batch: the product of the batch dimensions, 1 without any."""
        product = 1
        for size in self.batch:
            product *= size
        return product

    @property
    def batch_dims(self) -> int:
        """Number of batch dimensions."""
        return len(self.batch)

    @property
    def compute_dtype(self) -> str:
        """The dtype of the products and of the output: the autocast dtype where autocast is on."""
        return self.autocast or self.dtype

    @property
    def group_ranks(self) -> tuple[tuple[int, ...], ...]:
        """The global ranks of each tensor-parallel group of this case's world."""
        count = self.world // self.P
        if self.groups == "interleaved":
            return tuple(tuple(range(k, self.world, count)) for k in range(count))
        return tuple(tuple(range(k * self.P, (k + 1) * self.P)) for k in range(count))


_DEFAULTS: Final = {f.name: f.default for f in fields(Case) if f.default is not MISSING}


def _reason_against(case: Case) -> str:
    """Why no case can have these fields, or an empty string."""
    for name, allowed in (
        ("layer", LAYERS),
        ("dtype", DTYPES),
        ("autocast", AUTOCAST),
        ("x", LAYOUTS),
        ("g", LAYOUTS),
        ("values", VALUES),
        ("groups", GROUPS),
        ("procedure", tuple(PROCEDURES)),
    ):
        if getattr(case, name) not in allowed:
            return f"{name}={getattr(case, name)!r} is none of {', '.join(word or repr(word) for word in allowed)}"
    if case.P < 1 or case.world % case.P:
        return f"world={case.world} must be a positive multiple of P={case.P}"
    if any(size < 0 for size in case.batch):
        return f"batch={case.batch} has a negative size"
    if case.seed < 0:
        return f"seed={case.seed} must not be negative"
    letters = [letter for letter in "xwb" if letter in case.frozen and (letter != "b" or case.bias)]
    if case.frozen != "".join(letters):
        return f"frozen={case.frozen!r} must be letters of x, w, b, in this order, and b only where there is a bias"
    foreign = sorted(name for name in _FIELDS_OF_OTHERS[case.layer] if getattr(case, name) != _DEFAULTS[name])
    if foreign:
        return f"{case.layer} has no {foreign[0]}"
    sizes = _reason_against_parts if case.layer in FUSED else _reason_against_sizes
    return sizes(case) or _reason_against_flags(case) or _reason_against_fault(case)


def _reason_against_flags(case: Case) -> str:
    """The combinations that layers refuse are faults of other cases, never cases."""
    if case.bias and case.gather_output and case.skip_bias_add:
        return "gather_output and skip_bias_add with a bias would return a sharded bias with a whole output"
    if case.bias and not case.reduce_output and not case.skip_bias_add:
        return "reduce_output=False with a bias needs skip_bias_add: a partial output has no place for it"
    return _reason_against_values(case)


def _reason_against_values(case: Case) -> str:
    if case.layer == "pair" and case.values not in ("exact", "small"):
        return f"a pair has no bound for values={case.values}; it has exact and small values"
    if case.values == "subnormal" and (case.dtype != "float16" or case.autocast):
        return (
            "values=subnormal needs float16 without autocast: float32, in which float16 is accumulated, holds its"
            " subnormals as ordinary numbers, while those of the other dtypes are flushed to zero by some hardware"
        )
    return ""


def _reason_against_fault(case: Case) -> str:
    if bool(case.fault) != (case.procedure == "refuse"):
        return f"fault={case.fault!r} goes with procedure=refuse, and procedure=refuse needs a fault"
    if case.fault:
        from spec.faults import faults_of

        if case.fault not in faults_of(case):
            return (
                f"fault={case.fault} is none that this case can have: {', '.join(faults_of(case)) or 'there is none'}"
            )
    return ""


def _reason_against_sizes(case: Case) -> str:
    if case.in_features < 1 or (case.has_parameters and case.out_features < 1):
        return f"in={case.in_features} out={case.out_features}: sizes must be at least 1"
    if case.layer == "pair" and (case.hidden_features < 1 or case.hidden_features % case.P):
        return f"P={case.P} must divide hidden, which has size {case.hidden_features}, at least 1"
    if case.layer == "pair" and case.gather_output == case.input_is_parallel:
        return "a pair either gathers between its layers, gather_output and input_is_parallel=False, or does neither"
    if case.layer in ("gather", "scatter"):
        shape = (*case.batch, case.in_features)
        if not -len(shape) <= case.dim < len(shape):
            return f"dim={case.dim} is out of range for a tensor of {len(shape)} dimensions"
        cut, size = "dim", shape[case.dim]
    elif case.linear:
        cut, size = ("out", case.out_features) if case.layer == "column" else ("in", case.in_features)
    else:
        return ""
    return "" if size % case.P == 0 else f"P={case.P} must divide {cut}, which has size {size}"


def _reason_against_parts(case: Case) -> str:
    if case.layer == "merged":
        bad = [size for size in case.parts if size < 1 or size % case.P]
        if bad or not case.parts or case.in_features < 1:
            return (
                f"in={case.in_features} parts={case.parts}: sizes must be at least 1, and P={case.P} divide each part"
            )
        return ""
    H, K = case.heads, case.kv_heads
    if min(case.in_features, H, K, case.head_size) < 1:
        return f"in={case.in_features} heads={H} kv={K} head_size={case.head_size}: sizes must be at least 1"
    if H % case.P or H % K:
        return f"heads={H} must be a multiple of P={case.P} and of kv={K}"
    return f"kv={K} must divide P={case.P} or be a multiple of it" if K % case.P and case.P % K else ""


_COLUMN_ONLY, _ROW_ONLY = {"gather_output"}, {"input_is_parallel", "reduce_output"}
_PAIR_ONLY = {"hidden_features"}
_MERGED_ONLY, _QKV_ONLY = {"parts"}, {"heads", "kv_heads", "head_size"}
_FUSED_ONLY = _MERGED_ONLY | _QKV_ONLY
_LINEAR_ONLY = (
    {"out_features", "bias", "skip_bias_add", "autocast"} | _COLUMN_ONLY | _ROW_ONLY | _PAIR_ONLY | _FUSED_ONLY
)
_FIELDS_OF_OTHERS: Final = {
    "column": _ROW_ONLY | _PAIR_ONLY | _FUSED_ONLY | {"dim"},
    "row": _COLUMN_ONLY | _PAIR_ONLY | _FUSED_ONLY | {"dim"},
    "merged": _ROW_ONLY | _PAIR_ONLY | _QKV_ONLY | {"dim"},
    "qkv": _ROW_ONLY | _COLUMN_ONLY | _PAIR_ONLY | _MERGED_ONLY | {"dim"},
    "pair": {"dim", "skip_bias_add", "reduce_output"} | _FUSED_ONLY,
    "copy": _LINEAR_ONLY | {"dim"},
    "reduce": _LINEAR_ONLY | {"dim"},
    "gather": _LINEAR_ONLY,
    "scatter": _LINEAR_ONLY,
}
