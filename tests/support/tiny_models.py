"""Models of every supported family, tiny and random, made without torch; `tiny_tokenizers` makes their words.

Real in every file: config.json, safetensors, tokenizer. Only the size is a toy's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.tiny_tokenizers import write_tokenizer

Array = npt.NDArray[np.float32]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
}


def make(
    folder: Path,
    family: str = "llama",
    *,
    dtype: str = "BF16",
    seed: int = 0,
    tokenizer: str | None = None,
    shards: int = 1,
    biases: bool = False,
    **config: Any,
) -> Path:
    """Write a whole model folder; `config` overrides what the toy has by default."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = tokenizer or {"mistral": "spm", "gemma3": "spm"}.get(family, family.replace("3", "2"))
    words = write_tokenizer(folder, kind)
    whole: dict[str, Any] = {
        **FAMILIES[family],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": words,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": family in ("gemma3",),
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        **_rope(family, config.pop("rope", None)),
        **({"head_dim": 64} if family in ("qwen3", "gemma3") else {}),
        **(
            {"sliding_window": 64, "hidden_activation": "gelu_pytorch_tanh"}
            if family == "gemma3"
            else {}
        ),
        **({"query_pre_attn_scalar": 64} if family == "gemma3" else {}),
        **_ids(folder),
        **config,
    }
    if biases:
        whole["attention_bias"] = True
    write_json(folder / "config.json", whole)
    tensors = weights(whole, family, seed, biases)
    write_weights(folder, tensors, dtype, shards)
    return folder


def weights(config: Mapping[str, Any], family: str, seed: int, biases: bool) -> dict[str, Array]:
    """Random tensors of the shapes that `config` asks for, by their Hugging Face names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(config, family, biases=biases).items():
        spread = rng.standard_normal(shape).astype(np.float32)
        middle = 0.0 if family == "gemma3" or not name.endswith("norm.weight") else 1.0
        tensors[name] = np.float32(middle) + spread * np.float32(0.1 if len(shape) == 1 else 0.05)
    return tensors


def shapes(config: Mapping[str, Any], family: str, *, biases: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this configuration has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {
            at + "input_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (wide, hidden),
            at + "self_attn.k_proj.weight": (narrow, hidden),
            at + "self_attn.v_proj.weight": (narrow, hidden),
            at + "self_attn.o_proj.weight": (hidden, wide),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "mlp.gate_proj.weight": (inner, hidden),
            at + "mlp.up_proj.weight": (inner, hidden),
            at + "mlp.down_proj.weight": (hidden, inner),
        }
        if biases or family == "qwen2":
            found |= {
                at + "self_attn.q_proj.bias": (wide,),
                at + "self_attn.k_proj.bias": (narrow,),
                at + "self_attn.v_proj.bias": (narrow,),
            }
        if biases and family == "llama":
            found[at + "self_attn.o_proj.bias"] = (hidden,)
        if family in ("qwen3", "gemma3"):
            found |= {
                at + "self_attn.q_norm.weight": (head,),
                at + "self_attn.k_norm.weight": (head,),
            }
        if family == "gemma3":
            found |= {
                at + "pre_feedforward_layernorm.weight": (hidden,),
                at + "post_feedforward_layernorm.weight": (hidden,),
            }
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def make_adapter(
    folder: Path,
    model: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: str = r"(q|k|v|o|gate|up|down)_proj",
    seed: int = 1,
    size: float = 0.05,
    dtype: str = "F32",
    dora: bool = False,
    **config: Any,
) -> Path:
    """Write a PEFT adapter folder for the linear layers of `model` whose name matches `targets`."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    ranks = config.get("rank_pattern") or {}
    for name, shape in read_shapes(model).items():
        module = name.removesuffix(".weight")
        if not re.fullmatch(rf".*\.{targets}", module) or len(shape) != 2:
            continue
        r = next((v for k, v in ranks.items() if re.match(rf"(.*\.)?({k})$", module)), rank)
        path = f"base_model.model.{module}."
        tensors[path + "lora_A.weight"] = (
            rng.standard_normal((r, shape[1])).astype(np.float32) * size
        )
        tensors[path + "lora_B.weight"] = (
            rng.standard_normal((shape[0], r)).astype(np.float32) * size
        )
        if dora:
            length = 1 + 0.1 * rng.standard_normal(shape[0]).astype(np.float32)
            tensors[path + "lora_magnitude_vector"] = length
    write_adapter(
        folder, tensors, dtype, r=rank, lora_alpha=alpha, use_dora=dora,
        base_model_name_or_path=str(model), target_modules=rf".*\.{targets}", **config,
    )  # fmt: skip
    return folder


def write_adapter(
    folder: Path, tensors: Mapping[str, Array], dtype: str = "F32", **config: Any
) -> None:
    """Write an adapter of the given tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    standard = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0, "use_dora": False,
        "use_rslora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": [],
    }  # fmt: skip
    write_json(folder / "adapter_config.json", standard | config)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors, dtype))


def write_weights(folder: Path, tensors: Mapping[str, Array], dtype: str, shards: int = 1) -> None:
    """Write safetensors, in one file or in several with an index."""
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(tensors, dtype))
        return
    names = list(tensors)
    where: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number::shards]
        (folder / file).write_bytes(safetensors({n: tensors[n] for n in mine}, dtype))
        where |= dict.fromkeys(mine, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def safetensors(tensors: Mapping[str, Array], dtype: str) -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = io.BytesIO()
    for name, values in tensors.items():
        start = body.tell()
        body.write(packed(values, dtype))
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [start, body.tell()],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + body.getvalue()


def packed(values: Array, dtype: str) -> bytes:
    """Numbers as BF16 (rounded to nearest, ties to even), F16 or F32."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()


def read_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model folder."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found |= {n: tuple(e["shape"]) for n, e in header.items() if n != "__metadata__"}
    return found


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), "utf-8")


def _ids(folder: Path) -> dict[str, Any]:
    """bos_token_id and eos_token_id as the tokenizer has them."""
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = {one["content"]: one["id"] for one in whole["added_tokens"]}
    named = {f"{name}_token_id": ids.get(config.get(f"{name}_token")) for name in ("bos", "eos")}
    return {key: value for key, value in named.items() if value is not None}


def _rope(family: str, rope: dict[str, Any] | None) -> dict[str, Any]:
    """Positions as transformers 4 writes them; a `rope` with rope_theta is written as version 5 does."""
    if rope and "rope_theta" in rope:
        return {"rope_parameters": rope}
    theta = 1_000_000.0 if family == "gemma3" else 500_000.0 if family == "llama" else 10_000.0
    local = {"rope_local_base_freq": 10_000.0} if family == "gemma3" else {}
    return {"rope_theta": theta, "rope_scaling": rope, **local}
