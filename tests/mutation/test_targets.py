"""What is to be mutated is there, once, and so are the tests that should notice."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = tomllib.loads((Path(__file__).parent / "targets.toml").read_text())["target"]
MODULES = Counter(module for target in TARGETS for module in target["modules"])
# Modules without a line that can be mutated.
EMPTY = {
    "spec/clauses/__init__.py",
    "torch_tp/__init__.py",
    "torch_tp/errors.py",
    "torch_tp/layers/__init__.py",
    "torch_tp/models/__init__.py",
    "torch_tp/models/planning.py",
}


@pytest.mark.parametrize("folder", ["spec/clauses", "torch_tp"])
def test_every_module_is_a_target_once(folder: str) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")} - EMPTY
    assert expected == {module for module in MODULES if module.startswith(f"{folder}/")}
    assert set(MODULES.values()) == {1}


def test_what_is_named_is_there() -> None:
    words = {word.removeprefix("--deselect=").split("::")[0] for target in TARGETS for word in target["tests"]}
    paths = {word for word in words if not word.startswith("-")} | set(MODULES)
    assert not [path for path in paths if not (ROOT / path).is_file()]
