"""The reference: what JAX computes is what plain NumPy computes, padded sizes and all, in few compilations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.items import items
from conformance.strategies import cases
from spec import Case, Partial, Truth, agreement, inputs
from spec.case import WITHOUT_VALUES
from spec.placements import Floats, bounds
from spec.reference import BUCKETS, compilations, truth

ITEMS = items()
EXACT = [item for item in ITEMS if item.procedure not in (*WITHOUT_VALUES, "precision")]
LAYERS = [item for item in EXACT if item.layer in ("column", "row")]
FUNCTIONS = [item for item in EXACT if item.layer in ("copy", "reduce", "gather", "scatter")]


def integers(value: Floats) -> np.ndarray:
    """Exact whole numbers, of any size."""
    return np.vectorize(int, otypes=[object])(value)


@given(st.data())
def test_layers_agree_with_whole_numbers(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(LAYERS))))
    for given_, values in zip(truth(case).data, truth(case).runs, strict=True):
        x, w, g = (integers(value) for value in (given_.x, given_.weight, given_.g))
        rows, upstream = x.reshape(-1, case.in_features), g.reshape(-1, case.out_features)
        adds = given_.bias is not None and not case.skip_bias_add
        bias = integers(given_.bias) if adds else np.zeros(case.out_features, object)
        output = values.output.sum(0) if isinstance(agreement(case).output.value, Partial) else values.output
        assert np.array_equal((rows @ w.T + bias).reshape(g.shape), output)
        assert np.array_equal((upstream @ w).reshape(x.shape), values.gradients["x"])
        assert np.array_equal(upstream.T @ rows, values.gradients["weight"])
        assert np.array_equal(upstream.sum(0), values.gradients["bias"])


@given(st.data())
def test_functions_agree_with_whole_numbers(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(FUNCTIONS))))
    (given_,), (values,) = truth(case).data, truth(case).runs
    output = given_.x.sum(0) if case.layer == "reduce" else given_.x
    gradient = given_.g.sum(0) if case.layer == "copy" else given_.g
    assert np.array_equal(output, values.output)
    assert np.array_equal(gradient, values.gradients["x"])


@pytest.mark.parametrize("batch", ["none", "0", "3x0", "1", "9", "2x1x3x2"])
@pytest.mark.parametrize("layer", ["column", "row"])
def test_shapes_are_those_of_the_case_whatever_the_padding(layer: str, batch: str) -> None:
    case = Case.parse(f"{layer} P=2 batch={batch} in=10 out=6 float32 bias seed=1")
    (values,) = truth(case).runs
    expected = {"x": (*case.batch, 10), "weight": (6, 10), "bias": (6,)}
    assert expected == {name: value.shape for name, value in values.gradients.items()}
    assert (*case.batch, 6) == values.output.shape


def test_no_rows_give_gradients_of_zero() -> None:
    (values,) = truth(Case.parse("row P=2 batch=0 in=4 out=3 float32 bias seed=1")).runs
    assert not values.gradients["weight"].any()
    assert not values.gradients["bias"].any()


def test_the_terms_of_a_partial_output_are_the_ranks_own() -> None:
    case = Case.parse("row P=4 batch=3 in=8 out=3 float32 reduce_output=False seed=1")
    (given_,), (values,) = truth(case).data, truth(case).runs
    assert given_.weight is not None
    for rank, term in enumerate(values.output):
        mine = bounds(8, 4, rank)
        assert np.array_equal(given_.x[:, mine] @ given_.weight[:, mine].T, term)


@pytest.mark.parametrize("layer", ["column", "row"])
def test_magnitudes_are_the_same_sums_over_absolute_values(layer: str) -> None:
    case = Case.parse(f"{layer} P=2 batch=3 in=4 out=2 float64 bias values=small seed=1")
    real = Case.parse(case.text.replace("small", "gaussian"))
    (given_,), (values,) = truth(real).data, truth(real).runs
    x, w, b, g = (np.abs(value) for value in (given_.x, given_.weight, given_.bias, given_.g))
    expected = {"output": x @ w.T + b, "x": g @ w, "weight": g.T @ x, "bias": g.sum(0)}
    assert sorted(expected) == sorted(values.magnitudes)
    for name, value in expected.items():
        # Two float64 sums of at most four terms; the bound built on them is twice as large as it needs to be.
        assert (np.abs(value - values.magnitudes[name]) <= 8 * 2.0**-53 * value).all()
    assert not truth(case).runs[0].magnitudes


@pytest.mark.parametrize("procedure", sorted(WITHOUT_VALUES))
def test_procedures_that_compute_nothing_have_data_and_no_values(procedure: str) -> None:
    fault = " fault=zero-size" if procedure == "refuse" else ""
    case = Case.parse(f"row P=2 batch=3 in=4 out=3 float32 procedure={procedure}{fault} seed=1")
    assert truth(case).runs == ()
    assert np.array_equal(inputs(case).x, truth(case).data[0].x)
    assert isinstance(truth(case), Truth)


def test_two_runs_have_two_truths() -> None:
    case = Case.parse("row P=2 batch=3 in=4 out=3 float32 procedure=accumulate seed=1")
    one, two = truth(case).runs
    assert not np.array_equal(one.output, two.output)


def test_few_shapes_are_compiled_for_many_cases() -> None:
    """Sizes are padded to a few; 300 cases of all items."""

    @settings(max_examples=300)
    @given(st.data())
    def compute(data: st.DataObject) -> None:
        truth(data.draw(cases(data.draw(st.sampled_from(ITEMS)))))

    before = compilations()  # by whatever ran in this process
    compute()
    assert compilations() - before < 60


def test_padded_sizes_grow() -> None:
    assert sorted(BUCKETS) == list(BUCKETS)
