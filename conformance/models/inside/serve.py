"""The handler inside a rank: a command in (JSON: which model, which procedure), what was measured out.

The fork server imports this module before it forks, so what ranks would load in seconds each is loaded here, once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from conformance.adapters.find import find
from conformance.adapters.protocol import Group
from conformance.models.inside import procedures, training, works
from conformance.models.inside.bench import Bench
from conformance.models.subjects import SUBJECTS
from spec.laws import Measured

with suppress(ImportError):
    import torch._dynamo  # noqa: F401  the first step of an optimizer would
    import transformers

    for _subject in SUBJECTS.values():
        for _name in _subject.classes:
            getattr(transformers, _name)


class Server:
    """One rank."""

    def __init__(self, context: Any) -> None:
        if context.options.get("scratch"):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = context.options["scratch"]
        world = tuple(range(context.world))
        self._adapter: Any = find(context.options["impl"])
        self._bench = Bench(self._adapter, context.groups[world], context.rank, context.world)
        handle, device = context.groups[world], context.device
        self._adapter.declare()
        self._adapter.set_up(Group(context.rank, context.world, handle, device, context.rank, context.log))

    def __call__(self, command: bytes) -> bytes:
        asked = json.loads(command)
        found = self._run(asked["subject"], asked["procedure"], asked.get("reference", {}))
        return json.dumps([asdict(entry) for entry in found]).encode()

    def close(self) -> None:
        """Undo what starting set up."""
        self._adapter.tear_down()

    def _run(self, subject: str, procedure: str, reference: Any) -> Iterator[Measured]:
        if procedure == "model":
            return procedures.model(self._bench, subject)
        if procedure == "jax":
            return training.jax(self._bench, subject, reference)
        if procedure in training.RECIPES:
            return training.train(self._bench, subject, procedure)
        return works.WORKS[procedure](self._bench, subject)


def serve(context: Any) -> Callable[[bytes], bytes]:
    """The factory that ranks call."""
    return Server(context)
