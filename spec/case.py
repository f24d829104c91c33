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

LINEAR: Final = ("column", "row")
COMPOSED: Final = ("pair",)
FUNCTIONS: Final = ("copy", "reduce", "gather", "scatter")
LAYERS: Final = LINEAR + COMPOSED + FUNCTIONS
DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
AUTOCAST: Final = ("", "bfloat16", "float16")
LAYOUTS: Final = ("contiguous", "transposed", "strided", "expanded", "offset")
VALUES: Final = ("exact", "small", "gaussian", "positive", "cancel")
GROUPS: Final = ("neighbouring", "interleaved")

PROCEDURES: Final = {
    "run": "forward and backward, once",
    "precision": "forward and backward on real values, judged by the derived bound",
    "twice": "the same forward and backward again, with fresh gradients: the same bits",
    "retain": "two backwards through one graph: the gradients double",
    "accumulate": "two forwards and backwards on different data: the gradients add up",
    "pipeline": "two forwards of one layer on different data, then both backwards: the gradients add up",
    "update": "the same layer again after its parameters were overwritten in place",
    "interleave": "two layers a, b of equal sizes: forward a, forward b, backward a, backward b",
    "delay": "the same again while every rank waits a different time around each collective: the same bits",
    "no-grad": "forward under torch.no_grad or its like",
    "inference": "forward under torch.inference_mode or its like",
    "init": "a layer that draws its own initial values, then draws them again",
    "state-dict": "save, load into another layer, and refuse what does not fit",
    "deepcopy": "a deep copy behaves as its original",
    "pickle": "a layer that was pickled and read back behaves as its original",
    "functional-call": "the layer called with its parameters passed from outside",
    "checkpoint": "activation checkpointing, the non-reentrant variant",
    "checkpoint-reentrant": "activation checkpointing, the reentrant variant",
    "compile": "compiled as one graph, ahead-of-time autograd without code generation",
    "compile-inductor": "compiled as one graph, with code generation",
    "refuse": "a bad argument: the error, no collective, and the group afterwards",
}

# Words of a case line without '=': each sets one field to one value.
_BARE: Final[dict[str, tuple[str, Any]]] = {
    **{dtype: ("dtype", dtype) for dtype in DTYPES},
    "bias": ("bias", True),
    "gather_output": ("gather_output", True),
    "skip_bias_add": ("skip_bias_add", True),
}
# Words with '=', in the order in which a line shows them: key -> field.
_KEYED: Final[dict[str, str]] = {
    "P": "P",
    "batch": "batch",
    "in": "in_features",
    "hidden": "hidden_features",
    "out": "out_features",
    "dim": "dim",
    "input_is_parallel": "input_is_parallel",
    "reduce_output": "reduce_output",
    "x": "x",
    "g": "g",
    "frozen": "frozen",
    "autocast": "autocast",
    "values": "values",
    "world": "world",
    "groups": "groups",
    "procedure": "procedure",
    "fault": "fault",
    "seed": "seed",
}

# Procedures that compute no output to hold against a truth.
WITHOUT_VALUES: Final = frozenset({"init", "state-dict", "refuse"})


class CaseSyntaxError(ValueError):
    """A line that is no case; the message points at the word and says what would be right."""


@dataclass(frozen=True)
class Case:
    """One example of the contract.

    Sizes are those of the whole, unsharded tensors. For the two linear layers X is `[*batch, in_features]`, W is
    `[out_features, in_features]`; a pair is a column layer to `hidden_features`, relu, and a row layer to
    `out_features`; for the four functions the tensor is `[*batch, in_features]` and `dim` the dimension
    that is gathered or scattered. `P` is the size of the tensor-parallel group, `world` the number of ranks that run:
    a multiple of P, whose ranks form world / P groups with different data.

    Raises:
        ValueError: a field that its layer does not have, or a value that no case can have.
    """

    layer: str
    P: int
    in_features: int
    out_features: int = 0
    hidden_features: int = 0
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
        reason = _reason_against(self)
        if reason:
            raise ValueError(reason)

    @cached_property
    def text(self) -> str:
        """The canonical line; `Case.parse(case.text) == case`."""
        return " ".join(_words(self))

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
        return cls(**_parse(line))

    @property
    def linear(self) -> bool:
        """Whether this is one of the two linear layers."""
        return self.layer in LINEAR

    @property
    def has_parameters(self) -> bool:
        """Whether the layer has weights: the two linear layers, and their pair."""
        return self.layer not in FUNCTIONS

    @property
    def rows(self) -> int:
        """Number of rows of the flattened batch: the product of the batch dimensions, 1 without any."""
        product = 1
        for size in self.batch:
            product *= size
        return product

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


