"""Column-parallel layers of several parts: each part cut by itself, and copies of heads that stay equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import FUSED, Case
from spec.clauses.compare import (
    compare,
    differentiates,
    exact,
    expected_gradients,
    expected_local,
    gradient_placement,
    has_values,
    same_bits,
    shown,
    steps,
)
from spec.clauses.tensors import bias_once, gradient, shards, value
from spec.contract import runs_backward
from spec.numerics import encode
from spec.observation import Array, Observation
from spec.placements import Floats, Sharded, local
from spec.register import Applies, Check, Violation, clause
from spec.truth import Truth

_HELD = {
    "merged": "rank r holds its slice of each part, one below the other",
    "qkv": """rank r holds its slice of the query rows and its key and value heads: above the number K of key heads
    head r // c, which c = P / K neighbouring ranks hold bit for bit alike""",
}
_ORIGINS = {"merged": "vllm-project/vllm-gguf-plugin#103, NVIDIA/Megatron-LM#360", "qkv": ""}


def _of(layer: str, also: Applies) -> Applies:
    return lambda case: case.layer == layer and also(case)


def _copied(case: Case) -> bool:
    return case.layer == "qkv" and case.kv_heads < case.P


def _shards_of(name: str) -> Check:
    return lambda case, truth, seen: shards(case, truth, seen, name)


def _wants(name: str) -> Applies:
    return lambda case: differentiates(case) and name in expected_gradients(case)


for _layer in FUSED:
    clause(
        f"{_layer}.weight.shard",
        {"merged": "Merged weight: the rank's rows of each part", "qkv": "QKV weight: the rank's heads"}[_layer],
        f"Of the master weight [O, I] {_HELD[_layer]}.",
        _of(_layer, lambda case: case.procedure not in ("init", "refuse")),
        origin=_ORIGINS[_layer],
    )(_shards_of("weight"))
    clause(
        f"{_layer}.bias.shard",
        {"merged": "Merged bias: the rank's elements of each part", "qkv": "QKV bias: that of the rank's heads"}[
            _layer
        ],
        f"Of the master bias [O] {_HELD[_layer]}.",
        _of(_layer, lambda case: case.procedure not in ("init", "refuse") and case.bias),
    )(_shards_of("bias"))
    clause(
        f"{_layer}.forward.bias-once",
        f"The bias enters the {_layer} output once",
        "Y_r = X W_r^T + b_r: rank r adds the bias of its own rows, once.",
        _of(_layer, lambda case: exact(case) and case.bias and not case.skip_bias_add),
    )(bias_once)
clause(
    "merged.forward.value",
    "Merged output: this rank's slice of each part",
    """Y_r = X W_r^T + b_r: the slices of the parts side by side, each what the column layer gives that holds this part
    alone.""",
    _of("merged", lambda case: exact(case) and not case.gather_output),
)(value)
clause(
    "merged.forward.gathered",
    "Merged output, gathered: whole parts side by side",
    """With gather_output every rank holds Y_0 | Y_1 | ..., each part whole: the slices ordered by part first, then by
    rank.""",
    _of("merged", lambda case: exact(case) and case.gather_output),
)(value)
clause(
    "qkv.forward.value",
    "QKV output: this rank's query, key and value heads",
    "Y_r = X W_r^T + b_r: this rank's query, key and value heads side by side, on every holder of a head.",
    _of("qkv", exact),
)(value)


def _gradient_of(name: str) -> Check:
    return lambda case, truth, seen: gradient(case, truth, seen, name)


for _layer in FUSED:
    clause(
        f"{_layer}.backward.input-grad-reduced",
        f"{_layer.capitalize() if _layer == 'merged' else 'QKV'}: the input's gradient is summed over parts and ranks",
        """dX = sum_r G_r W_r, replicated: the terms of all parts and all ranks, each once, copies with the upstream
        gradient of their own.""",
        _of(_layer, _wants("x")),
    )(_gradient_of("x"))
clause(
    "merged.backward.weight-grad",
    "Merged: the weight's gradient",
    "dW_r = G_r^T X over the flattened batch: rank r's rows of each part.",
    _of("merged", _wants("weight")),
)(_gradient_of("weight"))
clause(
    "merged.backward.bias-grad",
    "Merged: the bias gradient",
    "db_r = the sum of G_r over the flattened batch: rank r's elements of each part.",
    _of("merged", _wants("bias")),
)(_gradient_of("bias"))


def _rows(case: Case, truth: Truth, seen: Sequence[Observation], name: str, copied: bool) -> Iterator[Violation]:
    """A gradient's rows that other ranks hold too, or those that none does; of a wrong shape the latter say so."""
    first = case.heads * case.head_size // case.P if _copied(case) else None
    whole, placement = truth.runs[0].gradients[name], gradient_placement(case, name)
    for rank, step in steps(seen):
        got, expected = step.gradients.get(name), expected_local(case, placement, whole, rank)
        if got is None or got.shape != expected.shape:
            yield from () if copied else compare(rank, step, f"gradient of {name}", got, expected)
            continue
        mine = slice(first, None) if copied else slice(None, first)
        rows = "key and value rows" if copied else "query rows" if _copied(case) else "rows"
        yield from compare(rank, step, f"gradient of {name}, {rows},", _some(got, mine), expected[mine])


