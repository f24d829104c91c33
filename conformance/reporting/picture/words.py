"""What a picture says in words: the names of what it shows, and all of it in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.reporting.evidence.flow import Exchange, exchanges
from conformance.reporting.picture.glyphs import cut_along, parts_of

Evidence = Mapping[str, Any]
STAGES = {"": "entered", "waits": "waits in it", "finished": "finished", "failed": "failed"}
_SYMBOLS = {"input": "X", "weight": "W", "bias": "b", "weight2": "W2", "bias2": "b2", "output": "Y"}


def symbol(name: str) -> str:
    """The letter of the contract for a tensor."""
    if name == "upstream gradient":
        return "G"
    of = name.removeprefix("gradient of ")
    return ("d" if of != name else "") + _SYMBOLS.get(of, of)


def placed(tensor: Mapping[str, Any]) -> str:
    """How the ranks have it."""
    if tensor["placement"] in ("R", "P"):
        return "whole on every rank" if tensor["placement"] == "R" else "a term on each rank"
    dim, parts = cut_along(tensor), parts_of(tensor)
    how = "each part cut" if parts else "cut"
    how += f" along dimension {dim}" if len(tensor["shape"]) > 1 else ""
    return how + ", some in copies" * any(copies > 1 for _, copies in parts)


def standing(entry: Exchange, P: int) -> tuple[str, str]:
    """A collective beside what the contract asks for, in words, and their class."""
    absent = ", ".join(str(r) for r in range(P) if r not in entry.ranks)
    if entry.others:
        return f"\u2260 with rank {entry.others} of another group", "bad"
    if not entry.asked:
        return "! not asked for" + (f", not on {absent}" if absent else ""), "extra"
    if not entry.ranks:
        return "\u2260 asked for, never made", "bad"
    return (f"\u2260 asked for, not on {absent}", "bad") if absent else ("\u2713 asked for", "q")


def words(evidence: Evidence) -> list[str]:
    """The picture in sentences."""
    told = [f"{tensor['name']} {tensor['shape']}: {placed(tensor)}." for tensor in evidence["tensors"]]
    for r, fate in enumerate(evidence.get("fates", ())):
        last = [entry for entry in evidence["flow"] if entry["rank"] == r][-1:]
        came = "".join(f", last in #{e['number']} {e['kind']} ({STAGES.get(e['stage'], '')})" for e in last)
        told.append(f"rank {r} {fate}{came}.")
    for phase in ("forward", "backward"):
        for entry in exchanges(evidence, phase) if evidence["flow"] is not None else ():
            told.append(f"{phase}: {entry.kind} of {entry.bytes} bytes, {standing(entry, evidence['P'])[0][2:]}.")
    for tensor in evidence["tensors"]:
        for r, rank in enumerate(tensor["ranks"]):
            if rank["differs"] or rank["note"]:
                what = rank["note"] or f"{rank['differs']} elements differ"
                told.append(f"{tensor['name']} on rank {r}: {what}.")
    return told
