"""Element values: fixed by the case's line, distinct where it matters, and as large as exact sums allow, no larger."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.items import items
from conformance.strategies import cases
from spec import Case, Inputs, Partial, Sharded, agreement, amplitude, inputs
from spec.case import FUNCTIONS, LINEAR
from spec.numerics import FORMATS
from spec.placements import Floats, local
from spec.reference import truth
from spec.values import _repeats, longest_sum

ITEMS = items()
DTYPES = ("float32", "float64", "bfloat16", "float16")
ARITHMETIC: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# One more than the limit, from values one larger than the amplitude: x, weight, bias.
TOO_LARGE = [
    ("float32", [4096], [4096], 1),
    ("float32", [2048] * 4, [2048] * 4, 1),
    ("float16", [45], [45], 24),
    ("float16", [23] * 4, [23, 23, 23, 20], 2),
    ("bfloat16", [16], [16], 1),
    ("bfloat16", [8] * 4, [8] * 4, 1),
    ("float64", [94906266], [94906265], 23584503),
]


def tensors(data: Inputs) -> dict[str, Floats]:
    named = {"x": data.x, "weight": data.weight, "bias": data.bias, "g": data.g}
    return {name: value for name, value in named.items() if value is not None}


def added_in(dtype: str, terms: list[tuple[float, float]]) -> float:
    """The sum of products, every product and every sum rounded to the dtype by the dtype's own arithmetic."""
    number = ARITHMETIC[dtype]
    total = number(0)
    for a, b in terms:
        total = number(total + number(number(a) * number(b)))
    return float(total)


@st.composite
def layers(draw: Any, dtypes: tuple[str, ...] = DTYPES) -> Case:
    """A column or row case of exact values."""
    P, dtype = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from(dtypes))
    sizes = {name: P * draw(st.integers(1, 4)) for name in ("in_features", "out_features")}
    layer, batch = draw(st.sampled_from(("column", "row"))), draw(st.sampled_from(((), (1,), (3,), (2, 4), (0,))))
    procedure = draw(st.sampled_from(("run", "accumulate")))
    seed = draw(st.integers(0, 999))
    return Case(layer, P, **sizes, batch=batch, dtype=dtype, bias=True, procedure=procedure, seed=seed)


@given(layers())
def test_the_amplitude_is_the_largest_that_keeps_every_sum_exact(case: Case) -> None:
    a, terms, limit = amplitude(case), longest_sum(case), FORMATS[case.dtype].exact
    assert terms * a * a + a <= limit < terms * (a + 1) ** 2 + (a + 1)
    assert max(case.in_features, case.out_features, case.rows) <= terms


@given(st.sampled_from(("copy", "reduce", "gather", "scatter")), st.sampled_from(DTYPES), st.sampled_from((1, 2, 4)))
def test_the_amplitude_of_a_function_keeps_the_sum_over_ranks_exact(layer: str, dtype: str, P: int) -> None:
    a, limit = amplitude(Case(layer, P, 4, dtype=dtype)), min(FORMATS[dtype].exact, P * 2**20)
    assert P * a <= limit < P * (a + 1)


def test_sums_too_long_for_any_exact_value_are_refused() -> None:
    line = "row P=2 batch=1 in=256 out=1 bfloat16 seed=0"
    with pytest.raises(ValueError, match=f"^{line}: sums of 256 terms leave the exact integers of bfloat16 "):
        amplitude(Case.parse(line))
    assert amplitude(Case.parse(line.replace("256", "254"))) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_limit_any_order_of_summation_gives_the_integer(dtype: str) -> None:
    """Values at the amplitude, and drawn ones, added up in the dtype's own arithmetic in ten orders."""
    for terms in (1, 2, 3, 7, 12):
        case = Case.parse(f"row P=1 batch=1 in={terms} out=1 {dtype} bias seed={terms}")
        a, drawn = amplitude(case), inputs(case)
        assert drawn.weight is not None
        assert drawn.bias is not None
        largest = [(a, a)] * terms + [(a, 1)]
        given_ = [*zip(drawn.x[0], drawn.weight[0], strict=True), (drawn.bias[0], 1)]
        for products in (largest, given_):
            expected = sum(int(x) * int(w) for x, w in products)
            for seed in range(10):
                order = np.random.default_rng(seed).permutation(len(products))
                assert expected == added_in(dtype, [products[k] for k in order])


