"""The items of the suite: procedure x layer x P x dtype. Every clause that applies judges each example of an item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spec.case import COMPOSED, DTYPES, FUNCTIONS, FUSED, LAYERS, LINEAR

COPIES = ("deepcopy", "pickle", "functional-call", "checkpoint", "checkpoint-reentrant")


@dataclass(frozen=True)
class Item:
    """A set of cases that one test explores.

    Attributes:
        world: number of ranks; world / P groups run at once.
        autocast: "" or the autocast dtype.
    """

    procedure: str
    layer: str
    P: int
    dtype: str
    world: int = 0
    autocast: str = ""

    @property
    def cost(self) -> str:
        """Which test runs it: item, or compiled_item with few examples, since compiling takes seconds."""
        return "compiled_item" if self.procedure.startswith("compile") else "item"

    def __str__(self) -> str:
        ranks = f"P{self.P}of{self.world}" if self.world not in (0, self.P) else f"P{self.P}"
        kind = f"autocast-{self.autocast}" if self.autocast else self.dtype
        return f"{self.procedure}-{self.layer}-{ranks}-{kind}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # for Hypothesis, which would print every field


def items(world_sizes: Sequence[int] = (1, 2, 4), fused: Sequence[str] = FUSED) -> list[Item]:
    """All items whose world is one of these sizes, small worlds first; of the layers of several parts only `fused`."""
    chosen = (item for item in _all() if item.layer not in FUSED or item.layer in fused)
    return sorted(
        (item for item in chosen if max(item.P, item.world) in world_sizes), key=lambda item: max(item.P, item.world)
    )


def _all() -> Iterator[Item]:
    sizes = (1, 2, 4)
    for P in sizes:
        for layer in LAYERS:
            for dtype in DTYPES if layer not in COMPOSED else ("float32", "float64"):
                yield Item("run", layer, P, dtype)
            for procedure in ("twice", "no-grad", "inference"):
                yield Item(procedure, layer, P, "float32")
        for layer in LINEAR:
            for autocast in ("bfloat16", "float16"):
                yield Item("run", layer, P, "float32", autocast=autocast)
            yield Item("init", layer, P, "float64")
            for dtype in DTYPES:
                yield Item("precision", layer, P, dtype)
            for procedure in (
                "retain",
                "accumulate",
                "pipeline",
                "update",
                "interleave",
                "init",
                "state-dict",
                *COPIES,
                "refuse",
            ):
                yield Item(procedure, layer, P, "float32")
    yield from _between_ranks()
    yield from _compiled(sizes)


def _between_ranks() -> Iterator[Item]:
    """What needs at least two ranks to go wrong."""
    for P in (2, 4):
        for layer in LAYERS:
            yield Item("delay", layer, P, "float32")
        for layer in ("copy", "reduce"):
            for dtype in ("float32", "bfloat16", "float16"):
                yield Item("precision", layer, P, dtype)
        for layer in ("gather", "scatter"):
            yield Item("refuse", layer, P, "float32")
    for layer in LAYERS:
        yield Item("run", layer, 2, "float32", world=4)
    for layer in LINEAR:
        yield Item("run", layer, 1, "float32", world=2)
        for procedure in ("accumulate", "no-grad", "inference", "deepcopy", "pickle"):
            yield Item(procedure, layer, 2, "float32", world=4)


def _compiled(sizes: Sequence[int]) -> Iterator[Item]:
    """Compiling takes seconds, so few examples."""
    for P in sizes:
        for layer in LINEAR:
            yield Item("compile", layer, P, "float32")
    for layer in FUNCTIONS:
        yield Item("compile", layer, 2, "float32")
    for layer in LINEAR:
        yield Item("compile-inductor", layer, 2, "float32")
