"""The items about models: which model goes through which procedure at which P, and the laws that judge it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conformance.models.subjects import SUBJECTS
from spec import LAWS, Law

_MODEL: Final = tuple(name for name in LAWS if name.startswith("model."))
_TRAINED: Final = ("gated", "llama", "llama-tied", "llama-two-kv")
# Those of which other modules than linears are cut.
_BEYOND_LINEARS: Final = ("gpt2", "mixtral")
# Values that have gone through few linears: bfloat16 says too little of what has gone through more.
_SHALLOW: Final = ("residual", "branches", "shared")


@dataclass(frozen=True)
class Procedure:
    """What a model is put through: the laws that judge it, the models that it is for, and the sizes of the group."""

    laws: tuple[str, ...]
    subjects: tuple[str, ...]
    sizes: tuple[int, ...] = (2, 4)


PROCEDURES: Final[Mapping[str, Procedure]] = {
    "model": Procedure(_MODEL, tuple(SUBJECTS)),
    "sgd": Procedure(("train.sgd", "train.replicated"), (*_TRAINED, *_BEYOND_LINEARS)),
    "adamw": Procedure(("train.adamw", "train.replicated"), _TRAINED),
    "clip": Procedure(("train.clip", "train.replicated"), _TRAINED),
    "accumulation": Procedure(("train.accumulation", "train.replicated"), ("gated", "llama", "llama-tied")),
    "checkpoint": Procedure(("train.checkpoint", "train.replicated"), ("gated", "llama")),
    "checkpoint-reentrant": Procedure(("train.checkpoint", "train.replicated"), ("gated",)),
    "autocast": Procedure(("train.autocast",), _SHALLOW),
    "dropout": Procedure(("train.dropout", "train.replicated"), ("gated",)),
    "jax": Procedure(("train.jax",), ("gated",)),
    "compile": Procedure(("works.compile",), ("gated",)),
    "deepcopy": Procedure(("works.deepcopy",), ("gated", "llama-tied", *_BEYOND_LINEARS)),
    "pickle": Procedure(("works.pickle",), ("gated", "llama-tied", *_BEYOND_LINEARS)),
    "inference-mode": Procedure(("works.inference-mode",), ("gated", "llama")),
    "fsdp2": Procedure(("works.fsdp2",), ("gated", "llama"), (4,)),
    "ddp": Procedure(("works.ddp",), ("gated", "llama"), (4,)),
}


@dataclass(frozen=True)
class ModelItem:
    """One model in one procedure; its text says it whole and parses back."""

    subject: str
    P: int
    procedure: str

    def __str__(self) -> str:
        return f"{self.subject}-P{self.P}-{self.procedure}"

    @classmethod
    def parse(cls, text: str) -> ModelItem:
        """The item of a line.

        Raises:
            ValueError: there is no such item.
        """
        for item in model_items():
            if str(item) == text:
                return item
        raise ValueError(
            f"there is no item {text!r}; it is MODEL-P2-PROCEDURE, with a model of {', '.join(SUBJECTS)} and a"
            f" procedure of {', '.join(PROCEDURES)} that is for it"
        )

    @property
    def laws(self) -> tuple[Law, ...]:
        """The laws that judge it."""
        names = PROCEDURES[self.procedure].laws
        silent = () if SUBJECTS[self.subject].generates else ("model.generate",)
        return tuple(LAWS[name] for name in names if name not in silent)


def model_items(sizes: Sequence[int] = (2, 4), prefixes: Sequence[str] = ()) -> Iterator[ModelItem]:
    """All items at these sizes that a law which begins so judges; small groups first."""
    for P in sizes:
        for name, procedure in PROCEDURES.items():
            for subject in procedure.subjects if P in procedure.sizes else ():
                item = ModelItem(subject, P, name)
                if not prefixes or any(law.name.startswith(tuple(prefixes)) for law in item.laws):
                    yield item
