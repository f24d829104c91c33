"""What is expected of each mutant: the tables of `<family>.toml`, which stand beside the mutants of `<family>.py`."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One faulty implementation and what must be said of it.

    Attributes:
        items: the suite's items that apply to it, run in turn until one fails.
        clauses: that a report must name, one for each bug in it.
        also: further clauses that may name it, in cases which cannot show `clauses`.
        looks: for each clause the beginning of its diagnosis, "<subject>: <sentence>"; empty where no sentence fits.
        also_looks: further diagnoses that are right, of a mutant that the machine's load makes behave otherwise.
        rows, in_features, out_features: of the smallest case, at most.
    """

    family: str
    name: str
    items: tuple[str, ...]
    clauses: tuple[str, ...]
    also: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    also_looks: tuple[str, ...] = ()
    id: str = ""
    thread: str = ""
    rows: int = 1
    in_features: int = 8
    out_features: int = 8

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def impl(self) -> str:
        return f"{HERE / self.family}.py:{self.name}"

    @property
    def title(self) -> str:
        """The first sentence of its docstring."""
        return " ".join(_docstrings(self.family)[self.name].split())


@cache
def mutants() -> tuple[Mutant, ...]:
    """All mutants, by family."""
    return tuple(_mutant(file.stem, table) for file in _families() for table in _tables(file) if "items" in table)


@cache
def lawful() -> tuple[Mutant, ...]:
    """Implementations that go about it in another way and keep the contract."""
    file = HERE / "lawful.toml"
    return tuple(Mutant("lawful", table["name"], tuple(table["items"]), ()) for table in _tables(file))


def _families() -> list[Path]:
    return sorted(file for file in HERE.glob("*.toml") if file.stem != "lawful")


def _tables(file: Path) -> list[dict[str, Any]]:
    return list(tomllib.loads(file.read_text())["mutant"])


def _mutant(family: str, table: dict[str, Any]) -> Mutant:
    table = dict(table)
    clause, looks = table.pop("clause", None), table.pop("looks", ())
    clauses = tuple(table.pop("clauses", ())) or (clause,)
    lists = {name: tuple(table.pop(name, ())) for name in ("items", "also", "also_looks")}
    return Mutant(family, clauses=clauses, looks=(looks,) if isinstance(looks, str) else tuple(looks), **lists, **table)


@cache
def _docstrings(family: str) -> dict[str, str]:
    tree = ast.parse((HERE / f"{family}.py").read_text())
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)}
