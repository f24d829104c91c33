"""What is known of ranks that were lost: how far each had come in its collectives, where it stood, how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from conformance.reporting.failure.stacks import shown
from spec import Observation
from spec.clauses.progress import table_of_collectives

_INDENT = "           "
_MOST_LINES, _MOST_CHARACTERS = 10, 200


def lost_ranks(seen: Sequence[Observation], global_ranks: Sequence[int]) -> list[str]:
    """The lines of a report about them; none where all ranks returned.

    Args:
        global_ranks: the ranks of the group in the world, which are told where they are others.
    """
    if not any(map(_is_lost, seen)):
        return []
    seen = list({id(entry): entry for entry in seen}.values())  # a controller that is lost is lost for all its ranks
    names = [_name(entry.rank, global_ranks[entry.rank]) for entry in seen]
    lines = ["  collectives", *(_INDENT + line for line in table_of_collectives(seen, names).splitlines())]
    lines.append("  stacks   innermost call first")
    for name, entry in zip(names, seen, strict=True):
        if _is_lost(entry):
            lines += [f"  {name:<8} {_ended(entry)}", *(_INDENT + line for line in _known(entry))]
    return lines


def _is_lost(entry: Observation) -> bool:
    return entry.fate != "returned" or entry.raised is not None


def _name(rank: int, global_rank: int) -> str:
    return f"rank {rank}" if rank == global_rank else f"rank {rank} (global {global_rank})"


def _ended(entry: Observation) -> str:
    if entry.fate == "died":
        return f"died: {(entry.exit.splitlines() or ['how is not known'])[0]}"
    if entry.raised:
        return f"raised {shorten(str(entry.raised).splitlines()[0], _MOST_CHARACTERS, placeholder=' ...')}"
    return "did not finish" if entry.fate == "hung" else "was stopped, since another rank had failed"


def _known(entry: Observation) -> list[str]:
    """Where it stood, and what it said."""
    stack = entry.raised.traceback if entry.raised and entry.fate == "raised" else entry.stack
    text = str(entry.raised).splitlines()[1:_MOST_LINES] if entry.raised else []
    printed = entry.exit.splitlines()[entry.fate == "died" :]
    said = [line for line in printed if line.strip()][-_MOST_LINES:]
    lines = [*text, *(f"  {line}" for line in shown(stack))] or ["  its stack is not known"]
    return lines + (["printed last", *(f"  {line}" for line in said)] if said else [])
