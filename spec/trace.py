"""One case worked through by hand: whole tensors, each rank's shards and terms, output, gradients, collectives.

The arithmetic is NumPy on the placements of the contract, so it runs on numbers and on letters alike; the numbers are
then held against the JAX reference, which never shards. Two derivations, one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec.bounds import bound
from spec.case import COLUMN_LIKE, EXACT, FUSED, Case
from spec.clauses.compare import expected_gradients, has_values
from spec.contract import Budget, agreement, cut_of_outputs, needs_gradient, runs_backward
from spec.placements import Edge, Partial, Placement, Replicated, Sharded, local, unshard
from spec.values import Inputs, inputs, runs

Numbers = NDArray[Any]  # float64, or any objects that add and multiply
LAST = Sharded(-1)
SYMBOLS = {"weight": "W", "bias": "b", "weight2": "W2", "bias2": "b2"}


@dataclass(frozen=True)
class Row:
    """A labelled tensor; `placement` where it is a whole one."""

    label: str
    value: Numbers
    placement: Placement | Edge | None = None


@dataclass(frozen=True)
class Trace:
    """One run of a case in rows for people, and its whole output and gradients by name for the check."""

    forward: tuple[tuple[str, tuple[Row, ...]], ...]
    backward: tuple[tuple[str, tuple[Row, ...]], ...]
    results: Mapping[str, Numbers]


def trace(case: Case, data: Inputs) -> Trace:
    """Work one run of a case through, on the given tensors."""
    if case.layer in COLUMN_LIKE:
        return _column(case, data)
    return {"row": _row, "pair": _pair}.get(case.layer, _function)(case, data)


def _over(symbols: str, P: int, sign: str = " + ") -> str:
    """T_0 + T_1, and T_0 + ... + T_7 where there are more than two."""
    every = [symbols.replace("r", str(r)) for r in range(P)]
    return sign.join(every if P <= 2 else [every[0], "...", every[-1]])


def _flat(value: Numbers, case: Case) -> Numbers:
    return value.reshape(case.rows, value.shape[-1])


def _whole(case: Case, data: Inputs) -> tuple[str, tuple[Row, ...]]:
    terms = agreement(case)
    rows = [Row("X", data.x, terms.input.value)]
    rows += [Row(SYMBOLS[name], value, terms.parameters[name]) for name, value in data.parameters.items()]
    if runs_backward(case):
        rows.append(Row("G", data.g, terms.output.gradient))
    return "whole tensors, and how the ranks hold them", tuple(rows)


def _parameters(case: Case, data: Inputs, r: int) -> tuple[Numbers, Numbers | None, list[Row]]:
    """Rank r's weight and bias, and their rows."""
    placed = agreement(case).parameters
    assert data.weight is not None
    weight = local(placed["weight"], data.weight, case.P, r)
    rows = [Row(f"W_{r}", weight)]
    bias = None
    if case.bias and data.bias is not None:
        bias = local(placed["bias"], data.bias, case.P, r)
        rows.append(Row(f"b_{r}" if placed["bias"] != Replicated() else "b", bias))
    return weight, bias, rows


