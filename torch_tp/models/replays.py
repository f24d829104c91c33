"""Code that autograd runs behind the model's back: Functions with a backward of their own, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torch_tp.internals import CHECKPOINT_GENERATOR, checkpoints, pytree
from torch_tp.models.recorder import Recorder


@contextmanager
def seen_by(recorder: Recorder) -> Iterator[None]:
    """While it lasts, every `autograd.Function` and every checkpoint is recorded."""
    was, again = vars(torch.autograd.Function)["apply"], getattr(checkpoints, CHECKPOINT_GENERATOR)

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = was.__get__(None, kind)(*args, **kwargs)
        made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        if given and made and not recorder.paused:
            back = backward_of(kind, args, kwargs, out)
            recorder.replay()
            recorder.word("function", (kind.__name__, tuple(given), tuple(made)), {"back": back}, made)
        return out

    def checkpoint(*args: Any, **kwargs: Any) -> Any:
        recorder.replay()
        return again(*args, **kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010 - torch declares it otherwise
    setattr(checkpoints, CHECKPOINT_GENERATOR, checkpoint)
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", was)  # noqa: B010
        setattr(checkpoints, CHECKPOINT_GENERATOR, again)


class _Context:
    """What a Function keeps for its backward."""

    saved_tensors: tuple[Any, ...] = ()
    needs_input_grad = (True,)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def backward_of(kind: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
    """What the backward of a Function of one tensor makes of a gradient that lies as its result does; else None."""
    if kwargs or len(args) != 1 or not isinstance(out, Tensor):
        return None
    context = _Context()
    try:
        with torch.no_grad():
            kind.forward(context, *args)
            back = kind.backward(context, out.clone())
    except Exception:  # the Function's own code, which may ask anything of its context: then nothing is known of it
        return None
    return back if isinstance(back, Tensor) else None
