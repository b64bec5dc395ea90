"""How much memory a model takes here, and which context fits: arithmetic on its header, before any loading.

Weights are mapped from the file and must stay in memory to be fast (those that llama.cpp repacks for this
CPU are copied, and then their pages of the file may go: counted once); the cache of keys and values is taken
at once for the whole context; the work space grows with the micro-batch. What does not fit is refused with
the numbers and with what would fit, instead of being found out by the kernel's out-of-memory killer.
"""

from __future__ import annotations

from dataclasses import dataclass

from rig.errors import RigError, WrongUse
from serve.box import Box, sized
from serve.header import Header

CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q4_0": 18 / 32,
}
"""Bytes per stored number of the cache, by llama.cpp's name of the type."""
AUTO_CONTEXT = 16_384
"""Taken when nobody asks for more: longer prompts take minutes to read on a small box."""
LEAST_CONTEXT = 512
"""Below this a model is of no use."""
STEP = 256
"""llama.cpp pads the cache to this many tokens."""
PROCESS = 200 * 2**20
"""Python and its libraries twice (HTTP side and engine): measured 110 MiB with a model of 4 MiB."""


@dataclass(frozen=True)
class Fit:
    """A context that fits, and where the memory goes (bytes)."""

    context: int
    weights: int
    cache: int
    work: int
    free: int

    @property
    def need(self) -> int:
        """All of it together."""
        return self.weights + self.cache + self.work

    def sentence(self) -> str:
        """For a person, at start."""
        return (
            f"context of {self.context} tokens; {sized(self.need)}: weights {sized(self.weights)}, "
            f"cache {sized(self.cache)}, work space {sized(self.work)}"
        )


def cache_bytes(header: Header, tokens: int, kind: str = "f16") -> int:
    """Memory of keys and values for `tokens`, in a type of `CACHE_TYPES`.

    Llama 3.1 8B: 32 layers of 8 heads of 128 numbers, keys and values, 2 bytes: 128 KiB a token. Sliding
    windows are not subtracted: rig keeps the whole cache so that prefixes can be shared.
    """
    heads = int(header.get("attention.head_count", 1) or 1)
    layers = int(header.get("block_count", 0))
    of = header.get("attention.head_count_kv", heads)
    per_layer = of if isinstance(of, list) else [int(of)] * layers  # 0 in layers without attention
    width = int(header.get("embedding_length", 0)) // max(1, heads)
    key = int(header.get("attention.key_length", width))
    value = int(header.get("attention.value_length", width))
    padded = -(-tokens // STEP) * STEP
    return int(padded * sum(per_layer) * (key + value) * CACHE_TYPES[kind])


def work_bytes(header: Header, micro_batch: int) -> int:
    """Work space of one micro-batch: logits for each of its tokens, two activations, the widest layer."""
    width, widest = int(header.get("embedding_length", 0)), header.get("feed_forward_length", 0)
    widest = max(widest) if isinstance(widest, list) else int(widest)
    return micro_batch * (4 * (header.vocabulary + 2 * width) + 2 * widest) + PROCESS


def fit(
    header: Header,
    box: Box,
    context: int | None = None,
    *,
    micro_batch: int = 512,
    cache: str = "f16",
    name: str | None = None,
) -> Fit:
    """The context to use: `context` if it fits, or one chosen; refused with a sentence if it can't be.

    Left to choose, it takes at most `AUTO_CONTEXT` and at most half of what the weights leave free.
    `context` is the total that all sequences share. A share of the memory stays for the rest of the box.
    """
    called = name or header.path.name
    trained = header.context or context or AUTO_CONTEXT
    if context is not None and context > trained:
        raise WrongUse(
            f"{called} was trained on {trained} tokens: ask for a context of at most that."
        )
    weights, work = header.bytes, work_bytes(header, micro_batch)
    left = box.free - max(256 * 2**20, box.memory // 32) - weights - work
    each = max(1, cache_bytes(header, STEP, cache)) / STEP
    largest = min(trained, max(0, int(left / each)) // STEP * STEP)
    wanted = context
    if wanted is None:
        half = min(trained, AUTO_CONTEXT, max(0, int(left / 2 / each)) // STEP * STEP)
        wanted = max(half, min(LEAST_CONTEXT, trained))
    if wanted <= largest:
        return Fit(wanted, weights, cache_bytes(header, wanted, cache), work, box.free)
    need = Fit(wanted, weights, cache_bytes(header, wanted, cache), work, box.free)
    raise RigError(f"{called} does not fit: {_refusal(need, largest, cache)}")


def _refusal(need: Fit, largest: int, cache: str) -> str:
    said = f"a {need.sentence()}, and {sized(need.free)} are free here. "
    if largest >= LEAST_CONTEXT:
        smaller = "" if cache == "q8_0" else ", or halve the cache with --cache-type q8_0"
        return said + f"Ask for --ctx {largest} or less{smaller}."
    return said + "Stop what else runs here, or take a smaller quantisation of the model."
