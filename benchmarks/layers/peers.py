"""Which other libraries take part, and why one does not. Looks at what is installed without importing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final

# contender -> the package and version that it was tested with, and what installs it.
TESTED: Final[Mapping[str, tuple[str, str, str]]] = {
    "Megatron": ("megatron-core", "0.16.1", "python -m pip install megatron-core==0.16.1"),
    "fairscale": ("fairscale", "0.4.13", "python -m pip install --no-build-isolation fairscale==0.4.13"),
}


def absence(name: str, version_of: Callable[[str], str] = metadata.version) -> str:
    """Why a contender cannot be asked for, in one sentence with the command that changes it; `""` if it can."""
    if name not in TESTED:
        return ""
    package, wanted, _ = TESTED[name]
    try:
        found = version_of(package)
    except metadata.PackageNotFoundError:
        return unavailable(name, f"{package} is not installed")
    return "" if found == wanted else unavailable(name, f"{package} is {found}, tested is {wanted}")


def unavailable(name: str, why: str) -> str:
    """The sentence, with the command where there is one."""
    command = f"; {TESTED[name][2]}" if name in TESTED else ""
    return f"{name} does not take part: {why}{command}"
