"""What `import torch_tp` loads, proven in a fresh interpreter; and that the proof can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch_tp

ROOT = Path(torch_tp.__file__).parents[1]
# Other rooms and frameworks; and what of torch is slow to load and needed by nobody who only builds layers.
FORBIDDEN = {"spec", "conformance", "jax", "safetensors", "pytest", "hypothesis"}
HEAVY = {"torch.distributed.tensor", "torch._dynamo", "torch._inductor", "torch.testing", "sympy"}


def loaded(statement: str) -> set[str]:
    """The modules present after the statement that were not there after importing torch and torch.distributed."""
    code = (
        "import sys, torch, torch.distributed\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def offenders(modules: set[str]) -> set[str]:
    return {name for name in modules if name in HEAVY or name.partition(".")[0] in FORBIDDEN}


def test_the_library_adds_only_its_own_modules() -> None:
    modules = loaded("import torch_tp")

    assert "torch_tp.layers.column" in modules
    assert {name for name in modules if name.partition(".")[0] != "torch_tp"} == set()


def test_the_proof_can_fail() -> None:
    assert offenders(loaded("import torch_tp, torch.distributed.tensor")) >= {"torch.distributed.tensor"}
    assert offenders(loaded("import torch_tp, pytest")) >= {"pytest"}


def test_nothing_forbidden_is_loaded_by_building_a_layer() -> None:
    assert offenders(loaded("import torch_tp; torch_tp.ColumnParallelLinear(4, 6, rank=0, world_size=2)")) == set()


def test_the_public_names_are_all_there() -> None:
    assert [name for name in torch_tp.__all__ if not hasattr(torch_tp, name)] == []
    assert sorted(torch_tp.__all__) == torch_tp.__all__


def test_the_types_are_announced() -> None:
    assert (ROOT / "torch_tp" / "py.typed").is_file()
