"""What a Hugging Face configuration means in GGUF: hyperparameters, tensor names, and what is done to each.

Follows llama.cpp's converter (its `conversion/` package), which reads configurations through
transformers; the defaults that transformers fills in stand here instead, so that neither it nor torch is
needed. transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are both understood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from export.checkpoint.config import ModelConfig, check_typed
from export.quantise.ggml import Floats
from export.quantise.quant_types import MixShape, tensor_order
from rig.errors import RigError

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How one family differs from the others."""

    gguf: gguf.MODEL_ARCH
    defaults: Mapping[str, Any]
    """What transformers assumes for keys that config.json leaves out."""
    permuted: bool = False
    """Query and key rows stand in Hugging Face's rotary order and go back to the original one."""
    norm_shift: float = 0.0
    """Added to every norm weight."""


_LLAMA = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
_MISTRAL = _LLAMA | {"max_position_embeddings": 131_072, "num_key_value_heads": 8}
_QWEN = _LLAMA | {"max_position_embeddings": 32_768, "num_key_value_heads": 32}
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_ARCH = gguf.MODEL_ARCH
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(_ARCH.LLAMA, _LLAMA, permuted=True),
    "MistralForCausalLM": Architecture(_ARCH.LLAMA, _MISTRAL, permuted=True),
    "Qwen2ForCausalLM": Architecture(_ARCH.QWEN2, _QWEN),
    "Qwen3ForCausalLM": Architecture(_ARCH.QWEN3, _QWEN | {"head_dim": 128}),
    "Gemma3ForCausalLM": Architecture(_ARCH.GEMMA3, _GEMMA, norm_shift=1.0),
    "Gemma3ForConditionalGeneration": Architecture(_ARCH.GEMMA3, _GEMMA, norm_shift=1.0),
}
SUPPORTED = "Llama 2, 3, 3.1 and 3.2, Mistral, SmolLM2, Qwen2 and Qwen2.5, Qwen3, Gemma 3 (text)"
SKIPPED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
VISION = ("vision_tower", "vision_model", "multi_modal_projector")


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the file to be written, and where its numbers come from."""

    name: str
    shape: tuple[int, ...]
    """In torch order: rows first."""
    source: str | None
    """The Hugging Face tensor; None when `values` holds the numbers."""
    heads: int = 0
    """Rows are permuted head by head, so many heads; 0: they are not."""
    shift: float = 0.0
    values: Floats | None = None


class CheckpointModel:
    """One configuration, understood; `config` has every default filled in."""

    def __init__(self, config: Config, where: str) -> None:
        config = check_typed(config, ModelConfig, f"{where}/config.json")
        name = (config.get("architectures") or ["?"])[0]
        if name not in ARCHITECTURES:
            raise RigError(
                f"{where} is a {name}, which rig cannot export. Supported are {SUPPORTED}; "
                f"for others use llama.cpp's own converter."
            )
        if method := (config.get("quantization_config") or {}).get("quant_method"):
            raise RigError(
                f"{where} is quantised already ({method}): export from the 16-bit model it was made "
                f"of; for a run or an adapter trained on it, name that model with --base."
            )
        self.name = name
        self.architecture = ARCHITECTURES[name]
        given = config | (config.get("text_config") or {})
        self.config = dict(self.architecture.defaults) | {
            key: value for key, value in given.items() if value is not None
        }
        try:
            self.layers: int = self.config["num_hidden_layers"]
            self.heads: int = self.config["num_attention_heads"]
            self.hidden: int = self.config["hidden_size"]
            self.inner: int = self.config["intermediate_size"]
            self.vocabulary: int = self.config["vocab_size"]
        except KeyError as error:
            raise RigError(f"{where}: config.json lacks {error}: download it again.") from error
        self.kv_heads: int = self.config.get("num_key_value_heads") or self.heads
        self.head_dim: int = self.config.get("head_dim") or self.hidden // self.heads
        if self.heads % self.kv_heads or not self.head_dim or self.head_dim % 2:
            raise RigError(
                f"{where}: config.json has {self.heads} heads for {self.hidden} numbers and "
                f"{self.kv_heads} of keys, which is no model: download it again."
            )
        self.tied = bool(self.config.get("tie_word_embeddings", False))
        self.rope, self.rope_local = _rope(self.config, name)

    @property
    def mix_shape(self) -> MixShape:
        """What the quantisation mixes look at."""
        big = self.layers == 80 and (
            self.architecture.gguf == _ARCH.QWEN2 or self.heads != self.kv_heads
        )
        return MixShape(self.layers, self.heads, self.kv_heads, big)

    def output_tensors(self, found: Mapping[str, tuple[int, ...]]) -> list[OutputTensor]:
        """The tensors to be written for the Hugging Face tensors `found` (name to shape), in file order."""
        names = gguf.get_tensor_name_map(self.architecture.gguf, self.layers)
        parts = []
        for source, shape in found.items():
            plain = source.replace("language_model.", "")
            if source.endswith(SKIPPED) or any(piece in source for piece in VISION):
                continue
            name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise RigError(
                    f"The weights hold {source}, which a {self.name} does not have: is config.json "
                    f"the one that belongs to them?"
                )
            parts.append(self._part(name, shape, source))
        if (factors := rope_factors(self.rope, self.head_dim)) is not None:
            parts.append(OutputTensor("rope_freqs.weight", factors.shape, None, values=factors))
        self._complete({part.name: part.shape for part in parts})
        return sorted(parts, key=lambda part: tensor_order(part.name))

    def _part(self, name: str, shape: tuple[int, ...], source: str) -> OutputTensor:
        heads = 0
        if self.architecture.permuted and ".attn_q." in name:
            heads = self.heads
        elif self.architecture.permuted and ".attn_k." in name:
            heads = self.kv_heads
        shift = self.architecture.norm_shift if name.endswith("norm.weight") else 0.0
        return OutputTensor(name, shape, source, heads, shift)

    def _complete(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Every tensor that the configuration promises is there and has the size it says."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        inner, normed = self.inner, self.architecture.gguf in (_ARCH.QWEN3, _ARCH.GEMMA3)
        wanted: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocabulary, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        for layer in range(self.layers):
            wanted |= {
                f"blk.{layer}.attn_q.weight": (wide, self.hidden),
                f"blk.{layer}.attn_k.weight": (narrow, self.hidden),
                f"blk.{layer}.attn_v.weight": (narrow, self.hidden),
                f"blk.{layer}.attn_output.weight": (self.hidden, wide),
                f"blk.{layer}.ffn_gate.weight": (inner, self.hidden),
                f"blk.{layer}.ffn_up.weight": (inner, self.hidden),
                f"blk.{layer}.ffn_down.weight": (self.hidden, inner),
                f"blk.{layer}.attn_norm.weight": (self.hidden,),
                f"blk.{layer}.ffn_norm.weight": (self.hidden,),
            }
            if normed:
                wanted |= {
                    f"blk.{layer}.attn_q_norm.weight": (self.head_dim,),
                    f"blk.{layer}.attn_k_norm.weight": (self.head_dim,),
                }
            if self.architecture.gguf == _ARCH.GEMMA3:
                wanted |= {
                    f"blk.{layer}.post_attention_norm.weight": (self.hidden,),
                    f"blk.{layer}.post_ffw_norm.weight": (self.hidden,),
                }
        optional = {
            name.replace(".weight", ".bias"): shape[:1]
            for name, shape in wanted.items()
            if name.startswith("blk.") and "norm" not in name
        }
        optional |= {"rope_freqs.weight": (self.head_dim // 2,)}
        (optional if self.tied else wanted)["output.weight"] = (self.vocabulary, self.hidden)
        if missing := sorted(set(wanted) - set(shapes)):
            raise RigError(
                f"The weights lack {missing[0]} (as GGUF calls it): download them again."
            )
        for name, shape in shapes.items():
            right = wanted.get(name) or optional.get(name)
            if right is None:
                raise RigError(
                    f"The weights hold {name} (as GGUF calls it), which no {self.name} has."
                )
            if shape != right:
                raise RigError(
                    f"{name} is {_size(shape)} in the weights but {_size(right)} by "
                    f"config.json: the two do not belong together."
                )

    def write_hyperparameters(self, writer: gguf.GGUFWriter) -> None:
        """Write the hyperparameters; keys and values as llama.cpp's converter writes them."""
        config, rope = self.config, self.rope
        writer.add_block_count(self.layers)
        writer.add_context_length(int(config["max_position_embeddings"]))
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.inner)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        kind, factor = rope.get("rope_type"), rope.get("factor")
        if kind == "linear" and factor is not None:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(factor)
        elif kind == "yarn" and factor is not None:
            _describe_yarn(writer, rope)
        elif kind not in (None, "default", "llama3", "linear", "yarn"):
            raise RigError(
                f"The model scales its positions by {kind!r}, which GGUF cannot say for it; rig "
                f"knows default, linear, yarn and llama3."
            )
        writer.add_rope_freq_base(rope["rope_theta"])
        if self.rope_local is not None:
            writer.add_rope_freq_base_swa(self.rope_local)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        if self.architecture.gguf != _ARCH.QWEN2 or "head_dim" in config:
            writer.add_key_length(self.head_dim)
            writer.add_value_length(self.head_dim)
        if self.architecture.gguf == _ARCH.LLAMA:
            writer.add_vocab_size(self.vocabulary)
            writer.add_rope_dimension_count(self.head_dim)
        if self.architecture.gguf == _ARCH.GEMMA3:
            if cap := config.get("final_logit_softcapping"):
                writer.add_final_logit_softcapping(cap)
            if config.get("sliding_window_pattern") != 1:
                writer.add_sliding_window(int(config["sliding_window"]))


