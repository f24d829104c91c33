"""Sentences that need no numbers: storage, lost ranks, collectives."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.diagnosis import sentences as say
from conformance.diagnosis.guesses import ranks
from spec import Case, Observation
from spec.clauses.progress import parting, progress
from spec.contract import agreement

Found = tuple[str, str]


def facts(clause: str, case: Case, seen: Sequence[Observation]) -> list[Found]:
    """(subject, sentence) for clauses whose violation says by itself what happened."""
    if clause.startswith("ranks."):
        return _lost(clause, seen)
    if clause in ("purity.inputs", "purity.upstream", "purity.masters"):
        names = [name for entry in seen for step in entry.steps.values() for name in step.mutated]
        return [(f"caller's {name}", say.IN_PLACE) for name in dict.fromkeys(names) if _is_of(name, clause)]
    if clause in ("purity.no-alias", "parameters.own-storage"):
        return _storage(clause, seen)
    if clause == "collectives.group":
        return [("collectives", say.OTHER_GROUP)]
    if clause in ("collectives.forward-budget", "collectives.backward-budget"):
        return _budget(clause.removeprefix("collectives.").removesuffix("-budget"), case, seen)
    return []


def _is_of(name: str, clause: str) -> bool:
    return {"x": "purity.inputs", "g": "purity.upstream"}.get(name, "purity.masters") == clause


def _storage(clause: str, seen: Sequence[Observation]) -> list[Found]:
    found: list[Found] = []
    for entry in seen:
        for step in entry.steps.values():
            for pair in step.shared:
                mine, theirs = pair.split("/")
                parameter = mine in ("weight", "bias", "weight2", "bias2")
                if parameter == (clause == "parameters.own-storage"):
                    found.append((_subject(mine), say.SHARES.format(other=_other(theirs))))
            if clause == "parameters.own-storage":
                for name, held in step.facts.get("storage_bytes", {}).items():
                    array = step.parameters.get(name)
                    if array is not None and held > len(array.bits):
                        found.append((name, say.VIEW_OF_MASTER))
    return list(dict.fromkeys(found))


def _other(name: str) -> str:
    """Whose storage it is: a tensor of the call, a master, or the layer that was copied."""
    if name.startswith("master_original_"):
        return f"the original's {name.removeprefix('master_original_')}"
    return f"the {name.replace('_', ' ')}" if name.startswith("master_") else name


def _subject(name: str) -> str:
    return f"gradient of {name.removesuffix('.grad')}" if name.endswith(".grad") else name


def _lost(clause: str, seen: Sequence[Observation]) -> list[Found]:
    if clause == "ranks.same-collectives":
        return [("ranks", say.MISMATCH.format(what=_parted(seen)))]
    if clause == "ranks.finish":
        hung = [progress(entry) for entry in seen if entry.fate == "hung"]
        return [("ranks", say.HANG.format(what="; ".join(f"rank {rank.rank} {rank.came_to()}" for rank in hung)))]
    dead = [entry.rank for entry in seen if entry.fate == "died"]
    raised = [entry for entry in seen if entry.raised]
    if clause == "ranks.alive" and dead:
        return [("ranks", say.CRASH.format(what=f"{ranks(dead)}'s process ends"))]
    if clause == "ranks.no-exception" and raised:
        kinds = dict.fromkeys(entry.raised.types[0] for entry in raised if entry.raised)
        who = "every rank" if len(raised) == len(seen) else ranks([entry.rank for entry in raised])
        return [("ranks", say.CRASH.format(what=f"{who} raises {' or '.join(kinds)}"))]
    return []


def _parted(seen: Sequence[Observation]) -> str:
    """What each rank did where their collectives part."""
    if all(entry.fate == "returned" for entry in seen):
        logs = {entry.rank: _first_unequal(seen).get(entry.rank, ()) for entry in seen}
        return "; ".join(f"rank {rank} entered {', '.join(log) or 'none'}" for rank, log in logs.items())
    came = [progress(entry) for entry in seen]
    number = parting(came)
    return "; ".join(f"rank {rank.rank} {rank.did_at(number) if number else rank.came_to()}" for rank in came)


def _first_unequal(seen: Sequence[Observation]) -> dict[int, tuple[str, ...]]:
    """The ranks' collectives of the first step in which they are not the same."""
    for name in seen[0].steps:
        logs = {
            entry.rank: tuple(map(str, entry.steps[name].collectives or ())) for entry in seen if name in entry.steps
        }
        if len(set(logs.values())) > 1:
            return logs
    return {}


def _budget(phase: str, case: Case, seen: Sequence[Observation]) -> list[Found]:
    planned = [str(budget) for budget in getattr(agreement(case), phase)]
    for entry in seen:
        for step in entry.steps.values():
            if step.collectives is None:
                continue
            entered = [f"{c.kind} {c.bytes} B" for c in step.collectives if c.phase == phase]
            if entered != planned:
                return [("collectives", _difference(phase, planned, entered))]
    return []


def _difference(phase: str, planned: list[str], entered: list[str]) -> str:
    extra, missing = list(entered), [name for name in planned if name not in entered]
    for name in planned:
        if name in extra:
            extra.remove(name)
    if extra and missing:
        return say.COLLECTIVE_OTHER.format(what=f"{', '.join(extra)} in the {phase} in place of {', '.join(missing)}")
    if missing:
        return say.COLLECTIVE_MISSING.format(what=f"{', '.join(missing)} in the {phase}")
    return say.COLLECTIVE_EXTRA.format(what=f"{', '.join(extra) or 'another order'} in the {phase}")
