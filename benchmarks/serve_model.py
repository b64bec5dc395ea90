"""A random model of Llama 3.2 1B's shape as Q4_K_M: what `benchmarks/serve.py` and its rivals serve.

Speed depends on shapes and types, not on what the weights know. The vocabulary is Llama 3's when its
tokenizer lies in ../shared/data, else one of the same size made of repeated words.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT.parent / "shared/data/models/llama-3.1-tokenizer/tokenizer.json.gz"
LAYERS, WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY = 16, 2048, 8192, 32, 8, 128_256
TEMPLATE = (
    "{{- bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def make(path: Path, *, layers: int = LAYERS, seed: int = 1) -> Path:
    """Write the model to `path` unless it is there; takes about two minutes and 2.5 GB beside it."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".f16")
    _write(whole, layers, np.random.default_rng(seed))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 2
    part = path.with_suffix(".part")
    if llama_cpp.llama_model_quantize(
        str(whole).encode(), str(part).encode(), ctypes.byref(params)
    ):
        sys.exit("llama.cpp could not quantise the model.")
    whole.unlink()
    return part.rename(path)


def _write(path: Path, layers: int, rng: np.random.Generator) -> None:
    out = gguf.GGUFWriter(str(path), "llama", use_temp_file=False)
    out.add_name("random-1b")
    out.add_file_type(1)
    out.add_context_length(131_072)
    out.add_embedding_length(WIDTH)
    out.add_block_count(layers)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(500_000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(VOCABULARY)
    _vocabulary(out)
    shapes: list[tuple[str, tuple[int, ...], float]] = [
        ("token_embd", (VOCABULARY, WIDTH), 0.02),
        ("output_norm", (WIDTH,), 0),
    ]
    kv = WIDTH // HEADS * KV_HEADS
    for i in range(layers):
        shapes += [
            (f"blk.{i}.attn_norm", (WIDTH,), 0),
            (f"blk.{i}.attn_q", (WIDTH, WIDTH), 0.02),
            (f"blk.{i}.attn_k", (kv, WIDTH), 0.02),
            (f"blk.{i}.attn_v", (kv, WIDTH), 0.02),
            (f"blk.{i}.attn_output", (WIDTH, WIDTH), 0.02),
            (f"blk.{i}.ffn_norm", (WIDTH,), 0),
            (f"blk.{i}.ffn_gate", (INNER, WIDTH), 0.02),
            (f"blk.{i}.ffn_up", (INNER, WIDTH), 0.02),
            (f"blk.{i}.ffn_down", (WIDTH, INNER), 0.02),
        ]
    for name, shape, _ in shapes:
        kind = np.float32 if len(shape) == 1 else np.float16
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        out.add_tensor_info(f"{name}.weight", shape, np.dtype(kind), size)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for _, shape, scale in shapes:
        values = rng.standard_normal(shape, dtype=np.float32) * scale if scale else np.ones(shape)
        out.write_tensor_data(values.astype(np.float16 if scale else np.float32))
    out.close()


def _vocabulary(out: Any) -> None:
    tokens, merges, special = _llama() if TOKENIZER.is_file() else _made_up()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list(tokens)
    out.add_token_types([3 if token in special else 1 for token in tokens])
    out.add_token_merges(merges)
    out.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    out.add_eos_token_id(tokens.index("<|eot_id|>"))
    out.add_add_bos_token(True)
    out.add_chat_template(TEMPLATE)


def _llama() -> tuple[list[str], list[str], set[str]]:
    found = json.loads(gzip.decompress(TOKENIZER.read_bytes()))
    words = dict(found["model"]["vocab"])
    special = {entry["content"]: entry["id"] for entry in found["added_tokens"]}
    words |= special
    tokens = sorted(words, key=words.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    return tokens, merges, set(special)


def _made_up() -> tuple[list[str], list[str], set[str]]:
    """All bytes, then ever longer words of two known ones, as byte-level BPE would find them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    known, merges = set(tokens), []
    letters = [chr(b) for b in b"etaoinshrdlucmfwypvbgk"]
    starts = ["Ġ", *letters]
    queue = [(a, b) for a in starts for b in letters]
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    while len(tokens) < VOCABULARY - len(special):
        a, b = queue.pop(0)
        if a + b in known:
            continue
        merges.append(f"{a} {b}")
        tokens.append(a + b)
        known.add(a + b)
        if len(a) < 8:
            queue += [(a + b, c) for c in letters]
    return tokens + special, merges, set(special)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
