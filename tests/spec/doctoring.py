"""What a correct implementation is seen to do, doctored in one thing, and the clauses that must name it.

`clean(line)` is the scene of a case without a fault: NumPy's simulation where it knows the procedure, steps put
together by hand where it does not. A `Doctored` entry changes one thing in it, on some ranks, and says what `judge`
must find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from conformance.adapters.simulated import PROCEDURES, Simulated
from spec import Array, Case, Collective, Observation, Raised, Step, Truth, agreement, inputs, judge
from spec.contract import needs_gradient
from spec.numerics import encode
from spec.placements import Floats, local
from spec.reference import truth
from spec.register import Finding

WITH_SECOND = frozenset(
    {"delay", "retain", "deepcopy", "pickle", "functional-call", "checkpoint", "checkpoint-reentrant", "compile"}
    | {"compile-inductor"}
)


@dataclass(frozen=True)
class Scene:
    """A case, its truth, and what the ranks of its first group saw."""

    case: Case
    truth: Truth
    seen: tuple[Observation, ...]


Change = Callable[[Scene, Observation], Observation]
Numbers = Callable[[Scene, int, Floats], Floats]
"""(scene, rank, what the rank saw) -> what it sees once doctored."""


@dataclass(frozen=True)
class Doctored:
    """One fault.

    Attributes:
        clause: the clause that must name it first; `also`: those that it breaks besides, in the register's order.
        ranks: the ranks that have it; None for all.
    """

    clause: str
    name: str
    line: str
    change: Change
    also: tuple[str, ...] = ()
    ranks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.clause}: {self.name}"

    @property
    def expected(self) -> list[str]:
        return [self.clause, *self.also]

    def found(self) -> list[str]:
        return [finding.clause.name for finding in self.findings()]

    def findings(self) -> list[Finding]:
        scene = clean(self.line)
        seen = [
            self.change(scene, entry) if self.ranks is None or entry.rank in self.ranks else entry
            for entry in scene.seen
        ]
        return judge(scene.case, scene.truth, seen)


def bits(numbers: Floats, dtype: str = "float32") -> Array:
    return Array(encode(numbers, dtype).tobytes(), dtype, numbers.shape)


@cache
def clean(line: str) -> Scene:
    """A case's scene without a fault."""
    case = Case.parse(line)
    computed = _as_truth if case.layer == "pair" else _computed
    seen = {"init": _initial, "state-dict": _saved}.get(case.procedure, computed)(case)
    ranks = case.group_ranks[0]
    return Scene(case, truth(case), tuple(_with_facts(entry, ranks) for entry in seen))


def _with_facts(seen: Observation, ranks: tuple[int, ...]) -> Observation:
    """What a simulation leaves out and a framework shows: the group of each collective and the rank in the world."""
    steps = {
        name: replace(
            step,
            collectives=None
            if step.collectives is None
            else tuple(replace(entry, ranks=ranks) for entry in step.collectives),
            facts={**step.facts, "global_rank": ranks[seen.rank], "storage_bytes": _sizes(step)},
        )
        for name, step in seen.steps.items()
    }
    return replace(seen, steps=steps)


def _sizes(step: Step) -> dict[str, int]:
    return {name: len(array.bits) for name, array in step.parameters.items()}


def _computed(case: Case) -> list[Observation]:
    adapter = Simulated()
    if case.procedure in PROCEDURES:
        seen = adapter.run(case, 0)
    else:
        assert case.procedure in WITH_SECOND
        once = adapter.steps(case, inputs(case))
        again = [replace(step, name="second", facts={**step.facts, "graphs": 1}) for step in once]
        if case.procedure == "retain":
            again = [replace(step, gradients=_doubled(step)) for step in again]
        seen = [Observation(r, {"first": once[r], "second": again[r]}) for r in range(case.P)]
    if case.procedure == "inference":
        seen = [replace(s, steps={"first": with_facts(s.steps["first"], inference=True)}) for s in seen]
    return [_with_dense(entry) for entry in seen] if case.P == 1 and case.procedure != "refuse" else seen


def _doubled(step: Step) -> dict[str, Array | None]:
    return {name: value and bits(2 * value.numbers) for name, value in step.gradients.items()}


def _with_dense(seen: Observation) -> Observation:
    first = with_facts(seen.steps["first"], nodes=["AccumulateGrad", "AddmmBackward0"])
    return replace(seen, steps={**seen.steps, "first": first, "dense": replace(first, name="dense")})


def _initial(case: Case) -> list[Observation]:
    """Weights as the unsharded layer draws them; here simply counted up."""
    weight = np.arange(1.0, 1 + case.out_features * case.in_features).reshape(case.out_features, case.in_features)
    masters = {"weight": weight, **({"bias": np.zeros(case.out_features)} if case.bias else {})}
    state = {"random_state": "after nn.Linear"}
    seen = []
    for rank in range(case.P):
        held = {name: bits(local(agreement(case).parameters[name], masters[name], case.P, rank)) for name in masters}
        steps = {name: Step(name, held, facts=state) for name in ("first", "reset", "meta")}
        dense = Step("dense", {name: bits(value) for name, value in masters.items()}, facts=state)
        seen.append(Observation(rank, {**steps, "dense": dense}))
    return seen


