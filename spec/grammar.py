"""The grammar of case lines: from fields to a line and back, with an error that points at the word at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from spec.vocabulary import DTYPES, FUSED, LAYERS

# Words of a case line without '=': each sets one field to one value.
_BARE: Final[dict[str, tuple[str, Any]]] = {
    **{dtype: ("dtype", dtype) for dtype in DTYPES},
    "bias": ("bias", True),
    "gather_output": ("gather_output", True),
    "skip_bias_add": ("skip_bias_add", True),
}
# Words with '=', in the order in which a line shows them: key -> field.
_KEYED: Final[dict[str, str]] = {
    "P": "P",
    "batch": "batch",
    "in": "in_features",
    "hidden": "hidden_features",
    "out": "out_features",
    "parts": "parts",
    "heads": "heads",
    "kv": "kv_heads",
    "head_size": "head_size",
    "dim": "dim",
    "input_is_parallel": "input_is_parallel",
    "reduce_output": "reduce_output",
    "x": "x",
    "g": "g",
    "frozen": "frozen",
    "autocast": "autocast",
    "values": "values",
    "world": "world",
    "groups": "groups",
    "procedure": "procedure",
    "fault": "fault",
    "seed": "seed",
}
_NUMBERS: Final = frozenset(
    {"P", "in_features", "hidden_features", "out_features", "heads", "kv_heads", "head_size", "dim", "world", "seed"}
)


class CaseSyntaxError(ValueError):
    """A line that is no case; the message points at the word and says what would be right."""


def line_of(case: Any, defaults: Mapping[str, Any]) -> str:
    """The canonical line of a case: words that have their default are left out."""
    words = [case.layer, f"P={case.P}", f"batch={'x'.join(map(str, case.batch)) or 'none'}", f"in={case.in_features}"]
    if case.hidden_features:
        words.append(f"hidden={case.hidden_features}")
    if case.layer == "merged":
        words.append(f"parts={','.join(map(str, case.parts))}")
    elif case.layer == "qkv":
        words.append(f"heads={case.heads} kv={case.kv_heads} head_size={case.head_size}")
    elif case.has_parameters:
        words.append(f"out={case.out_features}")
    words.append(case.dtype)
    words += [word for word in ("bias", "gather_output", "skip_bias_add") if getattr(case, word)]
    for key, name in list(_KEYED.items())[9:-1]:
        value, default = getattr(case, name), case.P if name == "world" else defaults[name]
        if value != default:
            words.append(f"{key}={value}")
    return " ".join([*words, f"seed={case.seed}"])


def fields_of(line: str) -> dict[str, Any]:
    """The fields that a line gives, by name; whether they make a case is not asked here.

    Raises:
        CaseSyntaxError: with the line, a caret under the word at fault, and what would be right.
    """
    words = line.split()
    if not words:
        raise CaseSyntaxError("a case line is empty; write for example: row P=2 batch=3 in=4 out=2 float32 bias seed=7")
    given: dict[str, Any] = {"layer": words[0]}
    start = 0
    for position, word in enumerate(words):
        start = line.index(word, start)
        try:
            if position == 0:
                if word not in LAYERS:
                    raise ValueError(f"a case begins with a layer, one of {', '.join(LAYERS)}")
            else:
                name, value = _parse_word(word)
                if name in given:
                    raise ValueError(f"{name} is given twice")
                if name == "out_features" and given["layer"] in FUSED:
                    raise ValueError(f"out follows from the parts of a {given['layer']} layer")
                given[name] = value
        except ValueError as error:
            raise CaseSyntaxError(pointing_at(line, start, word, str(error))) from None
        start += len(word)
    for key, name in (("P", "P"), ("in", "in_features")):
        if name not in given:
            raise CaseSyntaxError(pointing_at(line, len(line), " ", f"the word {key}=<size> is missing"))
    return given


def _parse_word(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals:
        if word not in _BARE:
            raise ValueError(f"unknown word {word!r}; words are {', '.join([*_BARE, *(k + '=' for k in _KEYED)])}")
        return _BARE[word]
    if key not in _KEYED:
        raise ValueError(f"unknown key {key!r}; keys are {', '.join(_KEYED)}")
    name = _KEYED[key]
    if name == "batch":
        return name, () if value == "none" else tuple(_integer(key, size) for size in value.split("x"))
    if name == "parts":
        return name, tuple(_integer(key, size) for size in value.split(","))
    if name in ("input_is_parallel", "reduce_output"):
        if value not in ("True", "False"):
            raise ValueError(f"{key} is True or False, not {value!r}")
        return name, value == "True"
    if name in _NUMBERS:
        return name, _integer(key, value)
    return name, value


def _integer(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{key} needs a whole number, not {value!r}") from None


def pointing_at(line: str, start: int, word: str, reason: str) -> str:
    """An error text with a caret under a word of the line."""
    return f"not a case: {reason}\n  {line}\n  {' ' * start}{'^' * len(word)}"
