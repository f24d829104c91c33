"""The laws of whole models: clauses that no Case can say, since they are about models that somebody else wrote.

A model that an implementation cut over P ranks is compared with the same model left whole, the dense one. What is
compared is a list of `Measured` from every rank: how far a tensor lies from the dense one's, and how far it may.
`broken` judges them, and is pure, as the checks of clauses are. Laws stand in the order of causes; names are
append-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spec.register import Level, Violation


@dataclass(frozen=True)
class Law:
    """One named requirement.

    Attributes:
        resolution: the largest bound, as a part of the values that it is for, with which a comparison says something; a
            law whose bound is wider than that has not been tested, and counts as broken.
    """

    name: str
    title: str
    text: str
    level: Level = "MUST"
    resolution: float = 1e-8


@dataclass(frozen=True)
class Measured:
    """What one rank found of one tensor or number.

    Attributes:
        law: the name of the law that it is about.
        what: which tensor, and after which step.
        deviation: the largest difference from the dense model's.
        bound: what it may be at most.
        scale: the largest absolute value that a bound must be small against; 0 where the values are not real numbers.
        digest: of the bits, where all ranks must hold the same.
        wrong: what is wrong with it, where that is no number.
    """

    law: str
    what: str
    deviation: float = 0.0
    bound: float = 0.0
    scale: float = 0.0
    digest: str = ""
    wrong: str = ""

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of `dataclasses.asdict`."""
        return cls(**data)


def broken(law: Law, ranks: Sequence[Sequence[Measured]]) -> Iterator[Violation]:
    """Why a law does not hold, given what every rank measured, in rank order."""
    seen = [[entry for entry in rank if entry.law == law.name] for rank in ranks]
    names = [[entry.what for entry in rank] for rank in seen]
    for rank, entries in enumerate(seen):
        if not entries:
            yield Violation(rank, law.name, "measured nothing, so the law was not tested", "a comparison", "none")
        elif names[rank] != names[0]:
            yield Violation(rank, law.name, "measured other tensors than rank 0", str(names[0]), str(names[rank]))
        for entry in entries:
            if entry.wrong:
                yield Violation(rank, law.name, f"{entry.what} {entry.wrong}")
            elif not entry.deviation <= entry.bound:
                expected, got = f"at most {entry.bound:.3g}", f"{entry.deviation:.3g}"
                yield Violation(rank, law.name, f"{entry.what} lies too far from the dense model's", expected, got)
            elif entry.scale and not entry.bound <= law.resolution * entry.scale:
                expected, got = f"at most {law.resolution * entry.scale:.3g}", f"{entry.bound:.3g}"
                yield Violation(rank, law.name, f"the bound on {entry.what} is too wide to test it", expected, got)
    first = {entry.what: entry.digest for entry in seen[0]} if seen else {}
    for rank, entries in enumerate(seen):
        for entry in entries:
            if entry.digest != first.get(entry.what, entry.digest):
                got = f"{entry.digest} here, {first[entry.what]} on rank 0"
                yield Violation(rank, law.name, f"{entry.what} is not the same on every rank", "the same bits", got)


_ALL = (
    Law(
        "model.cut",
        "Something of the model lies in slices",
        """At least one parameter is cut over the ranks, so that each holds a part of it alone. A wrap that leaves the
        model whole keeps every other law, and is no wrap.""",
    ),
    Law(
        "model.parameters",
        "Every parameter is its part of the dense one",
        """Under the name that it has in the dense model, each parameter holds the slice that its placement says, bit
        for bit; a replicated one holds the whole.""",
    ),
    Law(
        "model.output",
        "The output is the dense model's",
        "On every rank the model returns what the dense model returns for the same arguments.",
    ),
    Law(
        "model.gradients",
        "Every parameter has the dense one's gradient",
        """After one backward each parameter has the part of the dense parameter's gradient that it has of its value,
        whole for replicated ones, on every rank. What the dense model leaves without a gradient has none.""",
    ),
    Law(
        "model.replicated",
        "Replicated parameters and gradients are the same bits on every rank",
        "What every rank holds whole, its gradient too, is the same bit for bit on all of them.",
    ),
    Law(
        "model.generate",
        "Greedy decoding gives the dense model's tokens",
        "A model that generates gives the same tokens as the dense one, its cache of keys and values in use.",
    ),
    Law(
        "train.sgd",
        "Steps of SGD with momentum are the dense model's",
        """After k steps of torch.optim.SGD with momentum over the model's parameters, each holds its part of the dense
        parameter after these steps, and the losses on the way are the dense ones.""",
    ),
    Law(
        "train.adamw",
        "Steps of AdamW are the dense model's",
        "The same with torch.optim.AdamW.",
    ),
    Law(
        "train.replicated",
        "Replicated parameters stay the same bits through training",
        """After every step of an optimizer each replicated parameter is the same bit for bit on all ranks: what differs
        once drifts from there.""",
    ),
    Law(
        "train.clip",
        "Gradients are clipped by the dense model's norm",
        """The total norm over which gradients are clipped is that of the dense model's gradient, on every rank: each
        slice is counted once, each replicated parameter once and not once per rank, and one that is held under two
        names once. The steps taken then are the dense ones.""",
    ),
    Law(
        "train.accumulation",
        "Gradients of microbatches add up",
        "Steps on the sum of two microbatches' gradients are the dense model's.",
    ),
    Law(
        "train.checkpoint",
        "Recomputed activations change nothing",
        """Steps in which torch.utils.checkpoint computes the blocks again in the backward, collectives included, are
        those of the dense model without it, in both of its variants.""",
    ),
    Law(
        "train.autocast",
        "Autocast is the dense model's autocast",
        """Under torch.autocast with bfloat16 the losses and gradients are those of the dense model under the same, as
        closely as bfloat16 allows: what a rank sums is rounded once, and so is each sum of the reduction.""",
        resolution=0.5,
    ),
    Law(
        "train.dropout",
        "Dropout on replicated values is the same on every rank",
        """Given the same seed on every rank, dropout of what all ranks hold drops what it drops in the dense model; the
        steps taken are the dense ones.""",
    ),
    Law(
        "train.jax",
        "Training is the one that JAX computes",
        """The losses of k steps of SGD with momentum and of AdamW are those of a program in JAX, with jax.grad and the
        optimizer written out, that begins with the same parameters.""",
    ),
    Law(
        "works.compile",
        "torch.compile changes nothing",
        "The compiled model has the dense model's output and gradients.",
    ),
    Law(
        "works.deepcopy",
        "A deep copy is a model of its own",
        "A copy.deepcopy of the model has the dense model's output and gradients, and the original gets no gradient.",
    ),
    Law(
        "works.pickle",
        "A pickled model comes back",
        "What pickle loads of what it dumped has the dense model's output and gradients.",
    ),
    Law(
        "works.inference-mode",
        "Inference mode changes nothing",
        "Under torch.inference_mode the output is the dense model's.",
    ),
    Law(
        "works.fsdp2",
        "fully_shard over the data-parallel axis",
        """On a mesh of 2 x 2 ranks, cut over one axis and given to torch's fully_shard over the other, each
        data-parallel rank with its half of the batch: output and gradients are the dense model's on the whole
        batch.""",
    ),
    Law(
        "works.ddp",
        "DistributedDataParallel over the data-parallel axis",
        "The same with torch.nn.parallel.DistributedDataParallel.",
    ),
)
# Every law under its name, in the order of causes.
LAWS: Final = {
    entry.name: Law(entry.name, entry.title, " ".join(entry.text.split()), entry.level, entry.resolution)
    for entry in _ALL
}
