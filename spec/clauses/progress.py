"""How far the ranks of a group had come in their collectives, from what each announced, and where they part.

A line `#3 all-reduce 64 B float32` says that a rank was about to enter its third collective; `#3 waits`, that it was
about to wait for it; `#3 finished` or `#3 failed`, how that ended. A line without a number is the next collective.
Nothing is concluded from a line that is not there: an implementation may announce what it enters and no more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spec.observation import Fate, Observation

_NUMBERED = re.compile(r"#(\d+) (.*)")
_DROPPED = re.compile(r"\(\d+ earlier lines dropped\)")
_DROPPED_TEXT = "a collective whose line was dropped"


@dataclass(frozen=True)
class Progress:
    """What one rank announced.

    Attributes:
        entered: number -> the collective, as text.
        stages: number -> the last of `waits`, `finished` and `failed` that was announced.
    """

    rank: int
    fate: Fate
    entered: Mapping[int, str]
    stages: Mapping[int, str]

    @property
    def last(self) -> int:
        """The number of the last collective that it entered; 0 for none."""
        return max(self.entered, default=0)

    @property
    def stands_in(self) -> int:
        """The number of the collective that it is known to wait for, still; 0 for none."""
        waits = self.fate in ("hung", "victim") and self.stages.get(self.last) == "waits"
        return self.last if waits else 0

    def came_to(self) -> str:
        """The last thing that is known of it."""
        if not self.last:
            return "entered no collective"
        return f"{self._stage(_VERBS, self.last) or 'entered'} #{self.last} {self.entered[self.last]}"

    def did_at(self, number: int) -> str:
        """What it did where others did something else."""
        if self.last < number:
            return f"{self.came_to()}, never joined #{number}"
        here = f"entered #{number} {self.entered.get(number, _DROPPED_TEXT)}"
        if self.last > number:
            return f"{here}, later {self.came_to()}"
        return here + self._stage(_ENDINGS, number)

    def _stage(self, words: Mapping[str, str], number: int) -> str:
        stage = self.stages.get(number, "")
        return words.get("waited" if stage == "waits" and not self.stands_in else stage, "")


_VERBS = {"waits": "waits in", "waited": "waited in", "finished": "finished", "failed": "failed in"}
_ENDINGS = {
    "waits": ", and waits in it",
    "waited": ", and waited in it",
    "finished": ", and finished it",
    "failed": ", and failed in it",
}


def progress(seen: Observation) -> Progress:
    """What a rank's announcements say."""
    entered: dict[int, str] = {}
    stages: dict[int, str] = {}
    for line in seen.entered:
        found = _NUMBERED.fullmatch(line)
        number, text = (int(found[1]), found[2]) if found else (max(entered, default=0) + 1, line)
        if found and text in ("waits", "finished", "failed"):
            stages[number] = text
        elif not _DROPPED.fullmatch(line):
            entered[number] = text
    return Progress(seen.rank, seen.fate, entered, stages)


def diverged(ranks: Sequence[Progress]) -> bool:
    """Whether two ranks entered different collectives at one number, so that neither is just further than the other."""
    numbers = {number for rank in ranks for number in rank.entered if number < _first_message(ranks)}
    return any(len({_shared(rank.entered[n]) for rank in ranks if n in rank.entered}) > 1 for n in numbers)


def _shared(text: str) -> str:
    """What all ranks must have in common: of a scatter only the root has a payload."""
    return "scatter" if text.startswith("scatter ") else text


def _first_message(ranks: Sequence[Progress]) -> int:
    """The first number at which a rank sent to, or received from, one other: from there numbers are not alike."""
    messages = (n for rank in ranks for n, text in rank.entered.items() if text.startswith("p2p"))
    return min(messages, default=sys.maxsize)


def parting(ranks: Sequence[Progress]) -> int:
    """The first number at which not every rank entered the same collective; 0 where there is none."""
    for number in range(1, min(max((rank.last for rank in ranks), default=0) + 1, _first_message(ranks))):
        texts = {_shared(rank.entered.get(number, _DROPPED_TEXT)) for rank in ranks if rank.last >= number}
        if len(texts - {_DROPPED_TEXT}) > 1 or any(rank.last < number for rank in ranks):
            return number
    return 0


def table_of_collectives(seen: Sequence[Observation], names: Sequence[str] = ()) -> str:
    """What all ranks had in common, then one line per rank: what it did where they part.

    Args:
        names: what to call the ranks; without them `rank 0` and so on.
    """
    ranks = [progress(observation) for observation in seen]
    number = parting(ranks)
    lines = [_in_common(ranks, number)] if len(ranks) > 1 else []
    for position, rank in enumerate(ranks):
        name = names[position] if names else f"rank {rank.rank}"
        lines.append(f"{name} {rank.fate}: {rank.did_at(number) if number else rank.came_to()}")
    return "\n".join(lines)


def _in_common(ranks: Sequence[Progress], number: int) -> str:
    if not number and _first_message(ranks) < sys.maxsize:
        return "ranks sent messages to one another, so what they entered afterwards is not compared"
    last = number - 1 if number else ranks[0].last
    if not last:
        return "the ranks part at #1, their first collective" if number else "no rank entered a collective"
    text = ranks[0].entered.get(last, _DROPPED_TEXT)
    span = f"#1 {text}" if last == 1 else f"#1 to #{last}, the last {text}"
    return f"all ranks entered {span}" + (f"; they part at #{number}" if number else ", and no other")