@pytest.mark.parametrize(("dtype", "x", "weight", "bias"), TOO_LARGE)
def test_values_one_larger_than_the_amplitude_leave_the_exact_integers(
    dtype: str, x: list[int], weight: list[int], bias: int
) -> None:
    case = Case.parse(f"row P=1 batch=1 in={len(x)} out=1 {dtype} bias seed=0")
    assert amplitude(case) + 1 == max(*x, *weight, bias)
    expected = sum(a * b for a, b in zip(x, weight, strict=True)) + bias
    assert FORMATS[dtype].exact + 1 == expected
    assert expected != added_in(dtype, [*zip(x, weight, strict=True), (bias, 1)])


@given(st.data())
def test_the_same_line_gives_the_same_bits_and_another_seed_others(data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([item for item in ITEMS if item.dtype == "float32"]))))
    once, again = tensors(inputs(case)), tensors(inputs(Case.parse(case.text)))
    other = tensors(inputs(Case.parse(case.text.replace(f"seed={case.seed}", f"seed={case.seed + 1}"))))
    for name, value in once.items():
        assert value.tobytes() == again[name].tobytes()
        assert value.size == 0 or value.tobytes() != other[name].tobytes()


def test_the_bits_of_a_line_never_change() -> None:
    """A line pinned today replays the same values tomorrow."""
    data = inputs(Case.parse("row P=2 batch=none in=2 out=2 float16 bias seed=7"))
    expected = {"x": [-28.0, -7.0], "weight": [[-20.0, 4.0], [-22.0, -3.0]], "bias": [-13.0, 2.0], "g": [29.0, 2.0]}
    assert expected == {name: value.tolist() for name, value in tensors(data).items()}


def telling(case: Case, value: Floats) -> bool:
    """Whether two draws of these sizes are equal by chance less than once in 2^24."""
    return bool(value.size * np.log2(2 * amplitude(case)) >= 24)


@given(layers())
def test_groups_share_no_data(case: Case) -> None:
    one, two = tensors(inputs(case, 0)), tensors(inputs(case, 1))
    for name, value in one.items():
        assert not telling(case, value) or not np.array_equal(value, two[name])


@given(layers())
def test_a_second_run_has_its_own_data_and_the_first_ones_parameters(case: Case) -> None:
    one, two = inputs(case, 0, 0), inputs(case, 0, 1)
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)
    assert not telling(case, one.x) or not np.array_equal(one.x, two.x)


@given(layers())
def test_exact_values_are_nonzero_integers_up_to_the_amplitude(case: Case) -> None:
    largest = amplitude(case)
    for value in tensors(inputs(case)).values():
        assert np.array_equal(value, np.round(value))
        assert value.all()
        assert not (np.abs(value) > largest).any()


@given(layers(("float32", "float64")))
def test_no_two_rows_columns_or_blocks_are_equal(case: Case) -> None:
    """Wide dtypes leave room for it; a column or row of no elements has no other."""
    data, terms = tensors(inputs(case)), agreement(case)
    placements = {"x": terms.input.value, "g": terms.output.gradient, **terms.parameters}
    for name, value in data.items():
        if not value.size:
            continue
        matrix = value.reshape(-1, value.shape[-1])
        assert len(matrix) == len(np.unique(matrix, axis=0))
        assert matrix.shape[1] == len(np.unique(matrix, axis=1).T)
        if isinstance(placements[name], Sharded):
            blocks = {local(placements[name], value, case.P, r).tobytes() for r in range(case.P)}
            assert len(blocks) == case.P


@pytest.mark.parametrize("P", [2, 4])
def test_the_terms_of_a_partial_value_differ(P: int) -> None:
    for seed in range(50):
        reduce, copy = (Case(layer, P, 2, batch=(2,), seed=seed) for layer in ("reduce", "copy"))
        for terms in (inputs(reduce).x, inputs(copy).g):
            assert terms.shape == (P, 2, 2)
            assert len({term.tobytes() for term in terms}) == P