def _column(case: Case, data: Inputs) -> Trace:
    x, g = _flat(data.x, case), _flat(data.g, case)
    forward, backward = [_whole(case, data)], []
    outputs, terms, weights, biases = [], [], [], []
    held, slices = cut_of_outputs(case)
    shared = max(case.copies) > 1
    for r in range(case.P):
        weight, bias, rows = _parameters(case, data, r)
        mine = local(slices, g, case.P, r)
        added = bias is not None and not case.skip_bias_add
        outputs.append((x @ weight.T + bias if added else x @ weight.T).reshape(*case.batch, len(weight)))
        formula = f"Y_{r} = X W_{r}^T" + f" + b_{r}" * added
        forward.append((f"rank {r} holds and computes", (*rows, Row(formula, outputs[r]))))
        terms.append((mine @ weight).reshape(data.x.shape))
        weights.append(mine.T @ x)
        biases.append(mine.sum(0))
        own = [Row(f"G_{r}", mine.reshape(*case.batch, len(weight)))]
        own += _wanted(case, {"x": Row(f"G_{r} W_{r}, its term of dX", terms[r])})
        own += _wanted(case, {"weight": Row(_told(shared, f"G_{r}^T X", f"dW_{r}"), weights[r])})
        own += _wanted(case, {"bias": Row(_told(shared, f"sum of the rows of G_{r}", f"db_{r}"), biases[r])})
        backward.append((f"rank {r}, backward", tuple(own)))
    if shared:
        weights, biases = _summed_copies(case, weights), _summed_copies(case, biases)
        totals = [{"weight": Row(f"dW_{r}", weights[r]), "bias": Row(f"db_{r}", biases[r])} for r in range(case.P)]
        sums = tuple(row for rows in totals for row in _wanted(case, rows))
        backward.append(("key and value rows summed over the ranks that hold them", sums))
    output, dx = unshard(slices, outputs), unshard(Partial(), terms)
    how = "gathered, whole on every rank" if case.gather_output else "left sharded, rank r keeps Y_r"
    by_part = ", part by part" * (case.layer in FUSED)
    whole = Row(f"Y = {_over('Y_r', case.P, ' | ')}{by_part}", output, agreement(case).output.value)
    forward.append((f"output, {how}", (whole,)))
    total = Row(f"dX = {_over('G_r W_r', case.P)}", dx, agreement(case).input.gradient)
    backward.append(("gradient of the input, summed over ranks", tuple(_wanted(case, {"x": total}))))
    return _traced(case, forward, backward, (output, dx, unshard(held, weights), unshard(held, biases)))


def _told(term: bool, formula: str, name: str) -> str:
    return f"{formula}, its term of {name}" if term else f"{name} = {formula}"


