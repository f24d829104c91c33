"""A PyTorch implementation on one rank of one group."""

from __future__ import annotations

from typing import Any

import torch

from conformance.adapters import torch_build
from conformance.adapters.layer import BuildsLayers
from conformance.adapters.protocol import Group
from conformance.adapters.torch_build import Built
from conformance.adapters.torch_run import Run
from conformance.adapters.watch import CollectiveLog
from spec import Case, Inputs, Step


class TorchSession:
    """What procedures run on: builds the layers of cases, and runs them under watch.

    Attributes:
        log: records the collectives of the case that is running.
    """

    def __init__(self, adapter: BuildsLayers, group: Group) -> None:
        self.adapter, self.group = adapter, group
        self.device: torch.device = group.device or torch.device("cpu")
        self.begin()
        adapter.set_up(group)

    def begin(self) -> None:
        """Forget the last case."""
        self.log = CollectiveLog(self.group.announce)

    def close(self) -> None:
        """Undo what opening set up."""
        self.adapter.tear_down()

    def build(self, case: Case, data: Inputs) -> Built:
        """The layer of a case."""
        return torch_build.build(self.adapter, self.group, case, data)

    def start(self, case: Case, data: Inputs, built: Built, fresh: bool = True, **changes: Any) -> Run:
        """A run of a built layer, not yet begun; with fresh gradients, unless they are to add up."""
        fields: dict[str, Any] = {
            "log": self.log,
            "call": lambda x: self.adapter.call(built.module, x),
            "parameters": built.parameters,
            "masters": built.masters,
            "observable": self.adapter.observable,
            "local": self.adapter.local,
        }
        run = Run(case, self.group.rank, self.device, data=data, **(fields | changes))
        for parameter in run.parameters.values() if fresh else ():
            if parameter is not None:
                parameter.grad = None
        return run

    def step(self, name: str, case: Case, data: Inputs, built: Built, **changes: Any) -> Step:
        """One forward and backward, and what was seen of them."""
        run = self.start(case, data, built, **changes)
        run.forward()
        run.backward()
        return run.step(name)
