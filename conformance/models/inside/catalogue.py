"""The models, each with what it is run on: random weights in float64, sizes so small that a run takes milliseconds.

Which there are stands in `conformance.models.subjects`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conformance.models import gated
from conformance.models.inside import own
from conformance.models.subjects import SUBJECTS, Subject

_SMALL: Mapping[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    # The scale of an untrained model leaves everything near zero, where a mistake would be small as well.
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Built:
    """A model that can be run.

    Attributes:
        batches: step -> the keyword arguments of one forward, and the target of its loss, whose shape is the output's.
        example: the arguments of one forward, for whoever wants to follow the model.
        output: what of the model's result is compared.
        prompt: the arguments of `generate`; none where the model has no such method.
    """

    name: str
    model: nn.Module
    batches: Callable[[int], tuple[dict[str, Tensor], Tensor]]
    output: Callable[[Any], Tensor] = lambda result: result
    prompt: Mapping[str, Any] | None = None

    @property
    def example(self) -> dict[str, Tensor]:
        return self.batches(0)[0]


def build(name: str, dropout: float = 0.0) -> Built:
    """A model of the catalogue; two calls give models of equal values."""
    torch.manual_seed(5)
    made = _OWN[name](dropout) if name in _OWN else _hub(SUBJECTS[name])
    made.model.double().train()
    if name not in ("gated",):
        _spread(made.model)
    return made


def _spread(model: nn.Module) -> None:
    """Biases and norms start at 0 and 1, where a bias that is added twice is not seen."""
    source = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=source, dtype=parameter.dtype) / 5)


def _numbers(step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + step), dtype=torch.float64)


def _tokens(step: int, *shape: int) -> Tensor:
    return torch.randint(2, _SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(2000 + step))


def _gated(dropout: float) -> Built:
    def batches(step: int) -> tuple[dict[str, Tensor], Tensor]:
        x, target = map(torch.from_numpy, gated.batch(step))
        return {"x": x}, target

    return Built("gated", own.gated(dropout), batches)


def _plain(
    make: Callable[[], nn.Module], outputs: int, argument: str = "x", width: int = 8
) -> Callable[[float], Built]:
    def batches(step: int) -> tuple[dict[str, Tensor], Tensor]:
        return {argument: _numbers(step, 4, 3, width)}, _numbers(step + 500, 4, 3, outputs)

    return lambda dropout: Built("", make(), batches)


_OWN: Mapping[str, Callable[[float], Built]] = {
    "gated": _gated,
    "residual": _plain(own.Residual, 5),
    "branches": _plain(own.Branches, 4),
    "shared": _plain(own.Shared, 8),
    "encoder": _plain(own.encoder, 16, "src", 16),
}


def _hub(subject: Subject) -> Built:
    """A model of `transformers`, from a small configuration of its own."""
    import transformers

    config_class, model_class = subject.classes
    config = getattr(transformers, config_class)(**_config(subject))
    # Its default multiplies no float64.
    config._experts_implementation = "batched_mm"
    model = getattr(transformers, model_class)(config)
    generates = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = None
    if subject.inputs == "pixels":
        shape: tuple[int, ...] = (4, config.num_labels)
    else:
        shape = (4, 6, config.vocab_size)

    def batches(step: int) -> tuple[dict[str, Tensor], Tensor]:
        if subject.inputs == "pixels":
            given = {"pixel_values": _numbers(step, 4, 3, 8, 8)}
        else:
            given = {"input_ids": _tokens(step, 4, 6)}
        if subject.inputs == "pairs":
            given["decoder_input_ids"] = _tokens(step + 500, 4, 6)
        return given, _numbers(step + 700, *shape)

    if subject.generates:
        prompt = generates | {"input_ids": _tokens(0, 4, 6)}
    return Built(subject.name, model, batches, lambda result: result.logits, prompt)


def _config(subject: Subject) -> dict[str, Any]:
    """The small sizes under the names that the configuration has for them."""
    renamed = {subject.names.get(name, name): value for name, value in _SMALL.items()}
    return {name: value for name, value in renamed.items() if name} | dict(subject.config)
