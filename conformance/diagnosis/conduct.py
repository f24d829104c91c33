"""Sentences for what is no matter of a tensor's numbers: refusals, initial values, state dicts, modes, dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from conformance.diagnosis import sentences as say
from conformance.diagnosis.guesses import ranks
from spec import Case, Observation, Step, agreement
from spec.clauses.compare import expected_gradients
from spec.faults import FAULTS
from spec.placements import local

Found = tuple[str, str]
Seen = Sequence[Observation]


def conduct(clause: str, case: Case, seen: Seen) -> list[Found]:
    """(subject, sentence) for a clause about a layer's conduct; nothing for any other."""
    tell = _TOLD.get(clause)
    return tell(case, seen) if tell else []


def _accepted(case: Case, seen: Seen) -> list[Found]:
    takers = [entry.rank for entry in seen if not entry.steps["refused"].raised]
    who = "every rank" if len(takers) == len(seen) else ranks(takers)
    return [("refusal", say.ACCEPTED.format(ranks=who))]


def _refused_as(case: Case, seen: Seen) -> list[Found]:
    raised = next(entry.steps["refused"].raised for entry in seen)
    return [("refusal", say.REFUSED_AS.format(what=raised.types[0]))] if raised else []


def _refused_mutely(case: Case, seen: Seen) -> list[Found]:
    words = FAULTS[case.fault].words(case)
    texts = [entry.steps["refused"].raised.text for entry in seen if entry.steps["refused"].raised]
    missing = [word for word in words if any(word not in text for text in texts)]
    return [("refusal", say.REFUSED_MUTELY.format(what=", ".join(missing)))]


def _drawn(case: Case, seen: Seen) -> list[Found]:
    """Initial weights beside those that the unsharded layer draws."""
    names = [name for name in ("first", "reset", "meta") if name in seen[0].steps]
    for name in names:
        got = [_weight(entry.steps[name]) for entry in seen]
        whole = _weight(seen[0].steps["dense"])
        if whole is None or any(value is None for value in got):
            continue
        expected = [local(agreement(case).parameters["weight"], whole, case.P, r) for r in range(case.P)]
        pairs = [(g, e) for g, e in zip(got, expected, strict=True) if g is not None]
        if any(g.shape != e.shape for g, e in pairs) or all(np.array_equal(g, e) for g, e in pairs):
            continue
        return [("weight", _draw(pairs))]
    return []


def _draw(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    ratios = np.concatenate([(got / expected).ravel() for got, expected in pairs])
    # Draws of two widths are rounded apart; only whether they are one draw is asked here, no verdict hangs on it.
    if np.allclose(ratios, ratios[0], rtol=1e-5):
        return say.OTHER_SCALE.format(factor=f"{ratios[0]:.3g}")
    if len(pairs) > 1 and all(np.array_equal(got, pairs[0][0]) for got, _ in pairs):
        return say.SAME_DRAW
    return say.OTHER_DRAW


def _weight(step: Step) -> np.ndarray | None:
    array = step.parameters.get("weight")
    return None if array is None else array.numbers


def _keys(case: Case, seen: Seen) -> list[Found]:
    wanted = ["bias", "weight"] if case.bias else ["weight"]
    keys = {str(key) for entry in seen for key in entry.steps["first"].facts.get("keys", ())}
    other = sorted(keys.symmetric_difference(wanted))
    return [("state dict", say.OTHER_KEYS.format(what=", ".join(other) or "not on every rank"))]


def _loud(case: Case, seen: Seen) -> list[Found]:
    kinds = dict.fromkeys(
        kind for entry in seen for kind, raised in entry.steps["loaded"].facts.get("loud", {}).items() if not raised
    )
    return [("state dict", say.LOADED_SILENTLY.format(what=", ".join(kinds)))]


def _entered(case: Case, seen: Seen) -> list[Found]:
    steps = [step for entry in seen for step in entry.steps.values() if step.name != "after"]
    entered = [collective for step in steps for collective in step.collectives or ()]
    return [("collectives", say.COLLECTIVE_EXTRA.format(what=entered[0]))] if entered else []


def _output_dtype(case: Case, seen: Seen) -> list[Found]:
    output = next((entry.steps["first"].output for entry in seen), None)
    return [("output", say.OTHER_DTYPE.format(what=output.dtype))] if output else []


def _gradient_dtype(case: Case, seen: Seen) -> list[Found]:
    found = [
        (f"gradient of {name}", say.OTHER_DTYPE.format(what=array.dtype))
        for entry in seen
        for name, array in entry.steps["first"].gradients.items()
        if array is not None and array.dtype != case.dtype
    ]
    return list(dict.fromkeys(found))[:1]


def _reduction_dtype(case: Case, seen: Seen) -> list[Found]:
    others = [
        collective.dtype
        for entry in seen
        for step in entry.steps.values()
        for collective in step.collectives or ()
        if collective.dtype != case.compute_dtype
    ]
    return [("collectives", say.OTHER_DTYPE.format(what=others[0]))] if others else []


def _returned(case: Case, seen: Seen) -> list[Found]:
    facts = seen[0].steps["first"].facts
    pair = bool(facts.get("pair"))
    if facts.get("returned") or pair != case.skip_bias_add:
        kind = facts.get("returned") or ("a pair" if pair else "a tensor")
        return [("output", say.NO_TENSOR.format(what=kind))]
    return [("bias", say.OTHER_BIAS)]


def _frozen(case: Case, seen: Seen) -> list[Found]:
    steps = [step for entry in seen for step in entry.steps.values()]
    given = [name for step in steps for name, array in step.gradients.items() if array is not None]
    others = dict.fromkeys(name for name in given if name not in expected_gradients(case))
    return [(f"gradient of {name}", say.FROZEN_GRADIENT) for name in others][:1]


def _graphs(case: Case, seen: Seen) -> list[Found]:
    return [("compiled layer", say.GRAPH_BREAK.format(what=seen[0].steps["second"].facts.get("graphs")))]


def _always(subject: str, sentence: str) -> Callable[[Case, Seen], list[Found]]:
    return lambda case, seen: [(subject, sentence)]


_TOLD: dict[str, Callable[[Case, Seen], list[Found]]] = {
    "refuse.raises": _accepted,
    "refuse.no-collective": _always("refusal", say.REFUSED_LATE),
    "refuse.group-usable": _always("refusal", say.GROUP_OUT_OF_STEP),
    "refuse.same-everywhere": _always("refusal", say.REFUSED_UNLIKE),
    "refuse.type": _refused_as,
    "refuse.text": _refused_mutely,
    "init.shards": _drawn,
    "init.bias-zero": _always("bias", say.BIAS_DRAWN),
    "init.random-state": _always("random state", say.RANDOM_STATE),
    "state.keys": _keys,
    "state.round-trip": _always("state dict", say.NOT_RESTORED),
    "state.local": _entered,
    "state.loud": _loud,
    "one-rank.no-collective": _entered,
    "one-rank.nodes": _always("output", say.OTHER_NODES),
    "one-rank.bits": _always("output", say.OTHER_BITS),
    "modes.no-grad": _always("output", say.GRAPH_KEPT),
    "modes.inference": _always("output", say.NOT_INFERENCE),
    "forward.dtype": _output_dtype,
    "forward.returns": _returned,
    "backward.dtype": _gradient_dtype,
    "backward.frozen": _frozen,
    "collectives.dtype": _reduction_dtype,
    "transforms.deepcopy": _frozen,
    "transforms.fullgraph": _graphs,
}
