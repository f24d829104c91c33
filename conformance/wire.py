"""Observations as bytes: a JSON header, then the tensors' bits one after another. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from spec import Array, Collective, Observation, Raised, Step

_LENGTH = 8


def encode(observations: Sequence[Observation]) -> bytes:
    """Observations of one or more ranks as one message."""
    bits: list[bytes] = []

    def array(value: Array | None) -> Any:
        if value is None:
            return None
        bits.append(value.bits)
        return [value.dtype, value.shape, len(value.bits)]

    header = json.dumps([_observation(entry, array) for entry in observations], separators=(",", ":")).encode()
    return b"".join((len(header).to_bytes(_LENGTH, "little"), header, *bits))


def decode(message: bytes) -> tuple[Observation, ...]:
    """The observations that were encoded.

    Raises:
        ValueError: the message is cut short or no such message.
    """
    start = _LENGTH + int.from_bytes(message[:_LENGTH], "little")
    entries: Any = json.loads(message[_LENGTH:start])
    if not isinstance(entries, list):
        raise ValueError(f"a message whose header is a {type(entries).__name__}, not a list of observations")
    position = start

    def array(value: Any) -> Array | None:
        nonlocal position
        if value is None:
            return None
        dtype, shape, length = value
        position += length
        return Array(message[position - length : position], dtype, tuple(shape))

    observations = tuple(_read_observation(entry, array) for entry in entries)
    if position != len(message):
        raise ValueError(f"a message of {len(message)} bytes whose header describes {position}")
    return observations


def _observation(seen: Observation, array: Any) -> list[Any]:
    steps = [_step(step, array) for step in seen.steps.values()]
    return [seen.rank, steps, seen.fate, seen.declined, _raised(seen.raised), seen.entered, seen.stack, seen.exit]


def _step(step: Step, array: Any) -> list[Any]:
    return [
        step.name,
        {name: array(value) for name, value in step.parameters.items()},
        array(step.output),
        array(step.returned_bias),
        {name: array(value) for name, value in step.gradients.items()},
        None if step.collectives is None else [[c.kind, c.bytes, c.dtype, c.phase, c.ranks] for c in step.collectives],
        step.mutated,
        step.shared,
        step.facts,
        _raised(step.raised),
    ]


def _raised(raised: Raised | None) -> list[Any] | None:
    return None if raised is None else [raised.types, raised.text, raised.traceback]


def _read_observation(entry: list[Any], array: Any) -> Observation:
    rank, steps, fate, declined, raised, entered, stack, exit_ = entry
    read = [_read_step(step, array) for step in steps]
    return Observation(
        rank, {step.name: step for step in read}, fate, declined, _read_raised(raised), tuple(entered), stack, exit_
    )


def _read_step(entry: list[Any], array: Any) -> Step:
    name, parameters, output, returned_bias, gradients, collectives, mutated, shared, facts, raised = entry
    return Step(
        name,
        {key: array(value) for key, value in parameters.items()},
        array(output),
        array(returned_bias),
        {key: array(value) for key, value in gradients.items()},
        None if collectives is None else tuple(_read_collective(c) for c in collectives),
        tuple(mutated),
        tuple(shared),
        facts,
        _read_raised(raised),
    )


def _read_collective(entry: list[Any]) -> Collective:
    kind, size, dtype, phase, ranks = entry
    return Collective(kind, size, dtype, phase, None if ranks is None else tuple(ranks))


def _read_raised(entry: list[Any] | None) -> Raised | None:
    return None if entry is None else Raised(tuple(entry[0]), entry[1], entry[2])
