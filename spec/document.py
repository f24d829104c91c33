"""SPEC.md: the contract for readers, written from the register and the tables that the checks themselves use.

Prose stands in docs/contract.md; where it says {{name}}, a part of this module takes the place: names, levels, texts,
placements, collectives, procedures, faults, limits and the worked examples are asked of `spec`, so that the document
cannot say something else than what is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import frexp
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from spec import clauses as clauses
from spec.case import FUNCTIONS, LAYERS, PROCEDURES, Case
from spec.contract import Agreement, Budget, agreement
from spec.faults import FAULTS, faults_of
from spec.laws import LAWS
from spec.numerics import FORMATS
from spec.placements import Edge, Parts, Placement, Sharded
from spec.register import REGISTER, Clause
from spec.trace import Numbers, rendered, trace
from spec.values import Inputs, amplitude

ROOT = Path(__file__).resolve().parents[1]
SPEC, PROSE = ROOT / "SPEC.md", ROOT / "docs" / "contract.md"
REWRITE = "run python -m spec document --write"


def document() -> str:
    """The text of SPEC.md.

    Raises:
        FileNotFoundError: there is no docs/contract.md, as in an installed package.
        ValueError: the prose asks for a part that does not exist, or leaves one out.
    """
    prose = PROSE.read_text(encoding="utf-8")
    asked = re.findall(r"^\{\{(.+)\}\}$", prose, re.MULTILINE)
    if sorted(asked) != sorted(PARTS):
        raise ValueError(
            f"{PROSE.name} asks for the parts {sorted(asked)}; there are {sorted(PARTS)}, each for one place"
        )
    return linked(re.sub(r"^\{\{(.+)\}\}$", lambda found: PARTS[found[1]](), prose, flags=re.MULTILINE))


def stale(text: str) -> str:
    """What is wrong with a SPEC.md of this text, as a sentence; empty where it is fresh."""
    got, wanted = text.split("\n"), document().split("\n")
    for number, (line, fresh) in enumerate(zip(got, wanted, strict=False), 1):
        if line != fresh:
            return f"SPEC.md is stale: line {number} is {line!r} and should be {fresh!r}; {REWRITE}"
    if len(got) != len(wanted):
        return f"SPEC.md is stale: it has {len(got)} lines and should have {len(wanted)}; {REWRITE}"
    return ""


def linked(text: str) -> str:
    """The text with its threads, written owner/name#number, as links."""
    return re.sub(r"(?<![\w/\[`])([\w.-]+/[\w.-]+)#(\d+)", r"[\1#\2](https://github.com/\1/issues/\2)", text)


_MORE_SIZES: dict[str, dict[str, Any]] = {
    "pair": {"hidden_features": 6},
    "merged": {"parts": (4, 2)},
    "qkv": {"heads": 2, "kv_heads": 1, "head_size": 1},
}


def candidates() -> Iterator[Case]:
    """Small cases of every procedure, layer and flag, plain ones first, to find one that a clause could fail in."""
    flags: tuple[dict[str, Any], ...] = (
        {"bias": True},
        {},
        {"gather_output": True},
        {"input_is_parallel": False},
        {"gather_output": True, "input_is_parallel": False},
        {"reduce_output": False},
        {"frozen": "w"},
    )
    for procedure in PROCEDURES:
        for layer in LAYERS:
            for chosen in flags:
                for P in (2, 1):
                    yield from _candidate(
                        procedure, {"layer": layer, "P": P, "in_features": 4, "batch": (3,), **chosen}
                    )


def _candidate(procedure: str, fields: dict[str, Any]) -> Iterator[Case]:
    """One case, or none where the layer has no such flag or no fault to refuse."""
    fields |= {"out_features": 2} if fields["layer"] not in FUNCTIONS else {}
    fields |= _MORE_SIZES.get(fields["layer"], {})
    fields |= {"values": "positive"} if procedure == "precision" else {}
    try:
        fault = next(iter(faults_of(Case(**fields))), "") if procedure == "refuse" else ""
        yield Case(**fields, procedure=procedure, fault=fault, seed=7)
    except ValueError:
        return


def example(entry: Clause) -> Case | None:
    """The first of the candidates in which an implementation could break the clause."""
    return next((case for case in candidates() if entry.applies(case)), None)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


