"""Why a model could not be followed, in the terms of its own code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn

_TORCH = f"{Path(torch.__file__).parent}/"
_OURS = f"{Path(sys.modules['torch_tp'].__file__ or '').parent}/"
_BY_VALUES = ("DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedFakeTensorException")


class Parted(Exception):
    """A run does something else than the one that it is compared with."""


class Unfollowable(Exception):
    """A model raised in a run without data.

    Attributes:
        reason: what it raised, and where.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unfollowable(model: nn.Module, error: Exception) -> Unfollowable:
    """What a model raised, with the module and the line of its code. Raises `error` itself if it is a fault of ours."""
    frames = list(_frames(error.__traceback__))
    ours = not frames or frames[-1][0].f_code.co_filename.startswith(_OURS)
    if ours and isinstance(error, (AssertionError, AttributeError, KeyError, NameError)):
        raise error  # what torch raises below a mode ends in a line of ours, too, but is none of these
    own = [each for each in frames if not each[0].f_code.co_filename.startswith((_TORCH, _OURS))]
    paths = {id(module): path for path, module in model.named_modules()}
    running = [paths[key] for frame, _ in frames if (key := id(frame.f_locals.get("self"))) in paths]
    where = f" at {Path(own[-1][0].f_code.co_filename).name}:{own[-1][1]}" if own else ""
    place = f"{running[-1] or 'the model'}{where}" if running else f"the model{where}"
    kind, text = type(error).__name__, " ".join(str(error).split())[:200]
    if kind in _BY_VALUES:
        return Unfollowable(f"{place} decides by values, which a run without data has not ({kind}: {text})")
    return Unfollowable(f"{place} raises {kind}: {text}")


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
