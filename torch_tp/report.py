"""What became of each linear of a model, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One linear of a model.

    Attributes:
        name: its path, or that of its weight where no module of its own holds it.
        style: column, merged column, row or replicated.
        shape: `[out_features, in_features]` of the whole weight.
        bytes_before, bytes_after: of its weight and bias, on this rank.
        forward, backward: the collectives of one pass, where every gradient is wanted.
        reason: why it is replicated, or what else was changed for it.
    """

    name: str
    style: str
    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    forward: str = ""
    backward: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `parallelize` did.

    Attributes:
        world_size: P, the number of ranks that share the model.
        entries: its linears, in the order in which the model holds them.
        other_bytes: of all other parameters, which every rank holds whole.
        verified: what `verify=True` found, the same on all ranks; empty without it.
    """

    world_size: int
    entries: Sequence[Entry]
    other_bytes: int
    verified: str = ""

    @property
    def sharded_share(self) -> float:
        """The share of all parameters' bytes that lie in slices, 0 to 1."""
        sharded = sum(entry.bytes_before for entry in self.entries if entry.style != "replicated")
        return sharded / max(1, sum(entry.bytes_before for entry in self.entries) + self.other_bytes)

    def __str__(self) -> str:
        before = sum(entry.bytes_before for entry in self.entries) + self.other_bytes
        after = sum(entry.bytes_after for entry in self.entries) + self.other_bytes
        cut = [entry for entry in self.entries if entry.style != "replicated"]
        wide = max((len(entry.name) for entry in self.entries), default=0)
        lines = [
            f"{len(cut)} of {len(self.entries)} linears are cut over P = {self.world_size} ranks; a rank holds"
            f" {_size(after)} of {_size(before)} ({100 * self.sharded_share:.1f} % of all parameters lie in slices)"
        ]
        for entry in self.entries:
            collectives = ", ".join(
                f"{phase}: {what}" for phase, what in (("forward", entry.forward), ("backward", entry.backward)) if what
            )
            sizes = f"{_size(entry.bytes_before)} -> {_size(entry.bytes_after)}"
            told = f"{entry.name:<{wide}}  {entry.style:<13} {list(entry.shape)!s:<15} {sizes}"
            lines.append("  ".join(filter(None, (told, collectives, entry.reason))))
        if self.verified:
            lines.append(f"verified: {self.verified}")
        return "\n".join(lines)


def _size(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