def _some(array: Array, rows: slice) -> Array:
    numbers = array.numbers[rows]
    return Array(encode(numbers, array.dtype).tobytes(), array.dtype, numbers.shape)


def _own_rows(name: str) -> Check:
    return lambda case, truth, seen: _rows(case, truth, seen, name, copied=False)


for _name, _formula in (("weight", "dW_r = G_r^T X"), ("bias", "db_r = the sum of G_r")):
    clause(
        f"qkv.backward.{_name}-grad",
        f"QKV: the {_name}'s gradient",
        f"{_formula} over the flattened batch, for the rows that rank r alone holds.",
        _of("qkv", _wants(_name)),
    )(_own_rows(_name))


@clause(
    "qkv.backward.copies-summed",
    "QKV: the gradient of a head with copies is their sum",
    """Above the number of key heads, the gradient of a key or value head's weight and bias is, on each of the c ranks
    that hold the head, the sum of what these c give: over no other rank, and no mean. Else copies would part.""",
    lambda case: _copied(case) and differentiates(case) and bool(expected_gradients(case) - {"x"}),
)
def copies_summed(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for name in sorted(expected_gradients(case) - {"x"}, reverse=True):
        yield from _rows(case, truth, seen, name, copied=True)


@clause(
    "qkv.backward.copies-equal",
    "QKV: copies have gradients of the same bits",
    """The gradient of a key or value head's weight and bias has the same bits on every rank that holds the head, or
    copies that began equal part with the first step.""",
    lambda case: _copied(case) and has_values(case) and runs_backward(case) and bool(expected_gradients(case) - {"x"}),
)
def copies_equal(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    copies, first = max(case.copies), case.heads * case.head_size // case.P
    for name in sorted(expected_gradients(case) - {"x"}, reverse=True):
        gradients = [entry.steps["first"].gradients.get(name) for entry in seen]
        shared = [_some(array, slice(first, None)) if array and array.shape else array for array in gradients]
        for rank, array in enumerate(shared):
            origin = rank // copies * copies
            if not same_bits(array, shared[origin]):
                what = f"the bits of {name}'s gradient, key and value rows, are not those of rank {origin}"
                yield Violation(seen[rank].rank, "first", what, shown(shared[origin]), shown(array))


@clause(
    "merged.parts.separate",
    "Merged is as separate column layers",
    """Each part of the output and of the parameters' gradients is what the column layer gives that holds this part
    alone, and the input's gradient is the sum of theirs.""",
    _of("merged", lambda case: differentiates(case) and case.procedure == "run"),
)
def separate(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    """By the column layer's own cut of each part, and by NumPy: neither placement nor product is the truth's."""
    data, wanted = truth.data[0], expected_gradients(case)
    assert data.weight is not None
    x, g = (value.reshape(case.rows, value.shape[-1]) for value in (data.x, data.g))
    start, whole, total = 0, dict[str, list[Floats]](output=[], weight=[], bias=[]), 0 * x
    for size in case.parts:
        mine = slice(start, start + size)
        bias = data.bias[mine] if data.bias is not None and not case.skip_bias_add else 0
        whole["output"].append((x @ data.weight[mine].T + bias).reshape(*case.batch, size))
        whole["weight"].append(g[:, mine].T @ x)
        whole["bias"].append(g[:, mine].sum(0))
        total = total + g[:, mine] @ data.weight[mine]
        start += size
    for rank, step in steps(seen):
        got = {"output": step.output} | {name: step.gradients.get(name) for name in wanted - {"x"}}
        for name, array in got.items():
            dim = -1 if name == "output" else 0
            widths = [size if name == "output" and case.gather_output else size // case.P for size in case.parts]
            if array is None or array.shape[dim:][:1] != (sum(widths),):
                continue
            for number, part in enumerate(whole[name]):
                expected = part if widths[number] == case.parts[number] else local(Sharded(dim), part, case.P, rank)
                label = f"part {number} of the {'output' if name == 'output' else f'gradient of {name}'}"
                yield from compare(rank, step, label, _part(array, widths, number, dim), expected)
        if "x" in wanted:
            yield from compare(rank, step, "gradient of x", step.gradients.get("x"), total.reshape(data.x.shape))


def _part(array: Array, widths: Sequence[int], number: int, dim: int) -> Array:
    """One part of a tensor, as a tensor."""
    start = sum(widths[:number])
    index = (..., slice(start, start + widths[number])) if dim == -1 else (slice(start, start + widths[number]),)
    numbers = array.numbers[index]
    return Array(encode(numbers, array.dtype).tobytes(), array.dtype, numbers.shape)
