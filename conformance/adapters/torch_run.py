"""One forward and backward of one layer, watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from conformance.adapters.watch import CollectiveLog, array, nodes, sharing
from spec import Case, Inputs, Step, agreement
from spec.contract import needs_gradient, runs_backward
from spec.numerics import encode
from spec.placements import Floats, local


@dataclass(frozen=True)
class Owned:
    """A tensor of the caller's: as it is passed, the storage behind it, and a copy of that storage from before."""

    tensor: torch.Tensor
    base: torch.Tensor
    before: torch.Tensor
    version: int

    def changed(self) -> bool:
        """Whether anyone has written to it since."""
        return self.base._version != self.version or not torch.equal(self.base, self.before)


def owned(value: Floats, dtype: str, device: torch.device, layout: str = "contiguous", grad: bool = False) -> Owned:
    """A tensor of these values with the strides of a layout."""
    tensor = as_tensor(value, dtype, device)
    view, base = lay_out(tensor, layout)
    leaf = view.detach().requires_grad_(grad) if grad else view
    return Owned(leaf, base, base.clone(), base._version)


def owner(tensor: torch.Tensor) -> Owned:
    """A tensor that exists already, watched from here on."""
    return Owned(tensor.detach(), tensor, tensor.detach().clone(), tensor._version)


def as_tensor(value: Floats, dtype: str, device: torch.device) -> torch.Tensor:
    """The values in a dtype, contiguous, in storage of their own."""
    bits = encode(value, dtype)
    carrier = torch.from_numpy(np.array(bits.view(np.int16) if dtype == "bfloat16" else bits))
    tensor = carrier.view(torch.bfloat16) if dtype == "bfloat16" else carrier
    return tensor.to(device)


def lay_out(tensor: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(view with the layout's strides, the storage behind it); layouts need a dimension or two to differ in."""
    if layout == "transposed" and tensor.dim() > 1:
        base = tensor.transpose(0, -1).contiguous()
        return base.transpose(0, -1), base
    if layout == "strided" and tensor.dim() > 0:
        base = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
        base[..., ::2] = tensor
        return base[..., ::2], base
    if layout == "expanded" and tensor.dim() > 1 and tensor.shape[0] > 1:
        base = tensor[:1].clone()
        return base.expand(tensor.shape), base
    if layout == "offset":
        base = tensor.new_zeros(tensor.numel() + 1)
        base[1:] = tensor.flatten()
        return base[1:].view(tensor.shape), base
    return tensor, tensor


@dataclass
class Run:
    """One forward and backward of a layer on a rank's part of the inputs.

    Attributes:
        call: x -> output, or (output, bias).
        parameters: the tensors that stand for weight and bias in this run.
        masters: the caller's master tensors, for purity.
        local: this rank's part of a parameter, of its gradient, or of the output.
    """

    case: Case
    rank: int
    device: torch.device
    log: CollectiveLog
    data: Inputs
    call: Callable[[torch.Tensor], Any]
    parameters: Mapping[str, torch.Tensor | None]
    masters: Mapping[str, Owned] = field(default_factory=dict[str, Owned])
    observable: bool = True
    local: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    def __post_init__(self) -> None:
        case, terms = self.case, agreement(self.case)
        x = local(terms.input.value, self.data.x, case.P, self.rank)
        grad = "x" in needs_gradient(case) and case.procedure not in ("no-grad", "inference")
        self.x = owned(x, case.dtype, self.device, case.x, grad)
        self.g: Owned | None = None
        if runs_backward(case):
            g = local(terms.output.gradient, self.data.g, case.P, self.rank)
            self.g = owned(g, case.compute_dtype, self.device, case.g)
        self.held = {name: array(tensor) for name, tensor in self._here(self.parameters).items()}
        self.output: torch.Tensor | None = None
        self.returned_bias: torch.Tensor | None = None
        self.pair, self.returned = False, ""

    def forward(self) -> None:
        self.log.phase = "forward"
        with self.log, _mode(self.case, self.device):
            result = self.call(self.x.tensor)
        self.pair = isinstance(result, tuple) and len(result) == 2
        output, self.returned_bias = result if self.pair else (result, None)
        self.output = output if isinstance(output, torch.Tensor) else None
        self.returned = "" if self.output is not None else type(output).__name__

    def backward(self, retain_graph: bool = False) -> None:
        """The backward, if there is an output that it fits; what is wrong with another is for the clauses to say."""
        output, g = self.output, self.g
        if g is not None and output is not None and output.requires_grad and output.shape == g.tensor.shape:
            self.log.phase = "backward"
            with self.log:
                torch.autograd.backward(output, g.tensor, retain_graph=retain_graph)

    def step(self, name: str, **facts: Any) -> Step:
        """What there is to see now."""
        theirs = {"x": self.x.tensor, "g": self.g.tensor if self.g else None}
        theirs |= {name: master.tensor for name, master in self.masters.items()}
        own = self._here(self.parameters)
        leaves = {"x": self.x.tensor, **{name: p for name, p in self.parameters.items() if p is not None}}
        gradients = self._here({name: leaf.grad for name, leaf in leaves.items()})
        output = self._here({"output": self.output})
        results = {**output, **{f"{k}.grad": v for k, v in gradients.items()}}
        mutated = [key for key, tensor in (("x", self.x), ("g", self.g)) if tensor is not None and tensor.changed()]
        mutated += [key for key, master in self.masters.items() if master.changed()]
        return Step(
            name,
            {key: value for key, value in self.held.items() if value is not None},
            array(output["output"]),
            array(self.returned_bias),
            {key: array(value) for key, value in gradients.items()},
            self.log.take() if self.observable else None,
            tuple(mutated),
            (*sharing(results, theirs | own), *sharing(own, theirs)),
            self._facts() | facts,
        )

    def _here(self, named: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        """This rank's part of each tensor."""
        return {name: None if tensor is None else self.local(tensor) for name, tensor in named.items()}

    def _facts(self) -> dict[str, Any]:
        here = {name: tensor for name, tensor in self._here(self.parameters).items() if tensor is not None}
        facts: dict[str, Any] = {
            "pair": self.pair,
            "requires_grad": self.output is not None and self.output.requires_grad,
            "inference": self.output is not None and self.output.is_inference(),
            "storage_bytes": {name: tensor.untyped_storage().nbytes() for name, tensor in here.items()},
        }
        if self.returned:
            facts["returned"] = self.returned
        if self.pair and self.returned_bias is not None:
            facts["bias_is_parameter"] = self.returned_bias is self.parameters.get("bias")
        if self.case.P == 1 and self.output is not None:
            facts["nodes"] = nodes(self.output)
        return facts


def _mode(case: Case, device: torch.device) -> Any:
    if case.procedure == "no-grad":
        return torch.no_grad()
    if case.procedure == "inference":
        return torch.inference_mode()
    if case.autocast:
        return torch.autocast(device.type, dtype=getattr(torch, case.autocast))
    return nullcontext()