def _summed_copies(case: Case, own: Sequence[Numbers]) -> list[Numbers]:
    """The ranks' own gradients with those of rows that neighbours hold too summed over these."""
    first, copies = case.heads * case.head_size // case.P, max(case.copies)
    blocks = [range(r // copies * copies, r // copies * copies + copies) for r in range(case.P)]
    return [np.concatenate([own[r][:first], sum(own[s][first:] for s in blocks[r])]) for r in range(case.P)]


def _row(case: Case, data: Inputs) -> Trace:
    x, g = _flat(data.x, case), _flat(data.g, case)
    forward, backward = [_whole(case, data)], []
    terms, slices, weights = [], [], []
    db = g.sum(0)
    for r in range(case.P):
        weight, _, rows = _parameters(case, data, r)
        mine = local(LAST, x, case.P, r)
        terms.append((mine @ weight.T).reshape(data.g.shape))
        held = Row(f"X_{r}", mine.reshape(*case.batch, mine.shape[-1]))
        forward.append((f"rank {r} holds and computes", (held, *rows, Row(f"T_{r} = X_{r} W_{r}^T", terms[r]))))
        slices.append((g @ weight).reshape(held.value.shape))
        weights.append(g.T @ mine)
        own = _wanted(case, {"x": Row(f"dX_{r} = G W_{r}", slices[r])})
        own += _wanted(case, {"weight": Row(f"dW_{r} = G^T X_{r}", weights[r])})
        own += _wanted(case, {"bias": Row("db = sum of the rows of G", db)})
        backward.append((f"rank {r}, backward", tuple(own)))
    output, dx = unshard(Partial(), terms), unshard(LAST, slices)
    added = data.bias is not None and not case.skip_bias_add
    if data.bias is not None and added:
        output = output + data.bias
    how = "the sum, whole on every rank" if case.reduce_output else "left partial, rank r keeps T_r; their sum is Y"
    label = f"Y = {_over('T_r', case.P)}" + " + b" * added
    forward.append((f"output, {how}", (Row(label, output, agreement(case).output.value),)))
    how = "left sharded, rank r keeps dX_r" if case.input_is_parallel else "gathered, whole on every rank"
    total = Row(f"dX = {_over('dX_r', case.P, ' | ')}", dx, agreement(case).input.gradient)
    backward.append((f"gradient of the input, {how}", tuple(_wanted(case, {"x": total}))))
    value = output if case.reduce_output else np.stack(terms)
    return _traced(case, forward, backward, (value, dx, unshard(Sharded(1), weights), db))


def _pair(case: Case, data: Inputs) -> Trace:
    forward, backward, placed = [_whole(case, data)], [], agreement(case).parameters
    terms: list[Numbers] = []
    made: list[dict[str, Row]] = []
    db2 = Row("db2 = sum of the rows of G", _flat(data.g, case).sum(0))
    for r in range(case.P):
        rows, between, gradients = _pair_on_rank(case, data, r)
        terms.append(rows[-1].value)
        made.append(gradients)
        forward.append((f"rank {r} holds and computes", rows))
        backward.append((f"rank {r}, backward", (between, *_wanted(case, {**gradients, "bias2": db2}))))
    output = unshard(Partial(), terms) + data.parameters.get("bias2", 0)
    label = f"Y = {_over('T_r', case.P)}" + " + b2" * case.bias
    forward.append(("output, the sum, whole on every rank", (Row(label, output, agreement(case).output.value),)))
    cuts = {"x": Partial(), "weight": placed["weight"], "bias": Sharded(0), "weight2": placed["weight2"]}
    whole = [unshard(cut, [gradients[name].value for gradients in made]) for name, cut in cuts.items()]
    total = Row(f"dX = {_over('dH_r W_r', case.P)}", whole[0], agreement(case).input.gradient)
    backward.append(("gradient of the input, summed over ranks", tuple(_wanted(case, {"x": total}))))
    return _traced(case, forward, backward, (output, *whole, db2.value))


def _pair_on_rank(case: Case, data: Inputs, r: int) -> tuple[tuple[Row, ...], Row, dict[str, Row]]:
    """What rank r holds and computes, its term last; the gradient between the two layers; and its gradients by name."""
    x, g, placed = _flat(data.x, case), _flat(data.g, case), agreement(case).parameters
    own = {name: local(placed[name], value, case.P, r) for name, value in data.parameters.items()}
    before = x @ own["weight"].T + own.get("bias", 0)
    hidden, dh = np.maximum(before, 0), (g @ own["weight2"]) * (before > 0)
    rows = [Row(f"{SYMBOLS[name]}_{r}" if name != "bias2" else "b2", value) for name, value in own.items()]
    rows.insert(1 + case.bias, Row(f"H_{r} = relu(X W_{r}^T{f' + b_{r}' * case.bias})", hidden))
    rows.append(Row(f"T_{r} = H_{r} W2_{r}^T", (hidden @ own["weight2"].T).reshape(data.g.shape)))
    gradients = {
        "x": Row(f"dH_{r} W_{r}, its term of dX", (dh @ own["weight"]).reshape(data.x.shape)),
        "weight": Row(f"dW_{r} = dH_{r}^T X", dh.T @ x),
        "bias": Row(f"db_{r} = sum of the rows of dH_{r}", dh.sum(0)),
        "weight2": Row(f"dW2_{r} = G^T H_{r}", g.T @ hidden),
    }
    return tuple(rows), Row(f"dH_{r} = G W2_{r} where H_{r} > 0", dh), gradients


def _function(case: Case, data: Inputs) -> Trace:
    terms, P = agreement(case), case.P
    y = data.x.sum(0) if case.layer == "reduce" else data.x
    dx = data.g.sum(0) if case.layer == "copy" else data.g
    forward, backward = [_whole(case, data)], []
    for r in range(P):
        held, made = local(terms.input.value, data.x, P, r), local(terms.output.value, y, P, r)
        forward.append((f"rank {r}", (Row(f"X_{r}", held), Row(f"Y_{r}, its output", made))))
        upstream, gradient = local(terms.output.gradient, data.g, P, r), local(terms.input.gradient, dx, P, r)
        rows = _wanted(case, {"x": Row(f"dX_{r}, its gradient of the input", gradient)})
        backward.append((f"rank {r}, backward", (Row(f"G_{r}", upstream), *rows)))
    return _traced(case, forward, backward, (y, dx))


def _wanted(case: Case, rows: Mapping[str, Row]) -> list[Row]:
    return [row for name, row in rows.items() if name in expected_gradients(case)]


Sections = Sequence[tuple[str, tuple[Row, ...]]]


def _traced(case: Case, forward: Sections, backward: Sections, results: Sequence[Numbers]) -> Trace:
    wanted = {"output", *expected_gradients(case)}
    named = zip(("output", "x", *SYMBOLS), results, strict=False)
    kept = tuple(section for section in backward if section[1]) if runs_backward(case) else ()
    return Trace(tuple(forward), kept, {name: value for name, value in named if name in wanted})


def rendered(sections: Sections) -> str:
    """Sections as text: a heading each, then label, shape, placement and value in columns."""
    rows = [row for _, section in sections for row in section]
    cells = {id(row): (row.label, str(list(row.value.shape)), str(row.placement or "")) for row in rows}
    widths = [max(len(cell[i]) for cell in cells.values()) for i in range(3)]
    lines: list[str] = []
    for title, section in sections:
        lines.append(title)
        for row in section:
            start = "  " + "  ".join(c.ljust(w) for c, w in zip(cells[id(row)], widths, strict=True)) + "  "
            lines.append(start + _shown(row.value, len(start)))
    return "\n".join(lines)


def _shown(value: Numbers, indent: int) -> str:
    words = np.array([_word(element) for element in value.flat], object).reshape(value.shape)
    width = max((len(word) for word in words.flat), default=0)
    return np.array2string(
        words,
        formatter={"all": lambda word: str(word).rjust(width)},
        separator=", ",
        max_line_width=10_000,
        threshold=36,
        edgeitems=2,
        prefix=" " * indent,
    )


def _word(element: Any) -> str:
    if not isinstance(element, float):
        return str(element)
    return str(int(element)) if element.is_integer() else f"{element:.6g}"


def collectives(case: Case) -> str:
    """Both passes' collectives with the bytes that each rank puts in."""

    def listed(budgets: tuple[Budget, ...]) -> str:
        return "; ".join(map(str, budgets)) or "none"

    terms = agreement(case)
    return (
        "collectives, with the bytes that each rank puts in\n"
        f"  forward   {listed(terms.forward)}\n  backward  {listed(terms.backward)}"
    )


def traced(case: Case) -> str:
    """The whole trace of a case as text, the first group's data, held against the reference.

    Raises:
        ValueError: the case computes nothing.
    """
    if not has_values(case):
        raise ValueError(f"procedure={case.procedure} computes no values to trace; procedure=run does")
    parts = [str(case)]
    traces = [trace(case, inputs(case, 0, run)) for run in range(runs(case))]
    for number, one in enumerate(traces, 1):
        parts += [f"run {number} of {len(traces)}"] * (len(traces) > 1)
        parts += [rendered(one.forward), rendered(one.backward) if one.backward else ""]
    parts += ["\n".join(_remarks(case)), collectives(case), f"reference: {verdict(case, traces)}"]
    return "\n\n".join(part for part in parts if part)


def _remarks(case: Case) -> list[str]:
    """What the rows do not say: who gets no gradient and why, what a second run adds, which other groups there are."""
    words, remarks = {"x": "input", "w": "weight", "b": "bias"}, []
    if case.procedure in ("no-grad", "inference"):
        return [f"no gradients: procedure={case.procedure}"]
    present = set("xwb") if case.bias else set("xw") if case.has_parameters else set("x")
    remarks += [f"no gradient of the {words[letter]}: frozen" for letter in case.frozen if letter in present]
    if case.skip_bias_add and "bias" in needs_gradient(case):
        remarks.append("no gradient of the bias: skip_bias_add leaves it to the caller")
    if case.procedure == "retain":
        remarks.append("after the second backward every gradient is twice this")
    if case.procedure == "accumulate" and case.has_parameters:
        remarks.append("after both runs the gradients of the parameters are the sums of the two")
    if case.world > case.P:
        remarks.append(f"this is the first of {case.world // case.P} groups; the others have data of their own")
    return remarks


def _wide(case: Case) -> Case:
    return replace(case, dtype="float64", autocast="") if case.linear else replace(case, dtype="float64")


def verdict(case: Case, traces: Sequence[Trace]) -> str:
    """One sentence: whether the JAX reference, which never shards, gives the same values."""
    try:
        from spec.reference import truth
    except ModuleNotFoundError as error:
        return f"not asked, {error.name} is not installed"
    for one, true in zip(traces, truth(case).runs, strict=True):
        for name, value in one.results.items():
            expected = true.output if name == "output" else true.gradients[name]
            limit = 0.0 if case.values in EXACT else bound(_wide(case), name, true.magnitudes[name])
            if value.shape != expected.shape or not (np.abs(value - expected) <= limit).all():
                return f"DIFFERENT {name}, which is a fault of this program: {expected.tolist()}"
    return "the same output and gradients from one device, unsharded"
