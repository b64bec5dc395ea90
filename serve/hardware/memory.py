"""How much memory a model takes here, and which context fits: arithmetic on its header, before any loading.

Weights are mapped from the file and must stay in memory to be fast (those that llama.cpp repacks for this
CPU are copied, and then their pages of the file may go: counted once); the cache of keys and values is taken
at once for the whole context; the work space grows with the micro-batch; copies of sequences that rest gather
up to a limit. What does not fit is refused with
the numbers and with what would fit, instead of being found out by the kernel's out-of-memory killer.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from rig.errors import RigError, WrongUse
from rig.model.gguf import GGUFHeader
from serve.hardware.machine import Machine, format_bytes

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
BATCH = 256
"""Tokens computed in one step: a small model reads a fifth faster than with 512, a large one as fast."""
PARKED = 256 * 2**20
"""Copies of sequences that rest may take this much, or half the context if that is more, or all of a small
one; where less is left, less. 2,048 tokens of Llama 3.1 8B are 256 MiB."""
STEP = 256
"""llama.cpp pads the cache to this many tokens."""
PROCESS = 200 * 2**20
"""Python and its libraries twice (HTTP side and engine): measured 110 MiB with a model of 4 MiB."""


@dataclass(frozen=True)
class MemoryFit:
    """A context that fits, and where the memory goes (bytes)."""

    context: int
    weights: int
    cache: int
    work: int
    parked: int
    """For copies of sequences that rest, as they gather."""
    free: int

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weights + self.cache + self.work + self.parked

    def describe_memory(self) -> str:
        """For a person, at start."""
        return (
            f"context of {self.context} tokens; {format_bytes(self.total_bytes)}: "
            f"weights {format_bytes(self.weights)}, "
            f"cache {format_bytes(self.cache)}, work space {format_bytes(self.work)}, "
            f"kept prefixes {format_bytes(self.parked)}"
        )


def kv_cache_bytes(header: GGUFHeader, tokens: int, kind: str = "f16") -> int:
    """Memory of keys and values for `tokens`, in a type of `CACHE_TYPES`.

    Llama 3.1 8B: 32 layers of 8 heads of 128 numbers, keys and values, 2 bytes: 128 KiB a token. Sliding
    windows are not subtracted: rig keeps the whole cache so that prefixes can be shared.
    """
    heads = max([1, *header.layer_numbers("attention.head_count", 1)])
    # 0 in layers without attention
    per_layer = header.layer_numbers("attention.head_count_kv", heads)
    width = header.arch_number("embedding_length") // heads
    key = header.arch_number("attention.key_length", width)
    value = header.arch_number("attention.value_length", width)
    padded = -(-tokens // STEP) * STEP
    return int(padded * sum(per_layer) * (key + value) * CACHE_TYPES[kind])


def work_bytes(header: GGUFHeader, micro_batch: int, scored: int = 0) -> int:
    """Work space of one micro-batch: logits for each of its tokens, two activations, the widest layer.

    Without flash attention each token's scores of `scored` cells are kept, head by head; they are gone
    before the logits come. Measured: 4.1 to 4.6 bytes a head and cell, and the mask.
    """
    width = header.arch_number("embedding_length")
    widest = max([0, *header.layer_numbers("feed_forward_length")])
    heads = max([1, *header.layer_numbers("attention.head_count", 1)])
    scores = int(scored * (4.5 * heads + 6))
    each = max(4 * header.vocab_size, scores) + 8 * width + 2 * widest
    return micro_batch * each + PROCESS


def fit_context(
    header: GGUFHeader,
    box: Machine,
    context: int | None = None,
    *,
    micro_batch: int = BATCH,
    cache: str = "f16",
    flash_attn: bool = True,
    name: str | None = None,
) -> MemoryFit:
    """The context to use: `context` if it fits, or one chosen; refused with a sentence if it can't be.

    Left to choose, it takes at most `AUTO_CONTEXT` and at most half of what the weights leave free.
    `context` is the total that all sequences share. A share of the memory stays for the rest of the box.
    """
    called = name or header.path.name
    trained = header.context_length or context or AUTO_CONTEXT
    if context is not None and context > trained:
        raise WrongUse(
            f"{called} was trained on {trained} tokens: ask for a context of at most that."
        )
    left = box.free - max(256 * 2**20, box.memory // 32) - header.total_bytes

    def of(tokens: int) -> MemoryFit:
        work = work_bytes(header, micro_batch, 0 if flash_attn else tokens)
        cells = kv_cache_bytes(header, tokens, cache)
        parked = max(0, min(cells, max(PARKED, cells // 2), left - work - cells))
        return MemoryFit(tokens, header.total_bytes, cells, work, parked, box.free)

    def largest_within(most: int, share: float) -> int:
        """The largest context whose cache takes `share` of what is left: halved, as need only grows."""
        sizes = range(STEP, most + 1, STEP)
        return STEP * bisect_left(
            sizes, True, key=lambda n: (fit := of(n)).cache > (left - fit.work) * share
        )

    largest = largest_within(trained, 1)
    wanted = context
    if wanted is None:
        half = largest_within(min(trained, AUTO_CONTEXT), 0.5)
        wanted = max(half, min(LEAST_CONTEXT, trained))
    need = of(wanted)
    if wanted <= largest:
        return need
    raise RigError(f"{called} does not fit: {_refusal(need, largest, cache)}")


def _refusal(need: MemoryFit, largest: int, cache: str) -> str:
    said = f"a {need.describe_memory()}, and {format_bytes(need.free)} are free here. "
    if largest >= LEAST_CONTEXT:
        smaller = "" if cache == "q8_0" else ", or halve the cache with --cache-type q8_0"
        return said + f"Ask for --ctx {largest} or less{smaller}."
    return said + "Stop what else runs here, or take a smaller quantisation of the model."
