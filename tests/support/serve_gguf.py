"""GGUF files for the serving room's tests: tiny random Llamas, written with gguf's own writer.

Their vocabulary is all bytes, a few merges and Llama 3's control tokens, so any text can be read and
written, and what they say is nonsense that is the same each time.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from rig.model.reply_format import PLAIN, ReplyFormat

TEMPLATE = (
    "{{- bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MERGES = [(" ", "t"), ("h", "e"), (" t", "he"), ("i", "n"), ("e", "r"), (" ", "a"), ("o", "n")]
CONTROL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 64, 2, 4, 2, 128, 4096


def write(
    path: Path,
    *,
    reply_format: ReplyFormat = PLAIN,
    template: str | None = TEMPLATE,
    seed: int = 1,
    words: tuple[str, ...] = (),
    control: tuple[str, ...] = (),
    context: int = CONTEXT,
    advice: dict[str, float] | None = None,
) -> Path:
    """Write a model; `words` are user-defined tokens of their own, such as <think>, `control` control tokens.

    `advice` is what the file says under `general.sampling`.
    """
    rng = np.random.default_rng(seed)
    letters = _letters()
    tokens = [letters[b] for b in range(256)]
    merges = []
    for left, right in MERGES:
        a, b = ("".join(letters[x] for x in part.encode()) for part in (left, right))
        merges.append(f"{a} {b}")
        tokens.append(a + b)
    kinds = [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(words) + [3] * len(control)
    first = len(tokens)
    tokens += [*CONTROL, *words, *control]
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name("tiny-random")
    out.add_file_type(0)
    out.add_context_length(context)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10_000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    out.add_bos_token_id(first)
    out.add_eos_token_id(first + 1)
    out.add_add_bos_token(True)
    if template is not None:
        out.add_chat_template(template)
    for key, number in (advice or {}).items():
        write_number = out.add_int32 if isinstance(number, int) else out.add_float32
        write_number(f"general.sampling.{key}", number)
    for key, value in reply_format.to_metadata().items():
        out.add_string(key, value)

    def random(name: str, *shape: int, scale: float = 0.08) -> None:
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
        out.add_tensor(f"{name}.weight", values)

    kv = WIDTH // HEADS * KV_HEADS
    random("token_embd", len(tokens), WIDTH, scale=0.5)
    random("output", len(tokens), WIDTH, scale=0.4)
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{norm}.weight", np.ones(WIDTH, np.float32))
        random(f"blk.{i}.attn_q", WIDTH, WIDTH)
        random(f"blk.{i}.attn_k", kv, WIDTH)
        random(f"blk.{i}.attn_v", kv, WIDTH)
        random(f"blk.{i}.attn_output", WIDTH, WIDTH)
        random(f"blk.{i}.ffn_gate", INNER, WIDTH)
        random(f"blk.{i}.ffn_up", INNER, WIDTH)
        random(f"blk.{i}.ffn_down", WIDTH, INNER)
    _finish(out)
    return path


def write_lora(path: Path, *, seed: int = 2, rank: int = 4, strength: float = 0.5) -> Path:
    """Write a LoRA adapter for `write`'s models that changes what they say."""
    rng = np.random.default_rng(seed)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_type(gguf.GGUFType.ADAPTER)
    out.add_string(gguf.Keys.Adapter.TYPE, "lora")
    out.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for i in range(LAYERS):
        a = rng.standard_normal((rank, WIDTH)).astype(np.float32) * np.float32(strength)
        b = rng.standard_normal((WIDTH, rank)).astype(np.float32) * np.float32(strength)
        out.add_tensor(f"blk.{i}.attn_q.weight.lora_a", a)
        out.add_tensor(f"blk.{i}.attn_q.weight.lora_b", b)
    _finish(out)
    return path


def _finish(out: gguf.GGUFWriter) -> None:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
