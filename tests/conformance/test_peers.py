"""The peers' command, and the sentence for a package that is missing, broken or of another version."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance import peers
from conformance.adapters.find import find
from conformance.adapters.protocol import Declaration, NoSuchAdapter, Requirement
from conformance.observers import Options
from conformance.reporting.session.tables import header
from spec import Semantics

NEEDS = """
from conformance.adapters.protocol import Requirement
from conformance.adapters.pytorch import TorchAdapter

class Mine(TorchAdapter):
    requires = (Requirement({0!r}, "9.9", {1!r}),)
"""


def adapter(folder: Path, distribution: str, module: str) -> str:
    path = folder / f"needs_{distribution.replace('-', '_')}.py"
    path.write_text(NEEDS.format(distribution, module))
    return f"{path}:Mine"


def test_every_peer_is_a_run_of_its_own_with_a_report_of_its_own():
    planned = peers.commands(["dtensor", "megatron"], "out", ["-n", "4"])

    assert list(planned) == ["dtensor", "megatron"]
    assert planned["megatron"][1:] == ["--impl", "megatron", "--report", str(Path("out") / "megatron"), "-n", "4"]
    assert peers.commands(["dtensor"], "", [])["dtensor"][1:] == ["--impl", "dtensor"]
    assert {"dtensor", "megatron", "fairscale"} <= set(peers.PEERS)
    assert "torch_tp" not in peers.PEERS


def test_one_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    codes = {"dtensor": 4, "megatron": 0, "fairscale": 1}
    monkeypatch.setattr(peers, "_run", lambda name, arguments: codes[name])

    assert peers.main([word for name in codes for word in ("--impl", name)]) == 4
    assert capsys.readouterr().out.splitlines() == [
        "",
        "dtensor: was not run (exit code 4)",
        "megatron: conforms, but for what is known (exit code 0)",
        "fairscale: some tests failed (exit code 1)",
    ]


def test_without_a_single_report_there_is_nothing_to_merge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(peers, "_run", lambda name, arguments: 0)

    assert peers.main(["--impl", "dtensor", "--report", str(tmp_path / "out")]) == 1


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path: Path):
    impl = adapter(tmp_path, "no-such-package", "no_such_package")

    with pytest.raises(NoSuchAdapter) as caught:
        find(impl)
    assert str(caught.value) == (
        f"--impl {impl}: no-such-package is not installed; python -m pip install no-such-package==9.9"
    )


def test_a_package_that_cannot_be_imported_is_named_with_the_command_and_the_reason(tmp_path: Path):
    impl = adapter(tmp_path, "numpy", "numpy.no_such_module")

    with pytest.raises(NoSuchAdapter) as caught:
        find(impl)
    installed = importlib.metadata.version("numpy")
    assert str(caught.value) == (
        f"--impl {impl}: numpy {installed} cannot be imported (ModuleNotFoundError: No module named"
        " 'numpy.no_such_module'); python -m pip install numpy==9.9"
    )


def test_another_version_is_a_note_in_the_header(tmp_path: Path):
    found = find(adapter(tmp_path, "numpy", "numpy")).declare()

    installed = importlib.metadata.version("numpy")
    assert found.versions["numpy"] == installed
    assert found.notes == (f"numpy {installed} is untested, 9.9 is what was tested: python -m pip install numpy==9.9",)
    assert Requirement("numpy", installed, "numpy").note() == ""


def test_the_header_says_what_is_declared_and_noted():
    declared = Declaration("theirs", {}, semantics=Semantics(always_pair=True), notes=("numpy 1 is untested",))
    suite = SimpleNamespace(declaration=declared)

    lines = header(Options(), suite, "quick", "0")  # type: ignore[arg-type]

    assert lines[-2:] == [
        "  declared: every call returns a pair (output, bias or None)",
        "  note: numpy 1 is untested",
    ]


def test_an_adapter_of_ours_imports_its_framework_only_when_it_is_asked_to():
    assert not {"fairscale", "megatron"} & set(sys.modules)
    for name in ("fairscale", "megatron"):
        __import__(f"conformance.adapters.{name}")
    assert not {"fairscale", "megatron"} & set(sys.modules)