def _words(case: Case) -> list[str]:
    words = [case.layer, f"P={case.P}", f"batch={'x'.join(map(str, case.batch)) or 'none'}", f"in={case.in_features}"]
    if case.hidden_features:
        words.append(f"hidden={case.hidden_features}")
    if case.has_parameters:
        words.append(f"out={case.out_features}")
    words.append(case.dtype)
    words += [word for word in ("bias", "gather_output", "skip_bias_add") if getattr(case, word)]
    for key, name in list(_KEYED.items())[5:-1]:
        value, default = getattr(case, name), case.P if name == "world" else _DEFAULTS[name]
        if value != default:
            words.append(f"{key}={value}")
    return [*words, f"seed={case.seed}"]


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
    return _reason_against_sizes(case) or _reason_against_flags(case) or _reason_against_fault(case)


def _reason_against_flags(case: Case) -> str:
    """The combinations that layers refuse are faults of other cases, never cases."""
    if case.bias and case.gather_output and case.skip_bias_add:
        return "gather_output and skip_bias_add with a bias would return a sharded bias with a whole output"
    if case.bias and not case.reduce_output and not case.skip_bias_add:
        return "reduce_output=False with a bias needs skip_bias_add: a partial output has no place for it"
    if case.layer == "pair" and case.values not in ("exact", "small"):
        return f"a pair has no bound for values={case.values}; it has exact and small values"
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


_COLUMN_ONLY, _ROW_ONLY = {"gather_output"}, {"input_is_parallel", "reduce_output"}
_PAIR_ONLY = {"hidden_features"}
_LINEAR_ONLY = {"out_features", "bias", "skip_bias_add", "autocast"} | _COLUMN_ONLY | _ROW_ONLY | _PAIR_ONLY
_FIELDS_OF_OTHERS: Final = {
    "column": _ROW_ONLY | _PAIR_ONLY | {"dim"},
    "row": _COLUMN_ONLY | _PAIR_ONLY | {"dim"},
    "pair": {"dim", "skip_bias_add", "reduce_output"},
    "copy": _LINEAR_ONLY | {"dim"},
    "reduce": _LINEAR_ONLY | {"dim"},
    "gather": _LINEAR_ONLY,
    "scatter": _LINEAR_ONLY,
}


def _parse(line: str) -> dict[str, Any]:
    words = line.split()
    if not words:
        raise CaseSyntaxError("a case line is empty; write for example: row P=2 batch=3 in=4 out=2 float32 bias seed=7")
    given: dict[str, Any] = {"layer": words[0]}
    start = 0
    for position, word in enumerate(words):
        start = line.index(word, start)
        try:
            if position == 0:
                if word not in LAYERS:
                    raise ValueError(f"a case begins with a layer, one of {', '.join(LAYERS)}")
            else:
                name, value = _parse_word(word)
                if name in given:
                    raise ValueError(f"{name} is given twice")
                given[name] = value
        except ValueError as error:
            raise CaseSyntaxError(_pointing_at(line, start, word, str(error))) from None
        start += len(word)
    for key, name in (("P", "P"), ("in", "in_features")):
        if name not in given:
            raise CaseSyntaxError(_pointing_at(line, len(line), " ", f"the word {key}=<size> is missing"))
    try:
        Case(**given)
    except ValueError as error:
        raise CaseSyntaxError(_pointing_at(line, 0, line, str(error))) from None
    return given


def _parse_word(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals:
        if word not in _BARE:
            raise ValueError(f"unknown word {word!r}; words are {', '.join([*_BARE, *(k + '=' for k in _KEYED)])}")
        return _BARE[word]
    if key not in _KEYED:
        raise ValueError(f"unknown key {key!r}; keys are {', '.join(_KEYED)}")
    name = _KEYED[key]
    if name == "batch":
        return name, () if value == "none" else tuple(_integer(key, size) for size in value.split("x"))
    if name in ("input_is_parallel", "reduce_output"):
        if value not in ("True", "False"):
            raise ValueError(f"{key} is True or False, not {value!r}")
        return name, value == "True"
    if name in ("P", "in_features", "hidden_features", "out_features", "dim", "world", "seed"):
        return name, _integer(key, value)
    return name, value


def _integer(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{key} needs a whole number, not {value!r}") from None


def _pointing_at(line: str, start: int, word: str, reason: str) -> str:
    return f"not a case: {reason}\n  {line}\n  {' ' * start}{'^' * len(word)}"
