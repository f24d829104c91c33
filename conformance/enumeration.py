"""Every small case of an item, smallest first, for the profile `deep`: below this size nothing is left to chance.

Small is: every per-rank size that is cut, and every other, 1 or 2; a batch of at most two dimensions of 1 or 2, or one
of two empty ones. All of these are crossed with every combination of flags and bias, every set of frozen tensors, every
pair of layouts from the suite's table, every dimension that a function cuts, every way to form groups, and every fault.
A layout that a shape turns back into contiguous makes no case of its own. The seed is 0.

Left out:

- precision, which needs long sums, and stays sampled;
- batches of init and state-dict, which never call the layer: they have one;
- sizes and batches of compiled cases, which take seconds each: they have one of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, Final

from conformance.coverage.cells import effective
from conformance.items import Item
from conformance.reporting.failure.raised import raise_first
from conformance.space import (
    Cut,
    Fields,
    biases_of,
    cuts_of,
    dims_of,
    fixed_of,
    flag_fields,
    flags_of,
    frozen_of,
    function_sizes,
    groups_of,
    layer_sizes,
    layouts_of,
)
from conformance.suite import Suite
from spec import Case, ContractViolation
from spec.case import FUNCTIONS
from spec.faults import faults_of

SIZES: Final = (1, 2)
BATCHES: Final = ((1,), (2,), (), (0,), (1, 1), (1, 2), (2, 1), (2, 2), (2, 0))
_UNCALLED: Final = ("init", "state-dict")
# An item that fails so often has shown what it can, and where ranks are lost each case costs seconds.
FAILURES_PER_ITEM: Final = 100


def small_cases(item: Item) -> Iterator[Case]:
    """The small cases of an item, each once: by sizes, then in the order in which the strategies put alternatives."""
    if item.procedure == "precision":
        return
    for extent in _extents(item):
        for variant in _variants(item):
            fields = fixed_of(item) | extent | variant
            plain = {name: value for name, value in fields.items() if name != "procedure"}
            faults = faults_of(Case(**plain)) if item.procedure == "refuse" else ("",)
            cases = (effective(Case(**fields, x=x, g=g, fault=fault)) for fault in faults for x, g in layouts_of(item))
            yield from dict.fromkeys(cases)


def examine_all(suite: Suite, cases: Iterable[Case]) -> None:
    """Run the cases, and raise for every clause that is the first cause of a failure the first case that it failed.

    Raises:
        ContractViolation: of one clause, as its own exception.
        ExceptionGroup: of those, if several clauses fail.
    """
    __tracebackhide__ = True
    found = _first_failures(suite, cases)
    if len(found) > 1:
        raise ExceptionGroup(f"{len(found)} clauses, each with the first case that failed it", found)
    if found:
        raise found[0]


def _first_failures(suite: Suite, cases: Iterable[Case]) -> list[ContractViolation]:
    found: dict[str, ContractViolation] = {}
    failures = 0
    for case in cases:
        verdict = suite.examine(case)
        blamed = suite.blamed(verdict)
        failures += bool(blamed)
        if blamed and blamed[0].clause.name not in found:
            try:
                raise_first(suite.options, verdict, blamed)
            except ContractViolation as error:
                found[error.clause.name] = error
        if failures == FAILURES_PER_ITEM:
            for error in found.values():
                error.add_note(f"after {failures} cases that failed, the larger ones of this item were not run")
            break
    return list(found.values())


def _extents(item: Item) -> list[Fields]:
    """Sizes and batch, the smallest sizes first."""
    if item.procedure.startswith("compile"):
        return [_sized(item, (2,), (cuts_of(item, (2,))[-1], 2, 2), -1)]
    batches = BATCHES[:1] if item.procedure in _UNCALLED else BATCHES
    cuts = cuts_of(item, SIZES)
    count = {"pair": 2, **dict.fromkeys(FUNCTIONS, 0)}.get(item.layer, 1)
    sizes = sorted(product(cuts, *[SIZES] * count), key=_total)
    return [_sized(item, batch, size, dim) for size in sizes for batch in batches for dim in dims_of(item, batch)]


def _total(sizes: tuple[Cut, ...]) -> int:
    return sum(sum(size) if isinstance(size, tuple) else size for size in sizes)


def _sized(item: Item, batch: tuple[int, ...], sizes: tuple[Any, ...], dim: int) -> Fields:
    if item.layer in FUNCTIONS:
        return function_sizes(item, batch, sizes[0], dim)
    cut, other, last = (*sizes, 0)[:3]
    return layer_sizes(item, cut, other, last) | {"batch": batch}


def _variants(item: Item) -> Iterator[Fields]:
    """Groups, bias, flags and what is frozen, in every combination."""
    for groups, bias, chosen in product(*map(dict.fromkeys, (groups_of(item), biases_of(item), flags_of(item)))):
        for frozen in dict.fromkeys(frozen_of(item, bias)):
            yield flag_fields(chosen, bias) | {"groups": groups, "frozen": frozen}
