"""Observations as bytes: what is sent is what arrives, and a message cut short is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.adapters.simulated import Simulated
from conformance.wire import decode, encode
from spec import Array, Case, Collective, Observation, Raised, Step

names = st.text(max_size=8)
arrays = st.builds(
    lambda bits, dtype, shape: Array(bits, dtype, tuple(shape)),
    st.binary(max_size=16),
    st.sampled_from(("float32", "bfloat16", "int64")),
    st.lists(st.integers(0, 4), max_size=3),
)
errors = st.builds(lambda types, *texts: Raised(tuple(types), *texts), st.lists(names, min_size=1), names, names)
collectives = st.builds(
    Collective,
    names,
    st.integers(0, 2**40),
    names,
    names,
    st.none() | st.lists(st.integers(0, 8), max_size=4).map(tuple),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | names | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
words = st.lists(names, max_size=3).map(tuple)
steps = st.builds(
    Step,
    names,
    st.dictionaries(names, arrays, max_size=2),
    st.none() | arrays,
    st.none() | arrays,
    st.dictionaries(names, st.none() | arrays, max_size=2),
    st.none() | st.lists(collectives, max_size=3).map(tuple),
    words,
    words,
    st.dictionaries(names, plain, max_size=2),
    st.none() | errors,
)
observations = st.builds(
    lambda rank, several, *rest: Observation(rank, {step.name: step for step in several}, *rest),
    st.integers(0, 63),
    st.lists(steps, max_size=3),
    st.sampled_from(("returned", "raised", "died", "hung", "victim")),
    names,
    st.none() | errors,
    words,
    names,
    names,
)


@settings(max_examples=50)
@given(st.lists(observations, max_size=3))
def test_any_observation_arrives_as_it_was_sent(sent: list[Observation]) -> None:
    assert tuple(sent) == decode(encode(sent))


@settings(max_examples=50)
@given(st.lists(observations, min_size=1, max_size=2), st.data())
def test_a_message_cut_short_anywhere_is_refused(sent: list[Observation], data: st.DataObject) -> None:
    message = encode(sent)
    length = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(ValueError, match=r"."):
        decode(message[:length])


def test_a_message_whose_tensors_are_cut_short_says_by_how_much() -> None:
    message = encode([Observation(0, {"first": Step("first", output=Array(bytes(8), "float64", (1,)))})])
    expected = f"a message of {len(message) - 3} bytes whose header describes {len(message)}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        decode(message[:-3])


def test_a_message_with_bytes_left_over_is_refused() -> None:
    message = encode([Observation(0)])
    with pytest.raises(ValueError, match=f"^a message of {len(message) + 1} bytes whose header describes"):
        decode(message + b"\0")


@pytest.mark.parametrize("message", [b"", bytes(8), b"\xff" * 20, b"row P=2 batch=3 in=4 out=2 float32 seed=7"])
def test_bytes_that_are_no_message_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(message)


def test_every_bit_of_a_float_arrives() -> None:
    """Signed zeros, subnormals, infinities and payloads of what is no number."""
    bits = np.array([0x80000000, 1, 0x7F800000, 0xFFC00001], np.uint32).tobytes()
    (seen,) = decode(encode([Observation(0, {"first": Step("first", output=Array(bits, "float32", (4,)))})]))
    output = seen.steps["first"].output
    assert output is not None
    assert bits == output.bits


@pytest.mark.parametrize(
    "line",
    [
        "row P=4 batch=2x0 in=8 out=3 bfloat16 bias skip_bias_add seed=1",
        "gather P=2 batch=none in=4 float16 seed=2",
        "column P=2 batch=3 in=4 out=4 float64 frozen=w procedure=twice seed=3",
        "row P=2 batch=3 in=4 out=3 float32 procedure=refuse fault=input-width seed=4",
    ],
)
def test_what_a_simulation_saw_arrives_as_it_was_seen(line: str) -> None:
    seen: Any = Simulated().run(Case.parse(line), 0)
    assert tuple(seen) == decode(encode(seen))
