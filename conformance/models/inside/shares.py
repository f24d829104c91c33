"""How much of published models lies in slices: their configurations, on the meta device, without weights or a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn


@dataclass(frozen=True)
class Published:
    """A model as it was published.

    Attributes:
        classes: of the configuration and the model in `transformers`.
        config: the numbers that differ from the configuration's defaults, or that say which model it is.
        inputs: as of `subjects.Subject`.
    """

    name: str
    classes: tuple[str, str]
    config: Mapping[str, Any]
    inputs: str = "tokens"


PUBLISHED: Final = (
    Published(
        "Llama-3-8B",
        ("LlamaConfig", "LlamaForCausalLM"),
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
    ),
    Published(
        "GPT-2 XL (1.5B)",
        ("GPT2Config", "GPT2LMHeadModel"),
        {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25},
    ),
    Published(
        "BERT-large",
        ("BertConfig", "BertForMaskedLM"),
        {
            "vocab_size": 30522,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    ),
    Published(
        "T5-large",
        ("T5Config", "T5ForConditionalGeneration"),
        {"vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
        "pairs",
    ),
    Published(
        "Mixtral-8x7B",
        ("MixtralConfig", "MixtralForCausalLM"),
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    Published(
        "ViT-L/16",
        ("ViTConfig", "ViTForImageClassification"),
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 16,
            "num_labels": 1000,
        },
        "pixels",
    ),
)


def print_shares(say: Callable[[str], None] = print) -> int:
    """A line for each model and P; returns the exit code, 1 where a model was refused."""
    refused = 0
    say(f"{'model':<16} {'P':>2} {'parameters':>14} {'in slices':>10} {'without embeddings':>19} {'tensors cut':>14}")
    for published in PUBLISHED:
        for P in (2, 4):
            begun = time.monotonic()
            try:
                told = _row(published, P)
            except Exception as error:
                refused = 1
                told = f"refused: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say(f"{published.name:<16} {P:>2} {told}   {time.monotonic() - begun:.0f} s")
    return refused


def _row(published: Published, P: int) -> str:
    import torch_tp

    model = on_meta(published)
    before = {name: p.numel() for name, p in model.named_parameters()}
    embedded = _embedded(model)
    rest = [name for name, p in model.named_parameters() if id(p) not in embedded]
    cut = torch_tp.parallelize(model, rank=0, world_size=P, example=_example(published))
    after = {name: p.numel() for name, p in cut.named_parameters()}

    def share(names: Collection[str]) -> float:
        return sum(before[name] for name in names if after[name] < before[name]) / sum(before[name] for name in names)

    touched = sum(after[name] < before[name] for name in before)
    return (
        f"{sum(before.values()):>14,} {share(before):>10.1%} {share(rest):>19.1%} {f'{touched} of {len(before)}':>14}"
    )


def on_meta(published: Published) -> nn.Module:
    """The model with all of its layers, without data."""
    import transformers

    config_class, model_class = published.classes
    config = getattr(transformers, config_class)(**published.config)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, model_class)(config)
    return model.to(torch.bfloat16).eval()  # the only dtype in which torch multiplies grouped matrices without data


def _embedded(model: nn.Module) -> set[int]:
    """Parameters of embeddings, and of the head over a vocabulary, which is one in reverse."""
    held: list[Any] = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    held += filter(None, [getattr(model, "get_output_embeddings", lambda: None)()])
    return {id(p) for each in held for p in each.parameters()}


def _example(published: Published) -> dict[str, torch.Tensor]:
    if published.inputs == "pixels":
        size = published.config["image_size"]
        return {"pixel_values": torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16)}
    tokens = torch.zeros(1, 8, dtype=torch.long, device="meta")
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if published.inputs == "pairs" else {})
