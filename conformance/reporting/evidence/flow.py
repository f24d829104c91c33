"""What flowed between ranks, as plain data, and how it compares with what the contract asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from spec import Case, Observation, agreement
from spec.clauses.collectives import SECOND_COUNTS
from spec.clauses.progress import parting, progress

_LAST = 8
_COLLECTIVE = re.compile(r"(\S+) (\d+) B ?(\S*)")
Key = tuple[str, int]


@dataclass(frozen=True)
class Exchange:
    """One collective of a phase, on the ranks that entered it.

    Attributes:
        asked: the contract asks every rank for it.
        others: global ranks that were in it and are not of the group, as text; empty where there are none.
    """

    kind: str
    bytes: int
    asked: bool
    ranks: tuple[int, ...]
    dtype: str = ""
    others: str = ""


def of_step(case: Case, seen: Sequence[Observation], name: str) -> dict[str, Any]:
    """`flow` and `agreed` of one step; flow is None where nothing was observed, or nothing is asked of the step."""
    logs = [entry.steps[name].collectives for entry in seen]
    counts = name == "first" or (name == "second" and case.procedure in SECOND_COUNTS)
    if not counts or case.procedure in ("init", "state-dict") or any(log is None for log in logs):
        return {"flow": None, "agreed": []}
    flow = [
        {
            "rank": r,
            "phase": entry.phase,
            "kind": entry.kind,
            "bytes": entry.bytes,
            "dtype": entry.dtype,
            "ranks": None if entry.ranks is None else list(entry.ranks),
        }
        for r, log in enumerate(logs)
        for entry in log or ()
    ]
    phases = (("forward", agreement(case).forward), ("backward", agreement(case).backward))
    agreed = [{"phase": phase, "kind": e.kind, "bytes": e.bytes} for phase, budget in phases for e in budget]
    return {"flow": flow, "agreed": agreed}


def of_lost(seen: Sequence[Observation]) -> dict[str, Any]:
    """How far each rank of a group is known to have come: `flow`, `fates`, and `parts`, the number where they part."""
    ranks, flow = [progress(entry) for entry in seen], []
    for r, rank in enumerate(ranks):
        for number in sorted(rank.entered)[-_LAST:]:
            found = _COLLECTIVE.fullmatch(rank.entered[number])
            kind, size, dtype = found.groups() if found else (rank.entered[number], "0", "")
            told = {"rank": r, "phase": "", "kind": kind, "bytes": int(size), "dtype": dtype, "ranks": None}
            flow.append(told | {"number": number, "stage": rank.stages.get(number, "")})
    fates = ["raised" if entry.raised and entry.fate == "returned" else entry.fate for entry in seen]
    return {"flow": flow, "agreed": [], "fates": fates, "parts": parting(ranks)}


def exchanges(evidence: Mapping[str, Any], phase: str) -> list[Exchange]:
    """The collectives of a phase in order: those asked for with the ranks that made them, others where they came."""
    asked = [_key(entry) for entry in evidence["agreed"] if entry["phase"] == phase]
    made: list[list[Mapping[str, Any]]] = [[] for _ in evidence["ranks"]]
    for entry in evidence["flow"] or ():
        if entry["phase"] == phase:
            made[entry["rank"]].append(entry)
    met: list[dict[int, Mapping[str, Any]]] = [{} for _ in asked]
    extra: list[dict[tuple[Key, int], dict[int, Mapping[str, Any]]]] = [{} for _ in range(len(asked) + 1)]
    for r, log in enumerate(made):
        pairs = _pairs([_key(entry) for entry in log], asked)
        place, counts = 0, dict[tuple[int, Key], int]()
        for number, entry in enumerate(log):
            if number in pairs:
                place = pairs[number] + 1
                met[pairs[number]][r] = entry
                continue
            nth = counts[place, _key(entry)] = counts.get((place, _key(entry)), 0) + 1
            extra[place].setdefault((_key(entry), nth), {})[r] = entry
    found: list[Exchange] = []
    for place in range(len(asked) + 1):
        found += [_exchange(evidence, key, False, by_rank) for (key, _), by_rank in extra[place].items()]
        found += [_exchange(evidence, asked[place], True, met[place])] if place < len(asked) else []
    return found


def is_wrong(evidence: Mapping[str, Any]) -> bool:
    """Whether some rank's collectives were seen, and are others than those asked for."""
    found = [entry for phase in ("forward", "backward") for entry in exchanges(evidence, phase)]
    everyone = tuple(range(len(evidence["ranks"])))
    return evidence["flow"] is not None and any(not e.asked or e.ranks != everyone or e.others for e in found)


def _exchange(evidence: Mapping[str, Any], key: Key, asked: bool, by_rank: Mapping[int, Mapping[str, Any]]) -> Exchange:
    group = set(evidence["ranks"])
    strangers = sorted({r for entry in by_rank.values() for r in entry["ranks"] or () if r not in group})
    dtypes = dict.fromkeys(entry["dtype"] for entry in by_rank.values())
    return Exchange(*key, asked, tuple(sorted(by_rank)), ", ".join(dtypes), ", ".join(map(str, strangers)))


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["kind"], entry["bytes"]


def _pairs(log: Sequence[Key], asked: Sequence[Key]) -> dict[int, int]:
    """Position in a log -> position among those asked for, in the order of both."""
    blocks = SequenceMatcher(None, log, asked, autojunk=False).get_matching_blocks()
    return {block.a + i: block.b + i for block in blocks for i in range(block.size)}
