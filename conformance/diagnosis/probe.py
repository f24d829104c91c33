"""Cases that tell more than the smallest failing one: a larger one to read from, and ones that differ in a word.

The smallest case shows that something is wrong with as few numbers as possible, so many mistakes give the same ones.
The probe is the same case with unequal sizes, small integers in float64 and, where four ranks are allowed, P = 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from spec import Case
from spec.case import EXACT, FUSED, WITHOUT_VALUES

_SIZES = (5, 2, 3, 1)


def probes(case: Case, world_sizes: tuple[int, ...]) -> Iterator[Case]:
    """Larger cases in which the same mistake shows itself more clearly, the clearest first; the case itself last."""
    for P in (4, case.P) if case.P == case.world == 2 and 4 in world_sizes else (case.P,):
        for dtype in dict.fromkeys(("" if case.autocast else "float64", "float32", case.dtype)):
            if dtype:
                yield from _sized(case, P, dtype)
    yield from _possible(case, values="small")
    yield case


def is_larger(probe: Case, case: Case) -> bool:
    """Whether a probe has more to show than the case it was made from."""
    return _extent(probe) != _extent(case)


def _extent(case: Case) -> tuple[Any, ...]:
    return case.P, case.batch, case.in_features, case.hidden_features, case.out_features, case.sizes


def contrasts(case: Case) -> Iterator[tuple[str, Case]]:
    """(what is different, the case) for every word of a case that could be left out; none of a real-valued one.

    Another case has other values, which is no matter where any error is a fault, but tells nothing of a bound.
    """
    if case.values not in EXACT:
        return
    changes: list[tuple[str, dict[str, Any]]] = [
        ("with contiguous tensors", {"x": "contiguous", "g": "contiguous"}),
        ("with nothing frozen", {"frozen": ""}),
        ("without autocast", {"autocast": ""}),
        ("alone in its world", {"world": case.P, "groups": "neighbouring"}),
    ]
    if case.procedure not in WITHOUT_VALUES:
        changes.append(("in a plain run", {"procedure": "run"}))
    for words, change in changes:
        if any(getattr(case, name) != value for name, value in change.items()):
            yield from ((words, other) for other in _possible(case, **change))


def single_rank(case: Case) -> Iterator[Case]:
    """One rank that does what each of P ranks does, with nothing to reduce."""
    cut = "out_features" if case.layer == "column" else "in_features"
    sizes: dict[str, Any] = {cut: getattr(case, cut) // case.P} if case.linear else {}
    if case.layer == "merged":
        sizes = {"parts": tuple(size // case.P for size in case.parts)}
    if case.layer == "qkv":
        sizes = {"heads": case.heads // case.P, "kv_heads": max(1, case.kv_heads // case.P)}
    values = "positive" if case.values == "cancel" else case.values
    yield from _possible(case, P=1, world=1, groups="neighbouring", values=values, **sizes)


def _sized(case: Case, P: int, dtype: str) -> Iterator[Case]:
    plain = {"P": P, "world": P if case.world == case.P else case.world, "dtype": dtype, "values": "small"}
    batch = tuple(_SIZES[: len(case.batch)])
    for sizes in _sizes(case, P, batch):
        yield from _possible(case, **plain, **sizes)


def _sizes(case: Case, P: int, batch: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    if not case.has_parameters:
        shape = [*batch, 3]
        if case.layer in ("gather", "scatter"):
            shape[case.dim] = 3 * P
        yield {"batch": tuple(shape[:-1]), "in_features": shape[-1]}
        return
    cut = 6 * P if batch else 12 * P
    if case.layer == "pair":
        yield {"batch": batch, "in_features": 7, "hidden_features": cut, "out_features": 7}
        return
    if case.layer in FUSED:
        yield from ({"batch": batch} | sizes for sizes in _several_parts(case, P))
        return
    first, second = ("out_features", "in_features") if case.layer == "column" else ("in_features", "out_features")
    yield {"batch": batch, first: cut, second: 7}
    yield {"batch": batch, first: getattr(case, first) // case.P * P, second: 7}
    yield {"batch": case.batch, first: cut, second: 7}
    yield {"batch": batch, first: cut, second: cut}


def _several_parts(case: Case, P: int) -> Iterator[dict[str, Any]]:
    """Unequal parts of more than one element a rank; of qkv, heads to which as many ranks belong as in the case."""
    if case.layer == "merged":
        grown = tuple((3 + 2 * number) * P for number in range(len(case.parts)))
        yield {"parts": grown, "in_features": 7}
        yield {"parts": grown, "in_features": case.in_features}
        return
    like = max(1, P // 2) if case.kv_heads < case.P else 2 * P
    for kv_heads in dict.fromkeys((like, case.kv_heads)):
        yield {"heads": 2 * max(P, kv_heads), "kv_heads": kv_heads, "head_size": 3, "in_features": 7}


def _possible(case: Case, **changes: Any) -> Iterator[Case]:
    """The changed case, if there can be one."""
    try:
        yield replace(case, **changes)
    except ValueError:
        return
