"""GGUF files: what stands in one, in a form that tests can compare, and one of a given shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize

from rig.model.gguf import read_header


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, in file order."""
    raw = path.read_bytes()
    return {t.name: (t.type, raw[t.offset : t.offset + t.bytes]) for t in read_header(path).tensors}


def numbers(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as float32."""
    shapes = {t.name: t.shape for t in read_header(path).tensors}
    return {
        name: dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType[kind]).reshape(
            shapes[name]
        )
        for name, (kind, data) in tensors(path).items()
    }


def keys(path: Path) -> dict[str, Any]:
    """Every key, lists among them."""
    return read_header(path, lists=True).metadata


def write_shaped(path: Path, **shape: Any) -> Path:
    """A llama of random weights without a vocabulary: real enough for llama.cpp to load and run."""
    layers, width, ff = shape.get("layers", 2), shape.get("width", 256), shape.get("ff", 512)
    heads, kv, vocab = shape.get("heads", 4), shape.get("kv", 2), shape.get("vocab", 1000)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(shape.get("trained", 8192))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocab)
    writer.add_file_type(1)
    writer.add_string("rig.reasoning_open", "<reasoning>")
    writer.add_array("general.tags", ["a", "b"])
    if "tokens" in shape:
        writer.add_array("tokenizer.ggml.tokens", shape["tokens"])
    else:
        writer.add_string("tokenizer.ggml.model", "no_vocab")
    side = width // heads
    tensors = {"token_embd": (vocab, width), "output": (vocab, width), "output_norm": (width,)}
    for n in range(layers):
        tensors |= {
            f"blk.{n}.attn_norm": (width,), f"blk.{n}.ffn_norm": (width,),
            f"blk.{n}.attn_q": (width, width), f"blk.{n}.attn_output": (width, width),
            f"blk.{n}.attn_k": (kv * side, width), f"blk.{n}.attn_v": (kv * side, width),
            f"blk.{n}.ffn_gate": (ff, width), f"blk.{n}.ffn_up": (ff, width),
            f"blk.{n}.ffn_down": (width, ff),
        }  # fmt: skip
    for name, sides in tensors.items():
        kind = np.float32 if len(sides) == 1 else np.float16
        writer.add_tensor(name + ".weight", np.full(sides, 0.01, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
