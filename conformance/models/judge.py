"""From an item to what is wrong with it: ranks of a pool run it, the laws judge it, and a text says it to people."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from conformance.models.items import ModelItem
from conformance.models.subjects import SUBJECTS
from conformance.observers import Options
from conformance.ranks import RankPool, RankSetup, Reply
from spec import LAWS, Law, Measured, Violation, broken

# Several times what an item takes on a loaded machine: four ranks plan a model at once. Once one has hung the next
# need not wait so long, and after some nobody learns more.
DEADLINE, DEADLINE_AFTER_HANG, MOST_HANGS = 450.0, 120.0, 3
_SHOWN: Final = 6
_STACK_LINES: Final = 30


def impossible(item: ModelItem, options: Options) -> str:
    """Why an item cannot be run here, or an empty string."""
    if SUBJECTS[item.subject].classes and importlib.util.find_spec("transformers") is None:
        return f"{item.subject} is a model of transformers, which is not installed: pip install 'torch-tp[models]'"
    if options.attached:
        return "models run on the suite's own ranks, not on torchrun's"
    if (options.backend, options.device) != ("gloo", "cpu"):
        return "models run on gloo and the CPU, whose float64 their bounds are for"
    return ""


def _setup(options: Options, P: int) -> RankSetup:
    """What ranks that run models must know."""
    chosen = {"impl": options.impl, "scratch": options.scratch}
    return RankSetup(P, "conformance.models.inside.serve:serve", chosen, sys_path=options.sys_path)


@dataclass(frozen=True)
class ModelVerdict:
    """What the suite says of one item.

    Attributes:
        judged, broken: names of laws; where a rank was lost none of them holds.
        text: what is wrong, for people; empty where nothing is.
    """

    judged: tuple[str, ...]
    broken: tuple[str, ...] = ()
    text: str = ""


class ModelJudge:
    """Runs items on ranks of its own, which run models and nothing else, and judges them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._pool = RankPool()
        self._hangs = 0

    def __enter__(self) -> ModelJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def examine(self, item: ModelItem) -> ModelVerdict:
        """Run an item and judge it."""
        laws = _laws(item, self.options)
        if self._hangs >= MOST_HANGS:
            told = f"{item} was not run: {self._hangs} items had hung already"
            return ModelVerdict(laws, laws, told)
        replies = self._pool.call(
            _setup(self.options, item.P), _command(item), DEADLINE_AFTER_HANG if self._hangs else DEADLINE
        )
        self._hangs += any(reply.fate == "hung" for reply in replies)
        return verdict_of(item, self.options, replies)


def _laws(item: ModelItem, options: Options) -> tuple[str, ...]:
    return tuple(law.name for law in item.laws if not options.clauses or law.name.startswith(options.clauses))


def _command(item: ModelItem) -> bytes:
    asked: dict[str, Any] = {"subject": item.subject, "procedure": item.procedure}
    if item.procedure == "jax":
        from conformance.models.jax_twin import losses

        asked["reference"] = losses()
    return json.dumps(asked).encode()


def verdict_of(item: ModelItem, options: Options, replies: Sequence[Reply]) -> ModelVerdict:
    """What the replies of an item's ranks amount to."""
    names = _laws(item, options)
    if any(reply.fate != "returned" for reply in replies):
        return ModelVerdict(names, names, _told(item, options, _lost(replies)))
    ranks = [[Measured.from_data(entry) for entry in json.loads(reply.payload or b"[]")] for reply in replies]
    found = {LAWS[name]: tuple(broken(LAWS[name], ranks)) for name in names}
    failing = tuple(law.name for law, violations in found.items() if violations)
    if not failing:
        return ModelVerdict(names)
    lines = [line for law, violations in found.items() for line in _violated(law, violations)]
    return ModelVerdict(names, failing, _told(item, options, lines))


def _told(item: ModelItem, options: Options, lines: Sequence[str]) -> str:
    impl = "" if options.impl == "torch_tp" else f"--impl {options.impl} "
    replay = f"  replay   python -m conformance.models replay {impl}{item}"
    return "\n".join([f"{item} of {options.impl}", replay, *lines])


def _violated(law: Law, violations: Sequence[Violation]) -> list[str]:
    if not violations:
        return []
    lines = [f"{law.name} ({law.level}): {law.title}", f"  law      {law.text}"]
    for violation in violations[:_SHOWN]:
        told = f": expected {violation.expected}, got {violation.got}" if violation.expected else ""
        lines.append(f"  rank {violation.rank}   {violation.what}{told}")
    if len(violations) > _SHOWN:
        lines.append(f"  ...      and {len(violations) - _SHOWN} more")
    return lines


def _lost(replies: Sequence[Reply]) -> list[str]:
    """What became of ranks that did not return, and their stacks, each once."""
    lines, seen = [], set[str]()
    for reply in replies:
        if reply.fate == "returned":
            continue
        lines.append(f"rank {reply.rank} {reply.fate} {reply.exit}".rstrip())
        text = "\n".join(filter(None, (reply.stack.rstrip(), reply.output.rstrip())))
        if text not in seen:
            lines += [f"    {line}" for line in text.splitlines()[-_STACK_LINES:]]
        seen.add(text)
    return lines
