"""Which other libraries take part, and why one does not. Looks at what is installed without importing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final

from conformance.adapters.fairscale import Fairscale
from conformance.adapters.megatron import Megatron
from conformance.adapters.protocol import Requirement

# contender -> the package, the version that it was tested with, and what installs it.
TESTED: Final[Mapping[str, Requirement]] = {"Megatron": Megatron.requires[0], "fairscale": Fairscale.requires[0]}


def absence(name: str, version_of: Callable[[str], str] = metadata.version) -> str:
    """Why a contender cannot be asked for, in one sentence with the command that changes it; `""` if it can."""
    if name not in TESTED:
        return ""
    package, wanted = TESTED[name].distribution, TESTED[name].tested
    try:
        found = version_of(package)
    except metadata.PackageNotFoundError:
        return unavailable(name, f"{package} is not installed")
    return "" if found == wanted else unavailable(name, f"{package} is {found}, tested is {wanted}")


def unavailable(name: str, why: str) -> str:
    """The sentence, with the command where there is one."""
    command = f"; {TESTED[name].command}" if name in TESTED else ""
    return f"{name} does not take part: {why}{command}"
