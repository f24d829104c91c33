"""What `TP_DEBUG` turns on, which is read once, at the first use; unset, it costs nothing.

`TP_DEBUG=1` logs each collective to the logger `torch_tp`, once when it is entered and once
when it is left. `TP_DEBUG=check` compares, before each collective and at the start of each
layer, what must be the same on all ranks. `TP_DEBUG=1,check` does both.

The comparison is one all-gather of `_WORDS` int64 words, which are the bytes of a text of
`name=value` lines behind a checksum, so that nothing from another rank is ever unpickled.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from torch_tp import c10d
from torch_tp.errors import RankMismatchError
from torch_tp.group import Group

LOGGER = logging.getLogger("torch_tp")

_WORDS = 128
_MODES = {"", "0", "1", "check"}


def enter(
    operation: str,
    what: str,
    tensor: Tensor,
    group: Group,
    facts: Mapping[str, object] | None = None,
) -> Callable[[], None]:
    """Check and log one collective that is about to start; call the result when it has ended."""
    turned_on = modes()
    if not turned_on:
        return _nothing
    if "check" in turned_on:
        _compare(f"{what}, {operation}", group, {**tensor_facts(tensor), **(facts or {})})
    return _log(operation, what, tensor, group) if "1" in turned_on else _nothing


def checking() -> bool:
    """True under `TP_DEBUG=check`, except while torch.compile traces."""
    return not torch.compiler.is_compiling() and "check" in modes()


def check(what: str, group: Group, value: object, facts: Mapping[str, object]) -> None:
    """Raise on every rank if the ranks differ in the value's type, shape or dtype, or in `facts`.

    To be called before anything that one rank alone could refuse, or the others would wait for it.

    Raises:
        RankMismatchError: names each fact that differs, its values, and the ranks that have them.
    """
    _compare(what, group, {**tensor_facts(value), **facts})


def tensor_facts(tensor: object) -> dict[str, object]:
    """Shape, dtype, kind of device; of anything else its type."""
    if not isinstance(tensor, Tensor):
        return {"type": type(tensor).__name__}
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": tensor.device.type,
    }


def fingerprint(tensor: Tensor) -> str:
    """A hash of the tensor's bytes, in reading order; nothing of a meta tensor, which has none."""
    if tensor.device.type == "meta":
        return ""
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).cpu()
    # Not data.numpy(): torch works without NumPy, and so does this package.
    return hashlib.blake2b(ctypes.string_at(data.data_ptr(), data.numel()), digest_size=8).hexdigest()


def disagreement(rows: Sequence[Mapping[str, str]]) -> str:
    """What differs between the ranks' facts, `""` if nothing does."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return "; ".join(filter(None, (_difference(name, rows) for name in names)))


def _difference(name: str, rows: Sequence[Mapping[str, str]]) -> str:
    holders: dict[str, list[str]] = {}
    for rank, row in enumerate(rows):
        holders.setdefault(row.get(name, "absent"), []).append(str(rank))
    if len(holders) == 1:
        return ""
    values = ", ".join(
        f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for value, ranks in holders.items()
    )
    return f"{name} is {values}"


def _compare(what: str, group: Group, facts: Mapping[str, object]) -> None:
    process_group = group.require(what, "a check of the ranks is asked for by TP_DEBUG=check")
    mine = _pack({"operation": what, **facts}).to(c10d.device_of(process_group))
    everyone = mine.new_empty(group.size * _WORDS)
    c10d.all_gather_single(everyone, mine, group=process_group)
    reason = disagreement([_unpack(row) for row in everyone.cpu().view(group.size, _WORDS)])
    if reason:
        raise RankMismatchError(
            f"{what}: the ranks of the group disagree: {reason}. This must be the same on all "
            f"{group.size} ranks (this is rank {group.rank})"
        )


def _pack(facts: Mapping[str, object]) -> Tensor:
    text = "\n".join(f"{name}={value}" for name, value in facts.items()).encode()
    room = 8 * (_WORDS - 1)
    checksum = zlib.crc32(text).to_bytes(8, "little")
    return torch.frombuffer(bytearray(checksum + text[:room].ljust(room, b"\0")), dtype=torch.int64)


def _unpack(row: Tensor) -> dict[str, str]:
    data = bytes(row.contiguous().view(torch.uint8).tolist())
    lines = data[8:].rstrip(b"\0").decode(errors="replace").split("\n")
    facts = {name: value for name, _, value in (line.partition("=") for line in lines)}
    # Only what did not fit is left to the checksum to tell apart.
    return facts if data[-1] == 0 else {**facts, "checksum of all facts": data[:8].hex()}


def _log(operation: str, what: str, tensor: Tensor, group: Group) -> Callable[[], None]:
    _configure()
    line = (
        f"rank {group.rank} of {group.size}: {operation} of {list(tensor.shape)} "
        f"{str(tensor.dtype).removeprefix('torch.')} for {what}"
    )
    LOGGER.info("%s: entered", line)
    start = time.perf_counter()
    return lambda: LOGGER.info("%s: left after %.3f ms", line, 1e3 * (time.perf_counter() - start))


def _configure() -> None:
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    if not LOGGER.hasHandlers():
        LOGGER.addHandler(logging.StreamHandler())


@cache
def modes() -> frozenset[str]:
    """What is turned on: of "1" and "check".

    Raises:
        ValueError: the variable has another value.
    """
    value = os.environ.get("TP_DEBUG", "")
    given = frozenset(value.split(","))
    if not given <= _MODES:
        raise ValueError(f"TP_DEBUG = {value!r}; it must be 1, check, '1,check', 0 or unset")
    return given - {"", "0"}


def _nothing() -> None:
    pass
