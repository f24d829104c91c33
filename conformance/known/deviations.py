"""Known deviations of an implementation, in a TOML file of its maintainers' own.

    [[deviation]]
    clause = "row.backward.bias-grad"
    when = { layer = "row", bias = true }
    case = "row P=2 batch=1 in=2 out=1 float32 bias seed=0"
    reason = "the bias lives on rank 0 only"
    link = "https://..."

`when` holds fields of Case that must be equal (and rows, the product of the batch; batch_dims, how many there are;
compute_dtype); a list means any of its values. `case` is one line that shows the deviation. The file is strict: the
suite runs each `case`, and an entry whose case does not break its clause any more fails the run.

Where the bits of a product decide, the same layer may deviate with one processor and not with another. Such an entry
says so, in words, and then its case may break its clause or not; the report tells which of both was seen:

    machine = "which kernel F.linear calls: those of MKL for AVX-512 round otherwise here, those for AVX2 do not"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from conformance.adapters.find import OURS
from spec import REGISTER, Case


class BadKnownFile(ValueError):
    """A file of known deviations that says something impossible; the text names the entry and what would be right."""


_CONDITIONS = {f.name for f in fields(Case)} | {"rows", "batch_dims", "compute_dtype"}


def default_file(impl: str) -> str:
    """The file of known deviations that comes with one of our own names; empty where there is none."""
    file = Path(__file__).parent / f"{impl}.toml"
    return str(file) if impl in OURS and file.is_file() else ""


@dataclass(frozen=True)
class Deviation:
    """One entry.

    Attributes:
        machine: what of the machine decides whether it is there; empty where it is there on every one.
    """

    clause: str
    case: Case
    reason: str
    when: Mapping[str, Any] = field(default_factory=dict[str, Any])
    link: str = ""
    machine: str = ""

    def explains(self, clause: str, case: Case) -> bool:
        """Whether a violation of `clause` by `case` is this one."""
        return clause == self.clause and all(
            getattr(case, name) in value if isinstance(value, list) else getattr(case, name) == value
            for name, value in self.when.items()
        )


@dataclass(frozen=True)
class Known:
    """All entries of one file."""

    deviations: tuple[Deviation, ...] = ()

    def explains(self, clause: str, case: Case) -> bool:
        """Whether any entry covers this violation."""
        return any(entry.explains(clause, case) for entry in self.deviations)

    @classmethod
    def read(cls, path: str) -> Known:
        """The entries of a file.

        Raises:
            BadKnownFile: no such file, no TOML, an unknown clause or field, or a case that is none.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadKnownFile(f"--known {path}: {error}") from None
        entries = content.get("deviation", [])
        if set(content) - {"deviation"} or not isinstance(entries, list):
            raise BadKnownFile(f"--known {path}: has {sorted(content)}; it holds tables [[deviation]] and nothing else")
        return cls(tuple(_deviation(f"--known {path}, entry {n + 1}", entry) for n, entry in enumerate(entries)))


def _condition(name: str, value: Any) -> Any:
    """A list means any of its values; a batch is a list itself, and any of several is a list of those."""
    if name != "batch" or not isinstance(value, list):
        return value
    several = bool(value) and all(isinstance(entry, list) for entry in value)
    return [tuple(entry) for entry in value] if several else tuple(value)


def _check_machine(where: str, entry: Mapping[str, Any]) -> None:
    """A mark that gives no reason would make any entry lenient."""
    machine = entry.get("machine", "unmarked")
    if not isinstance(machine, str) or not machine.strip():
        raise BadKnownFile(f"{where}: has machine = {machine!r}; say in words what of the machine it depends on")


def _deviation(where: str, entry: Any) -> Deviation:
    if not isinstance(entry, dict):
        raise BadKnownFile(f"{where}: is no table; write [[deviation]]")
    names = {f.name for f in fields(Deviation)}
    missing = [name for name in ("clause", "case", "reason") if name not in entry]
    unknown = [name for name in entry if name not in names]
    if missing or unknown:
        raise BadKnownFile(f"{where}: missing {missing}, unknown {unknown}; an entry has {sorted(names)}")
    if entry["clause"] not in REGISTER:
        raise BadKnownFile(f"{where}: there is no clause {entry['clause']!r}; `python -m spec` lists them")
    _check_machine(where, entry)
    when = entry.get("when", {})
    foreign = [name for name in when if name not in _CONDITIONS] if isinstance(when, dict) else when
    if foreign:
        raise BadKnownFile(f"{where}: `when` has {foreign}, which no Case has")
    try:
        case = Case.parse(str(entry["case"]))
    except ValueError as error:
        raise BadKnownFile(f"{where}: {error}") from None
    when = {name: _condition(name, value) for name, value in when.items()}
    for name, value in when.items():
        kind = type(getattr(case, name))
        if any(type(one) is not kind for one in (value if isinstance(value, list) else [value])):
            raise BadKnownFile(f"{where}: `when` has {name} = {entry['when'][name]!r}; of a Case it is {kind.__name__}")
    made = Deviation(entry["clause"], case, entry["reason"], when, entry.get("link", ""), entry.get("machine", ""))
    if not made.explains(made.clause, case):
        raise BadKnownFile(f"{where}: `when` does not fit its own `case` {case}")
    return made
