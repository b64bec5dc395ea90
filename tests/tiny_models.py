"""Models of every supported family, tiny and random, made without torch; their tokenizers are trained here.

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

Array = npt.NDArray[np.float32]

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Tom has 12 apples and buys 30 more; how many apples does he have now? 12 + 30 = 42.",
    "A dragon of 2500 attack destroys every spell card on the field, says the card's text.",
    "Ada wrote: \"numbers aren't everything\". It's the 3rd time she'd said so!\n\n",
    "Zürich, São Paulo and Łódź lie far apart; 東京 even farther. Привет, мир! 🚀",
    "<reasoning>\nfirst add, then divide by 7\n</reasoning>\n<answer>\n6\n</answer>",
    "def add(a, b):\n    return a + b\t# indented by four spaces\n",
]

LLAMA_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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
PATTERNS = {
    "llama": r"\p{N}{1,3}",
    "qwen2": r"\p{N}",
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


def write_tokenizer(folder: Path, kind: str) -> int:
    """Train and write a tokenizer; return its size. Kinds: llama, qwen2, smollm, tekken, spm, spm-json."""
    return _sentencepiece(folder, kind) if kind.startswith("spm") else _byte_level(folder, kind)


def _byte_level(folder: Path, kind: str) -> int:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )  # fmt: skip

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
    if kind in PATTERNS:
        words = Regex(WORDS.replace("NUMBER", PATTERNS[kind]))
        steps = [pre_tokenizers.Split(words, behavior="isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    if kind == "llama":
        tokenizer.add_special_tokens(
            ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
             "<|eot_id|>", "<|eom_id|>"]
        )  # fmt: skip
        begin = tokenizer.token_to_id("<|begin_of_text|>")
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                    special_tokens=[("<|begin_of_text|>", begin)],
                ),
            ]
        )
        config |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        template = LLAMA_TEMPLATE
    else:
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        config |= {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        template = CHATML_TEMPLATE
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return tokenizer.get_vocab_size(with_added_tokens=True) + 3  # ids that no text has


def _sentencepiece(folder: Path, kind: str) -> int:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_writer=model, vocab_size=420, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
        "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "legacy": False,
        "chat_template": "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} "
        "[/INST]{% endfor %}",
    }  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = int(pieces.vocab_size())
    write_json(folder / "tokenizer_config.json", config)
    _write_spm_json(folder, pieces)
    if kind == "spm-json":
        (folder / "tokenizer.model").unlink()
    return size


def _write_spm_json(folder: Path, pieces: Any) -> None:
    """The same tokenizer as transformers saves it: BPE with byte fallback and merges in order."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {pieces.IdToPiece(i): i for i in range(pieces.vocab_size())}
    scores = {pieces.IdToPiece(i): pieces.GetScore(i) for i in range(pieces.vocab_size())}
    merges = []
    for piece in vocab:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [(scores[piece], a, b) for a, b in cuts if a in vocab and b in vocab]
    merges.sort(key=lambda merge: -merge[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [(a, b) for _, a, b in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


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
