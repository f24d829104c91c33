"""How large the models are. Imported on both sides, so without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Size:
    """Of a Llama, and of its input: `batch` rows of `length` tokens."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    batch: int = 2
    length: int = 16

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, hidden {self.hidden}, intermediate {self.intermediate}, {self.heads} heads,"
            f" {self.kv_heads} of keys and values, vocabulary {self.vocabulary}"
        )


LARGE: Final = Size(32, 4096, 14336, 32, 8, 128256)  # of Llama 3 8B
SMALL: Final = Size(4, 512, 1536, 8, 4, 1024, batch=4, length=64)