# Sizes of which no two products are equal, so that a payload's size says which tensor it is.
_SIZES: dict[str, Any] = {"P": 2, "batch": (3,), "in_features": 10, "out_features": 14, "bias": True}
_PAYLOADS = {30: "`[..., I]`", 42: "`[..., O]`", 15: "`[..., I/P]`", 21: "`[..., O/P]`", 33: "`[..., H/P]`"}
_PAYLOADS |= {80: "`[2 D, I]` among c ranks", 8: "`[2 D]` among c ranks"}
_FLAGS: dict[str, tuple[dict[str, Any], ...]] = {
    "column": ({}, {"gather_output": True}),
    "row": ({}, {"input_is_parallel": False}, {"reduce_output": False, "skip_bias_add": True}),
    "merged": ({}, {"gather_output": True}),
    "qkv": ({"kv_heads": 2}, {"kv_heads": 1}),
    "pair": ({}, {"gather_output": True, "input_is_parallel": False}),
}
_LAYER_SIZES: dict[str, dict[str, Any]] = {
    "pair": {"hidden_features": 22},
    "merged": {"parts": (6, 8)},
    "qkv": {"heads": 2, "head_size": 4},
}
_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "column": {"weight": ("O", "I"), "bias": ("O",)},
    "row": {"weight": ("O", "I"), "bias": ("O",)},
    "merged": {"weight": ("O", "I"), "bias": ("O",)},
    "qkv": {"weight": ("O", "I"), "bias": ("O",)},
    "pair": {"weight": ("H", "I"), "bias": ("H",), "weight2": ("O", "H"), "bias2": ("O",)},
}
_SPMD = {"R/R": "I", "R/P": "R", "S/S": "V", "P/R": "P"}


def _edge(edge: Edge) -> str:
    return "/".join("S" if isinstance(side, Sharded) else str(side) for side in (edge.value, edge.gradient))


def _functions() -> str:
    silent = {"copy": "identity", "reduce": "identity", "gather": "own slice", "scatter": "own slice"}
    rows = []
    for layer in FUNCTIONS:
        terms = agreement(Case(layer, 2, 10, batch=(3,)))
        edges = [_edge(edge) for edge in (terms.input, terms.output)]
        passes = [budget[0].kind if budget else silent[layer] for budget in (terms.forward, terms.backward)]
        name = f"`{layer}(dim)`" if layer in ("gather", "scatter") else f"`{layer}`"
        rows.append([name, " to ".join(edges), *passes, " to ".join(_SPMD[edge] for edge in edges)])
    return table(["function", "edge, in to out", "forward", "backward", "in letters of spmd_types"], rows)


def _held(names: Sequence[str], placement: Placement, copies: bool = False) -> str:
    cut = list(names)
    if isinstance(placement, Parts):
        in_copies = ", in copies" * (max(placement.copies) > 1)
        cut[placement.dim] = "(H/P + 2) D" if copies else f"{cut[placement.dim]}/P"
        return f"`[{', '.join(cut)}]` S({placement.dim}) of each part{in_copies}"
    if isinstance(placement, Sharded):
        cut[placement.dim] += "/P"
    return f"`[{', '.join(cut)}]` {placement}"


def _copied(terms: Agreement) -> bool:
    return any(max(held.copies) > 1 for held in terms.parameters.values() if isinstance(held, Parts))


def _listed(budgets: tuple[Budget, ...]) -> str:
    return "; ".join(f"one {entry.kind} of {_PAYLOADS[entry.bytes // 4]}" for entry in budgets) or "none"


def _layer(layer: str) -> str:
    sizes = _SIZES | _LAYER_SIZES.get(layer, {})
    terms = [agreement(Case(layer=layer, **sizes, **flags)) for flags in _FLAGS[layer]]
    frozen = [agreement(Case(layer=layer, frozen="x", **sizes, **flags)) for flags in _FLAGS[layer]]
    x, y = ("...", "I"), ("...", "O")
    rows = [
        [f"{name}, and its gradient", *(_held(shape, t.parameters[name], _copied(t)) for t in terms)]
        for name, shape in _SHAPES[layer].items()
    ]
    rows += [
        ["input X", *(_held(x, t.input.value) for t in terms)],
        ["gradient of X", *(_held(x, t.input.gradient) for t in terms)],
        ["output Y", *(_held(y, t.output.value, _copied(t)) for t in terms)],
        ["upstream gradient G", *(_held(y, t.output.gradient, _copied(t)) for t in terms)],
        ["returns", *("(Y without b, b)" if t.returns_bias else "Y" for t in terms)],
        ["collectives, forward", *(_listed(t.forward) for t in terms)],
        ["collectives, backward", *(_listed(t.backward) for t in terms)],
        ["the same, X needs no gradient", *(_listed(t.backward) for t in frozen)],
    ]
    heads = [", ".join(f"`{name}={value}`" for name, value in flags.items()) or "no flags" for flags in _FLAGS[layer]]
    heads = ["P <= K", "P > K"] if layer == "qkv" else heads
    return table(["on rank r", *heads], rows)


