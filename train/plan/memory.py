"""How much memory a run will take, from numbers alone; every constant says what it stands for.

A run has two phases that never overlap: completions are generated (key-value cache, a little more), then
learnt from (activations, logits, gradients). What stays through both is added: weights, adapter, optimiser.

    peak = resident + max(generating, learning)

It is the worst case: every prompt and completion at its limit. On a GPU it stands for what torch
reserves, on a CPU for the tensors without the interpreter. `tests/test_train_plan_memory.py` holds it against
every figure that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from train.plan.model_shape import ModelShape

GIB = 2**30

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: four bits, one byte of scale per 64, and a second scale per 256 of those."""
HALF, FULL = 2, 4

LAYER_HIDDEN, LAYER_INNER = 26, 8
"""Bytes that one token keeps for the backward pass of one layer, per element of the hidden width (norms in
32 bits, residuals, attention in and out) and of the MLP's (gate, its activation, up, their product)."""
ATTENDED = 8
"""Of LAYER_HIDDEN, what attention keeps for its rows: keys and values for every head, and their gradients."""
BACKWARD = 1.5
"""While a layer's gradients flow, that much of it again."""
LOGIT_COPIES = 5
"""Tables of all logits in half precision alive at once under plain TRL: the logits, divided by the
temperature, their log-softmax, and the gradients of two of them."""
CHUNKED = int(0.2 * GIB)
"""The tile that stands in for all logits where they are computed in pieces."""
SAMPLING = 16
"""Bytes per logit of the last position while a token is drawn (32-bit copies, sorting)."""
GROWING = 1.10
"""A cache that grows by copying leaves holes (transformers' `generate`)."""
UNSLOTH_CACHE = 3.15
"""What unsloth takes for each generated completion, in caches of its length: measured, not explained."""
ROUND = 8
"""`train.model.generate` makes a cache's length a multiple of this (`packing.ROUND`, without torch)."""
BLOCK = 2 * 2**20
"""torch takes memory from the GPU in multiples of this, and a tensor of fixed size fills whole ones."""
GRAPH_POOLS, UNPACKED = 3, 2
"""Pools of memory around a captured step (reading the prompt, warming up, the graph itself), and matrices
that each holds unpacked from four bits."""
WORKSPACE = int(0.45 * GIB)
"""Matrices unpacked from four bits while learning, cuBLAS, fragments."""
REPLAYING = int(0.2 * GIB)
"""The same while a captured step is replayed, whose own pools are counted apart."""
UNSLOTH_WORKSPACE = int(1.0 * GIB)
"""The same for unsloth, whose compiled kernels and buffers stay."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, part by part."""

    weights: int
    adapter: int
    optimiser: int
    gradients: int
    activations: int
    logits: int
    kv_cache: int
    sampling: int
    capture: int
    """The captured decoding step and the adapter in 16 bits; where none is captured, the workspace."""
    workspace: int
    """What learning takes besides."""

    @property
    def learning_bytes(self) -> int:
        """What only learning takes."""
        return self.gradients + self.activations + self.logits + self.workspace

    @property
    def generating_bytes(self) -> int:
        """What only generating takes."""
        return self.kv_cache + self.sampling + self.capture

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once."""
        resident = self.weights + self.adapter + self.optimiser
        return resident + max(self.learning_bytes, self.generating_bytes)

    def to_gib(self) -> dict[str, float]:
        """Every part in GiB."""
        return {name: round(value / GIB, 3) for name, value in vars(self).items()}


def estimate_memory(
    shape: ModelShape,
    *,
    precision: str,
    trainable: int,
    optim: str,
    micro_batch: int,
    generated: int,
    generations: int,
    prompt: int,
    completion: int,
    checkpointing: bool,
    decoder: str,
    chunked: bool = False,
    packed: bool = False,
    gpus: int = 1,
    wide_embedding: bool = False,
) -> MemoryEstimate:
    """Predict the memory of each GPU.

    Args:
        shape: the model.
        precision: `4bit`, `16bit` or `32bit`, of the frozen weights.
        trainable: parameters of the adapter.
        optim: TRL's name; one with 8bit keeps a byte per state, a paged one gives way to the rest.
        micro_batch: completions through the model at once while it learns.
        generated: completions generated at once.
        generations: completions of one prompt.
        prompt, completion: their limits in tokens.
        checkpointing: activations are computed twice instead of kept.
        decoder: who generates: `rig`, `transformers`, or `unsloth` (who then also learns).
        chunked: log-probabilities in pieces, without a table of all logits.
        packed: learnt without padding, and from a prompt once for all its completions in `micro_batch`.
        gpus: gradients are exchanged between them in buckets.
        wide_embedding: embedding and head in 32 bits, as `prepare_model_for_kbit_training` leaves them.
    """
    cuda, unsloth = precision != "32bit", decoder == "unsloth"
    wide = HALF if cuda else FULL
    per_weight = {"4bit": NF4, "16bit": HALF, "32bit": FULL}[precision]
    weights = (
        int(shape.linear_parameters * per_weight)
        + (shape.embedding_parameters + shape.small) * wide
    )
    if wide_embedding:  # and autocast keeps a half-precision copy of the head beside it
        weights += (
            shape.embedding_parameters * (FULL - wide) + shape.vocabulary * shape.hidden * HALF
        )
    tokens = rows = micro_batch * (prompt + completion)
    if packed:
        tokens = (
            prompts_per_micro_batch(micro_batch, generations) * prompt + micro_batch * completion
        )
    stream = tokens * shape.hidden * (FULL if wide_embedding else wide)
    layer = tokens * ((LAYER_HIDDEN - ATTENDED) * shape.hidden + LAYER_INNER * shape.intermediate)
    layer = (layer + rows * ATTENDED * shape.hidden) * wide // HALF
    if not checkpointing:
        activations = layer * shape.layers
    elif unsloth:  # keeps them in the host's memory
        activations = int(layer * BACKWARD) + stream
    else:
        activations = int(layer * BACKWARD) + stream * shape.layers
    table = micro_batch * (completion + 1) * shape.vocabulary * wide
    token = shape.layers * shape.kv_width * wide
    workspace = 0 if not cuda else UNSLOTH_WORKSPACE if unsloth else WORKSPACE
    captured = decoder == "rig" and cuda
    capture = _unpacked(shape, precision) + trainable * HALF + REPLAYING if captured else workspace
    caches = {
        "rig": _fixed_cache(shape, generated, completion, wide)
        + _fixed_cache(shape, prompts_per_portion(generated, generations), prompt, wide),
        "transformers": int(generated * (prompt + completion) * token * GROWING),
        "unsloth": int(generated * (prompt + completion) * token * UNSLOTH_CACHE),
    }
    return MemoryEstimate(
        weights=weights,
        adapter=trainable * FULL,
        optimiser=0 if "paged" in optim else trainable * _states(optim),
        gradients=trainable * FULL * (2 if gpus > 1 else 1),
        activations=activations,
        logits=CHUNKED if chunked or unsloth else table * LOGIT_COPIES,
        kv_cache=caches[decoder],
        sampling=generated * shape.vocabulary * SAMPLING,
        capture=capture,
        workspace=workspace,
    )


def prompts_per_micro_batch(micro_batch: int, generations: int) -> int:
    """Prompts that a micro-batch touches at most, where the completions of a prompt lie side by side."""
    return -(-(micro_batch + generations - gcd(micro_batch, generations)) // generations)


def prompts_per_portion(generated: int, generations: int) -> int:
    """Prompts that a portion keeps: one for each of its groups, and more where it cuts groups."""
    return generated // gcd(generated, generations)


def _states(optim: str) -> int:
    """Bytes that the optimiser keeps for each parameter."""
    if "8bit" in optim:
        return 2
    return 4 if optim in ("sgd", "adafactor") else 8


def _fixed_cache(shape: ModelShape, rows: int, length: int, wide: int) -> int:
    """Keys and values of `rows` in every layer, each in one tensor that never moves (`model.generate`)."""
    one = rows * (-(-length // ROUND) * ROUND) * shape.kv_width // 2 * wide
    if one > BLOCK:
        one = -(-one // BLOCK) * BLOCK
    return one * 2 * shape.layers


def _unpacked(shape: ModelShape, precision: str) -> int:
    """Matrices in 16 bits beside their four, while a step is captured and replayed."""
    if precision != "4bit":
        return 0
    largest = max(linear.inputs * linear.outputs for linear in shape.linears)
    return GRAPH_POOLS * UNPACKED * largest * HALF
