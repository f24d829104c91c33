"""A whole report.json: the runs in it, and what is the same in every report of one suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from typing import Final

from conformance.items import items
from conformance.reporting.record.run import WORLDS, Run
from spec import REGISTER
from spec.case import LAYERS

FORMAT: Final = 1
FILE: Final = "report.json"


@dataclass(frozen=True)
class SuiteVersion:
    """Which suite judged.

    Attributes:
        contract: a hash of the clauses (name, level, title, text) and of the items' names.
    """

    version: str
    contract: str


@dataclass(frozen=True)
class ClauseText:
    """A clause of the register.

    Attributes:
        group: the first word of its name; layer: the same where that is a layer, else empty.
    """

    name: str
    level: str
    title: str
    text: str
    group: str
    layer: str


@dataclass(frozen=True)
class Report:
    """Everything in one report.json."""

    format: int
    suite: SuiteVersion
    clauses: tuple[ClauseText, ...]
    runs: tuple[Run, ...]


def new_report(runs: Sequence[Run]) -> Report:
    """A report of this suite about these runs."""
    clauses = tuple(ClauseText(c.name, c.level, c.title, c.text, *_place(c.name)) for c in REGISTER.values())
    return Report(FORMAT, suite_version(), clauses, tuple(runs))


def _place(name: str) -> tuple[str, str]:
    first = name.partition(".")[0]
    return first, first if first in LAYERS else ""


@lru_cache(maxsize=1)
def suite_version() -> SuiteVersion:
    """The version of this suite; of a checkout that is not installed it is unknown."""
    try:
        version = metadata.version("torch-tp")
    except metadata.PackageNotFoundError:
        version = "unknown"
    texts = [[c.name, c.level, c.title, c.text] for c in REGISTER.values()]
    whole = json.dumps([texts, [str(item) for item in items(WORLDS)]])
    return SuiteVersion(version, blake2b(whole.encode(), digest_size=8).hexdigest())