def rope_factors(rope: Mapping[str, Any], dimensions: int) -> Floats | None:
    """Llama 3.1's stretching of the slow rotary frequencies, one factor for each pair of dimensions.

    GGUF has no key for it: forgotten, the file loads and is silently wrong at longer contexts. Every
    step is rounded to float32 in the order in which torch does it, so that the bits are the converter's.
    """
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return None
    one, factor = np.float32(1), np.float32(rope.get("factor", 8.0))
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    if high <= low:
        raise RigError(
            f"config.json stretches its positions from {low} to {high} (rope_scaling), which is no range."
        )
    trained = rope.get("original_max_position_embeddings", 8192)
    steps = (np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)).astype(float)
    factors = []
    for power in (float(rope["rope_theta"]) ** steps).astype(np.float32):
        length = one / (one / power) * np.float32(2 * math.pi)
        if length < trained / high:
            factors.append(one)
        elif length > trained / low:
            factors.append(factor)
        else:
            smooth = (one / length * np.float32(trained) - np.float32(low)) / np.float32(high - low)
            factors.append(one / ((one - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def _rope(config: Config, name: str) -> tuple[dict[str, Any], float | None]:
    """The position encoding of the (global) layers, and the base of Gemma's local ones."""
    if name.startswith("Gemma3"):
        given = config.get("rope_parameters") or {}
        whole = {"rope_type": "default"} | (given.get("full_attention") or {})
        whole |= config.get("rope_scaling") or {}
        whole.setdefault("rope_theta", config["rope_theta"])
        local = (given.get("sliding_attention") or {}).get("rope_theta")
        return _typed(whole), float(local or config.get("rope_local_base_freq") or 10_000.0)
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    rope.setdefault("rope_theta", config["rope_theta"])
    rope = _typed(rope)
    if rope["rope_type"] in ("llama3", "yarn"):
        trained = config.get("original_max_position_embeddings")
        if trained is not None:
            rope["original_max_position_embeddings"] = trained
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return rope, None


def _typed(rope: dict[str, Any]) -> dict[str, Any]:
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def _describe_yarn(writer: gguf.GGUFWriter, rope: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for key, add in (
        ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
        ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
        ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
        ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
    ):
        value = rope.get(key)
        if value is None and key == "attention_factor":
            value = rope.get("attn_factor")
        if value is not None:
            add(value)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
