"""Frozen records as plain data that JSON can hold, and back, with a sentence where data does not fit."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


class DoesNotFit(ValueError):
    """Data that is no such record; the text says where, and what should be there."""


def data(record: Any) -> Any:
    """A record, or several, as JSON can hold them: lists for tuples, a text for a number that JSON has no word for."""
    if is_dataclass(record) and not isinstance(record, type):
        return {entry.name: data(getattr(record, entry.name)) for entry in fields(record)}
    if isinstance(record, float) and not math.isfinite(record):
        return str(record)
    if isinstance(record, Mapping):
        return {str(key): data(entry) for key, entry in record.items()}
    if isinstance(record, (list, tuple)):
        return [data(entry) for entry in record]
    return record


def record_of(kind: Any, content: Any, where: str = "it") -> Any:
    """A record of this kind, made of data; the inverse of `data`.

    Raises:
        DoesNotFit: a key is absent that has no default, or a value of another type; the text says where. Keys too many
            are no matter.
    """
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _dataclass_of(kind, content, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        wanted = next(option for option in inner if option is not NoneType)
        return None if content is None else record_of(wanted, content, where)
    if origin is tuple and isinstance(content, (list, tuple)):
        return tuple(record_of(inner[0], entry, f"{where}[{n}]") for n, entry in enumerate(content))
    if origin is dict and isinstance(content, dict):
        return {key: record_of(inner[1], entry, f"{where}.{key}") for key, entry in content.items()}
    if kind is float and type(content) is int:
        return float(content)
    if type(content) is not kind:
        raise DoesNotFit(f"{where} is {_short(content)}, which is no {getattr(origin or kind, '__name__', kind)}")
    return content


def _dataclass_of(kind: Any, content: Any, where: str) -> Any:
    names = [entry.name for entry in fields(kind)]
    if not isinstance(content, dict):
        raise DoesNotFit(f"{where} is {_short(content)}; it should hold {', '.join(names)}")
    absent = [entry.name for entry in fields(kind) if entry.name not in content and entry.default is MISSING]
    if absent:
        raise DoesNotFit(f"{where} has no {', '.join(absent)}; it holds {', '.join(map(str, content)) or 'nothing'}")
    hints = _hints(kind)
    given = [name for name in names if name in content]
    return kind(**{name: record_of(hints[name], content[name], f"{where}.{name}") for name in given})


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 40 else f"{text[:40]} ..."


def write_json(path: Path, record: Any) -> None:
    """Write a record in one step: whoever reads the file sees all of the old one or all of the new one."""
    write_text(path, json.dumps(data(record), allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
