"""A PyTorch implementation on one rank of one group."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from conformance.adapters import torch_build
from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import TorchAdapter
from conformance.adapters.torch_build import Built
from conformance.adapters.torch_run import Run
from conformance.adapters.watch import CollectiveLog
from spec import Case, Inputs, Observation, Raised, Step


class TorchSession:
    """Runs the procedures of cases and hands over what this rank saw.

    Attributes:
        announce: called with one line before this rank enters a collective.
        log: records the collectives of the case that is running.
    """

    def __init__(
        self, adapter: TorchAdapter, group: Group, announce: Callable[[str], None] = lambda line: None
    ) -> None:
        self.adapter, self.group, self.announce = adapter, group, announce
        self.device: torch.device = group.device or torch.device("cpu")
        self.log = CollectiveLog(announce)
        adapter.set_up(group)

    def close(self) -> None:
        """Undo what opening set up."""
        self.adapter.tear_down()

    def run(self, case: Case, group: int) -> Sequence[Observation]:
        """What this rank saw of the case. An exception that the procedure does not expect becomes part of it."""
        from conformance.adapters.torch_procedures import procedure_of

        self.log = CollectiveLog(self.announce)
        try:
            steps = procedure_of(case)(self, case, group)
        except Exception as error:
            return (Observation(self.group.rank, {}, "raised", raised=raised(error)),)
        return (Observation(self.group.rank, {step.name: self._marked(step) for step in steps}),)

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

    def _marked(self, step: Step) -> Step:
        return Step(**{**vars(step), "facts": {**step.facts, "global_rank": self.group.global_rank}})


def raised(error: BaseException) -> Raised:
    """An exception as data."""
    types = tuple(cls.__name__ for cls in type(error).__mro__ if cls is not object)
    return Raised(types, str(error), "".join(traceback.format_exception(error)))