@pytest.mark.parametrize("layer", ["column", "row", "copy", "reduce", "gather"])
def test_an_expanded_tensor_is_equal_along_its_first_dimension(layer: str) -> None:
    sizes = "in=4 out=4" if layer in ("column", "row") else "in=4"
    case = Case.parse(f"{layer} P=2 batch=3x2 {sizes} float32 x=expanded g=expanded seed=5")
    data, terms = inputs(case), agreement(case)
    for value, placement in ((data.x, terms.input.value), (data.g, terms.output.gradient)):
        for whole in value if isinstance(placement, Partial) else [value]:
            assert all(np.array_equal(whole[0], entry) for entry in whole)
            assert not np.array_equal(whole[0, 0], whole[0, 1])


@given(layers(), st.sampled_from(("gaussian", "positive")))
def test_real_values_are_values_of_the_dtype(case: Case, kind: str) -> None:
    line = case.text.replace("procedure=accumulate", "").replace("seed", f"values={kind} seed")
    for value in tensors(inputs(Case.parse(line))).values():
        assert np.array_equal(value, value.astype(ARITHMETIC[case.dtype]).astype(np.float64))
        assert kind == "gaussian" or (value > 0).all()


def test_cancelling_values_nearly_cancel_between_neighbours() -> None:
    """Each rank's term is much larger than the sum of all."""
    case = Case.parse("row P=4 batch=2 in=8 out=3 float32 values=cancel procedure=precision seed=1")
    data = inputs(case)
    assert data.weight is not None
    terms = [np.abs(data.x[:, r : r + 2] @ data.weight[:, r : r + 2].T).sum() for r in range(0, 8, 2)]
    assert min(terms) > 8 * np.abs(data.x @ data.weight.T).sum()


@st.composite
def fixed_point(draw: Any) -> Case:
    """A case of subnormal values."""
    P, layer = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((*LINEAR, *FUNCTIONS)))
    sizes = {"in_features": P * draw(st.integers(1, 4))}
    if layer in LINEAR:
        size = draw(st.integers(1, 4))
        more = {"merged": {"parts": (P * size, P)}, "qkv": {"heads": 2 * P, "kv_heads": 2, "head_size": size}}
        sizes |= {"bias": draw(st.booleans())} | more.get(layer, {"out_features": P * size})
    batch = draw(st.sampled_from(((), (1,), (3,), (2, 4))))
    return Case(layer, P, **sizes, batch=batch, dtype="float16", values="subnormal", seed=draw(st.integers(0, 999)))


@given(fixed_point())
def test_subnormal_values_are_multiples_of_the_smallest_in_one_factor_of_every_product(case: Case) -> None:
    scaled = {"weight", "bias"} if case.linear else {"x", "g"}
    for name, value in tensors(inputs(case)).items():
        multiples = value / (2.0**-24 if name in scaled else 1)
        assert np.array_equal(multiples, np.round(multiples))
        assert multiples.all()
        assert not (np.abs(multiples) > amplitude(case)).any()
        assert np.array_equal(value, value.astype(np.float16).astype(np.float64))


@given(fixed_point())
def test_whatever_is_computed_of_subnormal_values_is_a_value_of_the_dtype(case: Case) -> None:
    """So that equality can be asked, whatever the order of the sums."""
    (run,) = truth(case).runs
    for value in (run.output, *run.gradients.values()):
        assert np.array_equal(value, value.astype(np.float16).astype(np.float64))
        assert value.size == 0 or np.abs(value).max() < 2.0**-12 or np.array_equal(value, np.round(value))
    assert run.magnitudes == {}


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_other_dtypes_have_no_subnormal_values(dtype: str) -> None:
    reason = "values=subnormal needs float16 without autocast"
    with pytest.raises(ValueError, match=reason):
        Case.parse(f"reduce P=2 batch=1 in=1 {dtype} values=subnormal seed=0")
    with pytest.raises(ValueError, match=reason):
        Case.parse("row P=2 batch=1 in=2 out=1 float16 autocast=float16 values=subnormal seed=0")
    with pytest.raises(ValueError, match="a pair has no bound for values=subnormal"):
        Case.parse("pair P=2 batch=1 in=2 hidden=2 out=1 float16 values=subnormal seed=0")


