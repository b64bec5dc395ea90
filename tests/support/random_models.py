"""Small random models of the families that rig trains: `from random_models import FAMILIES, SHAPE, model`."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "mistral": lambda **shape: transformers.MistralConfig(sliding_window=None, **shape),
}


def model(family: str = "llama", **changes: Any) -> Any:
    """A model of that family, always with the same weights."""
    torch.manual_seed(0)
    config = FAMILIES[family](**(SHAPE | changes))
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def gpt2() -> Any:
    """One that learns a place for each position and shares no key heads."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=300, bos_token_id=2, eos_token_id=4
    )
    return transformers.GPT2LMHeadModel(config)


def granite() -> Any:
    """One that scales its scores by a number of its own."""
    torch.manual_seed(0)
    return transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SHAPE, attention_multiplier=0.9)
    )