def _as_truth(case: Case) -> list[Observation]:
    """The truth as the ranks hold it, with the collectives of the contract's table."""
    terms, (values,), given = agreement(case), truth(case).runs, inputs(case).parameters
    log = [Collective(b.kind, b.bytes, case.dtype, "forward") for b in terms.forward]
    log += [Collective(b.kind, b.bytes, case.dtype, "backward") for b in terms.backward]
    places = {"x": terms.input.gradient, **terms.parameters}
    wanted = needs_gradient(case)
    seen = []
    for rank in range(case.P):
        held = {name: bits(local(terms.parameters[name], value, case.P, rank)) for name, value in given.items()}
        gradients = {
            name: bits(local(places[name], value, case.P, rank)) if name in wanted else None
            for name, value in values.gradients.items()
            if name in places
        }
        output = bits(local(terms.output.value, values.output, case.P, rank))
        step = Step("first", held, output, gradients=gradients, collectives=tuple(log), facts={"pair": False})
        seen.append(Observation(rank, {"first": step}))
    return seen


def _saved(case: Case) -> list[Observation]:
    seen = []
    for rank in range(case.P):
        held = {name: bits(value) for name, value in Simulated().shards(case, inputs(case), rank).items()}
        loud = {"missing": True, "unexpected": True, "shape": True}
        first = Step("first", held, facts={"keys": sorted(held)})
        seen.append(
            Observation(rank, {"first": first, "loaded": Step("loaded", held, collectives=(), facts={"loud": loud})})
        )
    return seen


def with_facts(step: Step, **facts: Any) -> Step:
    return replace(step, facts={**step.facts, **facts})


# Changes


def fate(name: Any, **fields: Any) -> Change:
    """The rank does not come back: it raised, died, hung, or was stopped."""
    return lambda scene, seen: replace(seen, fate=name, steps={}, **fields)


def raised(type_: str, text: str) -> Raised:
    return Raised((type_, "Exception"), text)


def fields(step: str = "first", **changes: Any) -> Change:
    """Fields of a step set to other values."""
    return lambda scene, seen: _put(seen, replace(seen.steps[step], **changes))


def facts(step: str = "first", **changes: Any) -> Change:
    """Facts of a step set to other values."""
    return lambda scene, seen: _put(seen, with_facts(seen.steps[step], **changes))


def output(numbers: Numbers, step: str = "first", dtype: str = "") -> Change:
    """Other numbers in the output."""

    def change(scene: Scene, seen: Observation) -> Observation:
        held = seen.steps[step].output
        assert held is not None
        return _put(seen, replace(seen.steps[step], output=_new(scene, seen.rank, held, numbers, dtype)))

    return change


def gradient(name: str, numbers: Numbers, step: str = "first", dtype: str = "") -> Change:
    """Other numbers in a gradient."""
    return _other("gradients", name, numbers, step, dtype)


def parameter(name: str, numbers: Numbers, step: str = "first", dtype: str = "") -> Change:
    """Other numbers in a parameter."""
    return _other("parameters", name, numbers, step, dtype)


def _other(kind: str, name: str, numbers: Numbers, step: str, dtype: str) -> Change:
    def change(scene: Scene, seen: Observation) -> Observation:
        held = getattr(seen.steps[step], kind)
        new = {**held, name: _new(scene, seen.rank, held[name], numbers, dtype)}
        changed = replace(seen.steps[step], **{kind: new})
        return _put(seen, with_facts(changed, storage_bytes=_sizes(changed)))

    return change


def with_gradient(name: str, numbers: Floats) -> Change:
    """A gradient where there is none."""

    def change(scene: Scene, seen: Observation) -> Observation:
        first = seen.steps["first"]
        return _put(seen, replace(first, gradients={**first.gradients, name: bits(numbers)}))

    return change


def without(kind: str, name: str, step: str = "first") -> Change:
    """No such parameter, or None in the place of a gradient."""

    def change(scene: Scene, seen: Observation) -> Observation:
        old = getattr(seen.steps[step], kind)
        new = {**old, name: None} if kind == "gradients" else {key: old[key] for key in old if key != name}
        return _put(seen, replace(seen.steps[step], **{kind: new}))

    return change


def collectives(change: Callable[[tuple[Any, ...]], tuple[Any, ...]], step: str = "first") -> Change:
    """Another log of collectives."""

    def apply(scene: Scene, seen: Observation) -> Observation:
        log = seen.steps[step].collectives
        assert log is not None
        return _put(seen, replace(seen.steps[step], collectives=change(log)))

    return apply


def _new(scene: Scene, rank: int, held: Array, numbers: Numbers, dtype: str) -> Array:
    return bits(np.asarray(numbers(scene, rank, held.numbers)), dtype or held.dtype)


def _put(seen: Observation, step: Step) -> Observation:
    return replace(seen, steps={**seen.steps, step.name: step})


# Numbers that several faults have in common


def as_seen(scene: Scene, rank: int, value: Floats) -> Floats:
    return value


def times(factor: float) -> Numbers:
    return lambda scene, rank, value: value * factor


def one_ulp_off(scene: Scene, rank: int, value: Floats) -> Floats:
    """Another rounding of one element, in float32."""
    other = value.astype(np.float32)
    other.flat[0] = np.nextafter(other.flat[0], np.float32(np.inf))
    return other.astype(np.float64)