@dataclass(frozen=True)
class Letters:
    """A sum of products of letters, in the order in which it was written down."""

    terms: tuple[str, ...]

    def __add__(self, other: Letters) -> Letters:
        return Letters(self.terms + other.terms)

    def __mul__(self, other: Letters) -> Letters:
        return Letters(tuple(f"{a}*{b}" for a in self.terms for b in other.terms))

    def __str__(self) -> str:
        return " + ".join(self.terms)


def letters(case: Case) -> Inputs:
    """Letters for a layer with one row and two outputs: X is x1, x2, ..., W is a, b, ..., b is s, t, and G is u, v."""
    w = case.out_features * case.in_features

    def named(names: Iterable[str], *shape: int) -> Numbers:
        return np.array([Letters((name,)) for name in names], object).reshape(shape)

    return Inputs(
        x=named((f"x{i + 1}" for i in range(case.in_features)), *case.batch, case.in_features),
        weight=named(ascii_lowercase[:w], case.out_features, case.in_features),
        bias=named("st", case.out_features),
        g=named("uv", *case.batch, case.out_features),
    )


def by_hand(layer: str) -> Case:
    """The case of a layer's worked example."""
    return Case.parse(f"{layer} P=2 batch=1 in=4 out=2 float32 bias values=small seed=7")


def _by_hand(layer: str) -> str:
    case = by_hand(layer)
    worked = trace(case, letters(case))
    blocks = (f"```text\n{rendered(sections)}\n```" for sections in (worked.forward, worked.backward))
    return "\n\n".join([*blocks, f"The same in numbers:\n\n    python -m spec trace '{case}'"])


def _power(value: float) -> str:
    mantissa, exponent = frexp(value)
    assert mantissa == 0.5, "every constant of a format is a power of two"
    return f"2^{exponent - 1}"


def _formats() -> str:
    rows = []
    for dtype, form in FORMATS.items():
        case = Case("row", 2, 16, 6, batch=(3,), dtype=dtype, bias=True)
        constants = (form.roundoff, form.accumulator, form.tiny, float(form.exact))
        rows.append([dtype, *map(_power, constants), str(amplitude(case))])
    return table(["dtype", "u", "u_acc", "tiny, the smallest subnormal", "integers to", "a, if terms = 16"], rows)


def _procedures() -> str:
    return table(["procedure", "what runs"], [(f"`{name}`", text) for name, text in PROCEDURES.items()])


def _faults() -> str:
    when = {"build": "built", "call": "called"}
    rows = [
        (f"`{name}`", fault.title, ", ".join(fault.layers), when[fault.at], " or ".join(fault.types))
        for name, fault in FAULTS.items()
    ]
    return table(["fault", "what is wrong", "layers", "refused when", "with a"], rows)


def _clauses() -> str:
    groups: dict[str, list[Clause]] = {}
    for entry in REGISTER.values():
        groups.setdefault(entry.name.split(".")[0], []).append(entry)
    parts = []
    for name, entries in groups.items():
        parts.append(f"### {name}")
        for entry in entries:
            parts.append(f"#### `{entry.name}` ({entry.level})\n\n**{entry.title}.** {entry.text}")
            case = example(entry)
            after = [f"Could fail in `{case}`."] * bool(case) + [f"Origin: {entry.origin}."] * bool(entry.origin)
            parts.append(" ".join(after))
    return "\n\n".join(part for part in parts if part)


def _laws() -> str:
    return "\n\n".join(
        f"#### `{law.name}` ({law.level})\n\n**{law.title}.** {law.text} Resolution: {law.resolution:g}."
        for law in LAWS.values()
    )


PARTS: dict[str, Callable[[], str]] = {
    "functions": _functions,
    "column": partial(_layer, "column"),
    "row": partial(_layer, "row"),
    "pair": partial(_layer, "pair"),
    "merged": partial(_layer, "merged"),
    "qkv": partial(_layer, "qkv"),
    "column by hand": partial(_by_hand, "column"),
    "row by hand": partial(_by_hand, "row"),
    "formats": _formats,
    "procedures": _procedures,
    "faults": _faults,
    "clauses": _clauses,
    "laws": _laws,
}
