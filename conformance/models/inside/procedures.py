"""What a model is put through on each rank; what comes back is data, judged by `spec.laws`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from conformance.models.inside.bench import Bench, dense, digest, gradients, lying, once, parameters
from conformance.models.inside.rounding import Wide, bounds, plainly
from spec.laws import Measured


def model(bench: Bench, name: str) -> Iterator[Measured]:
    """Parameters, one forward and backward, and greedy decoding."""
    exact, bound = bounds(lambda: once(dense(name)), bench.size)
    left_whole = parameters(dense(name).model)
    wrapped = bench.wrapped(name)
    held, lies = parameters(wrapped.model), lying(wrapped.model)
    parts = {key: bench.part(lies[key], whole) for key, whole in left_whole.items() if key in held}
    whole = [key for key, part in parts.items() if part.shape == left_whole[key].shape]
    cut = len(parts) - len(whole)
    none = "" if cut else f"are {len(left_whole)}, and every rank holds all of each"
    yield Measured("model.cut", "the parameters", wrong=none)
    for key in left_whole.keys() | held.keys():
        same = key in parts and key in held and torch.equal(parts[key], held[key])
        yield Measured("model.parameters", key, wrong="" if same else "is not its part of the dense one, bit for bit")
    found = plainly(lambda: once(wrapped))
    output = "the output"
    yield from bench.compare("model.output", {output: exact.pop(output)}, bound, {output: found.pop(output)}, {})
    yield from bench.compare("model.gradients", exact, bound, found, lies)
    for key in whole:
        yield Measured("model.replicated", key, digest=digest(held[key]))
    for key, gradient in gradients(wrapped.model).items():
        if key.removeprefix("gradient of ") in whole:
            yield Measured("model.replicated", key, digest=digest(gradient))
    if wrapped.prompt is not None:
        yield from _generates(bench, name)


def _generates(bench: Bench, name: str) -> Iterator[Measured]:
    tokens = []
    for built in (dense(name), bench.wrapped(name)):
        built.model.eval()
        assert built.prompt is not None
        with torch.no_grad(), Wide():
            tokens.append(built.model.generate(**built.prompt))
    told = "" if torch.equal(*tokens) else f"is {tokens[1].tolist()}, not {tokens[0].tolist()}"
    yield Measured("model.generate", "the text", wrong=told)
