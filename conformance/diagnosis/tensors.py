"""The tensors of one step, what each should be, and what it is made of: the ranks' terms, their slices, the bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.diagnosis.parts import Layout
from spec import Case, Inputs, Observation, Partial, Placement, Sharded, Truth, agreement
from spec.case import COLUMN_LIKE, FUSED
from spec.clauses.compare import expected_gradients, gradient_placement
from spec.contract import cut_of_outputs
from spec.placements import Floats, Parts, bounds, local


@dataclass(frozen=True)
class Tensor:
    """One tensor of one step on all ranks of a group.

    Attributes:
        name: output, weight, bias, or "gradient of x" and the like.
        got, expected: by rank; None where there is no tensor.
        terms: what each rank contributes, where the tensor is a sum over ranks.
        bias: by rank, what the bias adds to the output.
        whole: the unsharded tensor, where ranks hold slices of it or have joined it from slices.
        dim: the dimension of those slices.
        layout: of a layer of several parts how this tensor lies on the ranks.
    """

    name: str
    got: tuple[Floats | None, ...]
    expected: tuple[Floats, ...]
    terms: tuple[Floats, ...] = ()
    bias: tuple[Floats, ...] = ()
    whole: Floats | None = None
    dim: int = -1
    layout: Layout | None = None

    @property
    def sliced(self) -> bool:
        """Whether each rank holds a slice, rather than all slices joined."""
        return self.whole is not None and self.expected[0].shape != self.whole.shape

    @property
    def wrong(self) -> list[int]:
        """The ranks whose tensor is not as it should be."""
        return [
            r
            for r, (got, expected) in enumerate(zip(self.got, self.expected, strict=True))
            if got is None or not np.array_equal(got, expected)
        ]


def tensors(case: Case, truth: Truth, seen: Sequence[Observation], step: str = "first") -> Iterator[Tensor]:
    """The tensors of a step in the order of causes: parameters, output, gradients.

    They are held against the first run's truth; a tensor that was not looked at is left out.
    """
    data, values, terms = truth.data[0], truth.runs[0], agreement(case)
    steps = [entry.steps[step] for entry in seen]
    for name, placement in terms.parameters.items():
        got = tuple(s.parameters[name].numbers if name in s.parameters else None for s in steps)
        yield _placed(case, name, got, placement, data.parameters[name])
    got = tuple(None if s.output is None else s.output.numbers for s in steps)
    yield _output(case, data, got, values.output)
    for name in ("x", *terms.parameters):
        if name not in expected_gradients(case) or all(name not in s.gradients for s in steps):
            continue
        arrays = [s.gradients.get(name) for s in steps]
        got = tuple(None if array is None else array.numbers for array in arrays)
        yield _gradient(case, data, name, got, values.gradients[name])


def _placed(case: Case, name: str, got: tuple[Floats | None, ...], placement: Placement, whole: Floats) -> Tensor:
    expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
    if isinstance(placement, Sharded):
        layout = Layout(placement, whole) if isinstance(placement, Parts) else None
        return Tensor(name, got, expected, whole=whole, dim=placement.dim % whole.ndim, layout=layout)
    return Tensor(name, got, expected)


def _output(case: Case, data: Inputs, got: tuple[Floats | None, ...], whole: Floats) -> Tensor:
    placement, last = agreement(case).output.value, max(whole.ndim - 1, 0)
    terms = _terms(case, data, "output")
    if isinstance(placement, Partial):
        return Tensor("output", got, tuple(whole[r] for r in range(case.P)))
    expected = tuple(local(placement, whole, case.P, r) for r in range(case.P))
    bias = _bias(case, data, placement, expected)
    layout = Layout(_parts(case, -1), whole[..., _once(case)]) if case.layer in FUSED else None
    if isinstance(placement, Sharded):
        return Tensor("output", got, expected, (), bias, whole, placement.dim % whole.ndim, layout)
    if case.gather_output and not terms:
        return Tensor("output", got, expected, (), bias, whole, last, layout)
    if case.layer == "gather":
        return Tensor("output", got, expected, whole=whole, dim=case.dim % whole.ndim)
    return Tensor("output", got, expected, terms, bias)


def _gradient(case: Case, data: Inputs, name: str, got: tuple[Floats | None, ...], whole: Floats) -> Tensor:
    tensor = _placed(case, f"gradient of {name}", got, gradient_placement(case, name), whole)
    if name != "x":
        if tensor.layout and case.P > 1 and max(case.copies) > 1:
            tensor = replace(tensor, layout=replace(tensor.layout, own=_own_terms(case, data, name)))
        return tensor
    joined = case.layer == "scatter" or (case.layer == "row" and not case.input_is_parallel)
    if joined:
        dim = case.dim % whole.ndim if case.layer == "scatter" else whole.ndim - 1
        return Tensor(tensor.name, got, tensor.expected, whole=whole, dim=dim)
    return Tensor(tensor.name, got, tensor.expected, _terms(case, data, "x"), (), tensor.whole, tensor.dim)


def _bias(case: Case, data: Inputs, placement: Placement, expected: Sequence[Floats]) -> tuple[Floats, ...]:
    bias = data.bias2 if case.layer == "pair" else data.bias
    if bias is None or case.skip_bias_add:
        return ()
    held = agreement(case).parameters["bias2" if case.layer == "pair" else "bias"]
    own = [local(held, bias, case.P, r) if isinstance(placement, Sharded) else bias for r in range(case.P)]
    return tuple(np.broadcast_to(value, e.shape) for value, e in zip(own, expected, strict=True))


def _terms(case: Case, data: Inputs, name: str) -> tuple[Floats, ...]:
    """What each rank contributes to a tensor that is a sum over ranks; nothing for any other tensor."""
    if case.P == 1:
        return ()
    moved: Mapping[tuple[str, str], Floats] = {("reduce", "output"): data.x, ("copy", "x"): data.g}
    if (case.layer, name) in moved:
        return tuple(moved[case.layer, name])
    if case.layer == "pair":
        return _terms_of_pair(case, data, name)
    assert data.weight is not None or not case.linear
    if case.layer == "row" and name == "output" and case.reduce_output:
        cuts = [bounds(case.in_features, case.P, r) for r in range(case.P)]
        return tuple(data.x[..., cut] @ data.weight[:, cut].T for cut in cuts)
    if case.layer in COLUMN_LIKE and name == "x":
        held = agreement(case).parameters["weight"]
        return tuple(_upstream(case, data, r) @ local(held, data.weight, case.P, r) for r in range(case.P))
    return ()


def _upstream(case: Case, data: Inputs, r: int) -> Floats:
    """The upstream gradient of what rank r computes."""
    return local(cut_of_outputs(case)[1], data.g, case.P, r)


def _own_terms(case: Case, data: Inputs, name: str) -> tuple[Floats, ...]:
    """What each rank gives to the gradient of its rows."""
    x = data.x.reshape(case.rows, case.in_features)
    upstream = [_upstream(case, data, r).reshape(case.rows, -1 if case.rows else 0) for r in range(case.P)]
    return tuple(g.T @ x if name == "weight" else g.sum(0) for g in upstream)


def _parts(case: Case, dim: int) -> Parts:
    return Parts(dim, case.sizes, case.copies)


def _once(case: Case) -> Any:
    """The columns of an output with copies that make it whole, each once."""
    widths = zip(case.sizes, case.copies, strict=True)
    first = [np.arange(size * c).reshape(case.P // c, c, -1)[:, 0].ravel() for size, c in widths]
    starts = np.cumsum([0, *(size * c for size, c in zip(case.sizes, case.copies, strict=True))])
    return np.concatenate([start + columns for start, columns in zip(starts, first, strict=False)])


def _terms_of_pair(case: Case, data: Inputs, name: str) -> tuple[Floats, ...]:
    assert data.weight is not None
    assert data.weight2 is not None
    hidden = data.x @ data.weight.T + (0 if data.bias is None else data.bias)
    cuts = [bounds(case.hidden_features, case.P, r) for r in range(case.P)]
    if name == "output":
        return tuple(np.maximum(hidden[..., cut], 0) @ data.weight2[:, cut].T for cut in cuts)
    before = (data.g @ data.weight2) * (hidden > 0)
    return tuple(before[..., cut] @ data.weight[cut] for cut in cuts)
