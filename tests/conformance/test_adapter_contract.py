"""docs/adapters.md says what the code asks of an adapter, name by name; and the versions of it that the suite knows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import spec.clauses
from conformance.adapters.find import find
from conformance.adapters.layer import Layer
from conformance.adapters.protocol import ADAPTER_CONTRACT, KNOWN_CONTRACTS, Adapter, Declaration, Group, NoSuchAdapter
from conformance.adapters.pytorch import TorchAdapter
from conformance.observers import InProcess, Options
from conformance.suite import Suite
from spec import Case, Observation, Semantics, Step
from spec.case import PROCEDURES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adapters.md").read_text()
NEUTRAL = f"{ROOT / 'docs/examples/neutral.py'}:Columns"
SOUND = """
class Mine:
    controller = True

    def declare(self): ...

    def declines(self, case): ...

    def open(self, group): ...
"""


def section(title: str) -> str:
    """The text under a heading, up to the next."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def named(text: str) -> list[str]:
    """What the first column of the tables in a text has in code quotes, without arguments."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    return [re.sub(r"\(.*", "", name) for cell in cells for name in re.findall(r"`(.*?)`", cell)]


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")} - {"controller"}


def test_the_version_is_the_one_of_the_code() -> None:
    assert TEXT.splitlines()[2] == f"Version {ADAPTER_CONTRACT}."
    assert f"contract = {ADAPTER_CONTRACT}" in TEXT
    assert re.findall(r"^\| (\d+) \|", section("Versions"), re.M) == [str(version) for version in KNOWN_CONTRACTS]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Observation", {field.name for field in fields(Observation)}),
        ("Step", {field.name for field in fields(Step)}),
        ("What may be declared", {field.name for field in fields(Semantics)}),
        ("Procedures", set(PROCEDURES)),
        ("Facts", {*re.findall(r"^    (\w+)  ", spec.clauses.__doc__ or "", re.M), "global_rank"}),
        ("What build is asked for", {field.name for field in fields(Layer)}),
        (
            "Attributes",
            {name for name in public(TorchAdapter) if not callable(getattr(TorchAdapter, name))} | {"contract"},
        ),
        ("Methods", {name for name in public(TorchAdapter) if callable(getattr(TorchAdapter, name))}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_names_what_there_is_and_nothing_else(title: str, names: set[str]) -> None:
    told = named(section(title))

    assert sorted(told) == sorted(names)


def test_the_tables_of_the_protocol_name_what_there_is() -> None:
    told = named(section("For anything else"))
    members = [name for name in vars(Adapter) if not name.startswith("_")] + ["controller"]
    wanted = {*members, *(f.name for f in fields(Declaration)), *(f.name for f in fields(Group))}

    assert {name.removeprefix("session.") for name in told} == wanted | {"run", "close"}


# The module asks JAX for four devices where it is imported, which is not for this process.
JAX = """
import json, sys
from dataclasses import fields
from conformance.adapters.jax_adapter import JaxAdapter, Layer
from spec import Case

print(json.dumps({
    "adapter": [name for name in vars(JaxAdapter) if not name.startswith("_")],
    "layer": [field.name for field in fields(Layer)],
    "declines": [JaxAdapter().declines(Case.parse(line)) for line in sys.argv[1:]],
}))
"""


def jax(*lines: str) -> dict[str, list[str]]:
    """The names of JaxAdapter and of its Layer, and why it declines some cases."""
    command = [sys.executable, "-c", JAX, *lines]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return json.loads(told)


def test_the_section_on_jax_names_what_there_is() -> None:
    told, text = jax(), section("For JAX: JaxAdapter")
    quoted = {re.sub(r"\(.*", "", name) for name in re.findall(r"`(.*?)`", text)}

    assert set(told["adapter"]) - {"declare", "declines", "open"} <= quoted
    assert set(told["layer"]) <= quoted


@pytest.mark.parametrize("line", ["", "contract = 1"])
def test_an_adapter_of_a_version_that_is_known_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "sound.py").write_text(f"{SOUND}\n    {line}\n")

    assert type(find(f"{tmp_path / 'sound.py'}:Mine")).__name__ == "Mine"


@pytest.mark.parametrize("stated", ["2", "0", "'1'", "None", "True"])
def test_an_adapter_of_another_version_is_refused_with_those_that_are_known(stated: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(f"{SOUND}\n    contract = {stated}\n")
    said = re.escape(f"Mine states contract = {stated}; this suite knows version 1 of the adapter contract")

    with pytest.raises(NoSuchAdapter, match=said):
        find(f"{tmp_path / 'other.py'}:Mine")


def test_what_an_adapter_cannot_hold_against_anything_is_unsupported() -> None:
    suite = Suite(Options(impl="numpy"))
    suite.observer = InProcess(find(NEUTRAL))
    suite.examine(Case.parse("column P=1 batch=2 in=3 out=2 float32 seed=0"))
    judged, unsupported = ({name for name, *_ in counter} for counter in (suite.tally.judged, suite.tally.unsupported))

    assert "column.forward.value" in judged
    assert {"one-rank.bits", "one-rank.nodes"} <= unsupported - judged


REFUSALS = {
    "column P=2 batch=1 in=1 out=2 float32 bias procedure=refuse fault=gathered-and-skipped": "has no gather_output",
    "row P=2 batch=1 in=2 out=1 float32 bias procedure=refuse fault=unreduced-bias": "has no reduce_output",
    "row P=2 batch=1 in=4 out=1 float32 procedure=refuse fault=input-width": "",
}


def test_a_bad_combination_of_flags_is_declined_by_who_has_not_the_flags() -> None:
    assert [TorchAdapter().declines(Case.parse(line)) for line in REFUSALS] == list(REFUSALS.values())
    assert jax(*REFUSALS)["declines"] == list(REFUSALS.values())
