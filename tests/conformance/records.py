"""A small complete record, made by hand, for tests that spoil one thing of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.items import items
from conformance.reporting.record import (
    Count,
    Coverage,
    Declined,
    DiagnosisText,
    Failure,
    Implementation,
    ItemsRun,
    Run,
    RunOptions,
    ViolationText,
    missing,
)
from spec.case import FUSED

LINE = "row P=2 batch=1 in=2 out=1 float32 bias seed=0"
WHO = Implementation("mine", "mine.py:Mine", False, {"torch": "2.13.0"}, {"tf32": "False"}, ("returns a pair",), FUSED)
FAILURE = Failure(
    "row.forward.value",
    2,
    "row",
    "run-row-P2-float32",
    LINE,
    f'python -m conformance replay "{LINE}"',
    None,
    (ViolationText(None, "first", "output differs", "[1]", "[2]"),),
    ("forward.replicas",),
    DiagnosisText(("output: consistent with a bias that is counted P times",), "Add it once.", (), "", ()),
    (),
    "row.forward.value (MUST): ...",
    {"P": 2, "tensors": []},
)


def run_at(*worlds: int, names: tuple[str, ...] | None = None, **changes: Any) -> Run:
    """A run of all items of these world sizes, or of those named; one example of one clause in each world size."""
    ran = names if names is not None else tuple(map(str, items(worlds)))
    options = RunOptions(worlds, "gloo", "cpu", changes.pop("clauses", ()), "quick", changes.pop("seed", "1"))
    done = ItemsRun(len(ran), len(ran), ran, (), ("-k 'row'",) if names is not None else ())
    lacking = missing(options, done)
    made = Run(
        WHO,
        options,
        not lacking,
        lacking,
        done,
        tuple(Count("row.forward.value", world, "row", 10, 0, 0, 1) for world in worlds),
        {str(world): 10 for world in worlds},
        tuple(Coverage("row.forward.value", world, 3, 100, 12, 0.25) for world in worlds),
        tuple(Declined("has no pair", "pair", world, 2) for world in worlds),
        (),
        (),
    )
    return replace(made, **changes)
