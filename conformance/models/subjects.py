"""The names of the models, and of `transformers`' classes: data, which any process may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        classes: the configuration's and the model's in `transformers`; empty where the model is our own.
        names: what the configuration calls a size of its own ("" where it has no such size).
        config: further fields of the configuration.
        inputs: tokens, pairs (of tokens, for an encoder and a decoder) or pixels.
    """

    name: str
    classes: tuple[str, str] | tuple[()] = ()
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: str = "tokens"
    generates: bool = False


_GPT2: Final = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
_T5: Final = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
    "initializer_range": "initializer_factor",
}
_NO_DROPOUT: Final = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LLAMA: Final = {"num_key_value_heads": 4, "max_position_embeddings": 64}

SUBJECTS: Final = {
    subject.name: subject
    for subject in (
        Subject("gated"),
        Subject("residual"),
        Subject("branches"),
        Subject("shared"),
        Subject("encoder"),
        Subject("llama", ("LlamaConfig", "LlamaForCausalLM"), config=_LLAMA, generates=True),
        Subject(
            "llama-tied",
            ("LlamaConfig", "LlamaForCausalLM"),
            config=_LLAMA | {"tie_word_embeddings": True},
            generates=True,
        ),
        # At P = 4 two ranks share a key and value head.
        Subject(
            "llama-two-kv",
            ("LlamaConfig", "LlamaForCausalLM"),
            config=_LLAMA | {"num_key_value_heads": 2},
            generates=True,
        ),
        Subject(
            "gpt2",
            ("GPT2Config", "GPT2LMHeadModel"),
            _GPT2,
            {"n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            generates=True,
        ),
        Subject("bert", ("BertConfig", "BertForMaskedLM"), config=_NO_DROPOUT | {"max_position_embeddings": 64}),
        Subject(
            "t5",
            ("T5Config", "T5ForConditionalGeneration"),
            _T5,
            {"d_kv": 4, "dropout_rate": 0.0, "decoder_start_token_id": 0, "initializer_factor": 1.0},
            "pairs",
            True,
        ),
        Subject(
            "mixtral",
            ("MixtralConfig", "MixtralForCausalLM"),
            config=_LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
            generates=True,
        ),
        Subject(
            "vit",
            ("ViTConfig", "ViTForImageClassification"),
            {"vocab_size": ""},
            _NO_DROPOUT | {"image_size": 8, "patch_size": 4, "num_labels": 5},
            "pixels",
        ),
    )
}