@pytest.mark.parametrize("kind", ["exact", "positive", "subnormal"])
@pytest.mark.parametrize("P", [2, 4])
def test_only_subnormal_values_see_a_division_before_the_sum(P: int, kind: str) -> None:
    """A power of two divides every other value without a rounding, so the same sum comes out."""
    for seed in range(20):
        terms = inputs(Case("reduce", P, 8, batch=(4,), dtype="float16", values=kind, seed=seed)).x.astype(np.float16)
        plain = divided = np.zeros_like(terms[0])
        for term in terms:
            plain, divided = plain + term, divided + term / np.float16(P)
        assert np.array_equal(plain, divided * np.float16(P)) == (kind != "subnormal")
        if kind != "positive":
            assert np.array_equal(plain, terms.astype(np.float64).sum(0))


def test_the_bits_of_a_line_of_subnormal_values_never_change() -> None:
    data = tensors(inputs(Case.parse("row P=2 batch=none in=2 out=2 float16 bias values=subnormal seed=7")))
    integers = {name: (value * (2**24 if name in ("weight", "bias") else 1)).tolist() for name, value in data.items()}
    expected = {"x": [11.0, 5.0], "weight": [[-9.0, 13.0], [10.0, 30.0]], "bias": [-18.0, 12.0], "g": [-13.0, 24.0]}
    assert expected == integers


@given(st.sampled_from(DTYPES), st.sampled_from((1, 2)), st.lists(st.integers(1, 6), min_size=3, max_size=3))
def test_the_amplitude_of_a_pair_is_the_largest_that_keeps_every_sum_exact(
    dtype: str, P: int, sizes: list[int]
) -> None:
    """Sums of products of sums, and a bias in both."""
    inner, hidden, outer = sizes
    case = Case("pair", P, inner, outer, hidden * P, batch=(2,), dtype=dtype, bias=True)
    terms, limit = longest_sum(case), FORMATS[dtype].exact

    def largest_sum(a: int) -> int:
        return terms * (terms * a * a + a) * a + a

    if largest_sum(1) > limit:
        with pytest.raises(ValueError, match="leave the exact integers"):
            amplitude(case)
        return
    a = amplitude(case)
    assert largest_sum(a) <= limit < largest_sum(a + 1)


@pytest.mark.parametrize("layer", ["copy", "reduce"])
def test_terms_of_few_possible_values_differ_too(layer: str) -> None:
    for seed in range(50):
        data = inputs(Case.parse(f"{layer} P=2 batch=none in=1 float32 values=small seed={seed}"))
        one, two = data.x if layer == "reduce" else data.g
        assert one != two


@pytest.mark.parametrize("size", [5, 6])
def test_a_vector_of_few_possible_values_holds_each_once(size: int) -> None:
    """Integers of -3 to 3 without zero: six, and a vector of six has them all."""
    for seed in range(20):
        x = inputs(Case.parse(f"row P=1 batch=none in={size} out=1 float32 values=small seed={seed}")).x
        assert len(set(x.tolist())) == size


def test_positive_values_are_kept_away_from_zero_and_not_far() -> None:
    drawn = inputs(Case.parse("row P=1 batch=64 in=64 out=1 float32 values=positive procedure=precision seed=1")).x
    assert 0.5 <= drawn.min() < 0.51


@pytest.mark.parametrize("rows", [2, 3])
def test_expanded_rows_are_equal_from_two_on(rows: int) -> None:
    x = inputs(Case.parse(f"row P=1 batch={rows} in=4 out=1 float32 x=expanded seed=5")).x
    assert (x == x[0]).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array(1.0), False),
        (np.array([1.0]), False),
        (np.array([1.0, 2.0]), False),
        (np.array([1.0, 1.0]), True),
        (np.array([[1.0, 2.0], [1.0, 2.0]]), True),
        (np.array([[1.0, 1.0], [2.0, 2.0]]), True),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), False),
        (np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]), False),
        (np.array([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]), True),
        (np.array([[[1.0, 2.0, 2.0]], [[1.0, 3.0, 3.0]]]), True),
        (np.zeros((0, 3)), False),
    ],
)
def test_equal_rows_and_columns_are_seen(value: Floats, expected: bool) -> None:
    assert expected == _repeats(value)


def test_values_that_repeat_are_drawn_again() -> None:
    """Of four values between -3 and 3 in a square, two rows or columns would often be equal."""
    for seed in range(100):
        weight = inputs(Case.parse(f"row P=1 batch=none in=2 out=2 float32 values=small seed={seed}")).weight
        assert weight is not None
        assert not _repeats(weight)
