"""How much memory a run will take, from numbers alone; every constant says what it stands for.

A run has two phases that never overlap: completions are generated (key-value cache, a little more), then
learnt from (activations, logits, gradients). What stays through both is added: weights, adapter, optimiser.

    peak = resident + max(generating, learning) + workspace

It is the worst case: every prompt and completion at its limit. On a card it stands for what torch
reserves, on a CPU for the tensors without the interpreter. `tests/test_train_plan.py` holds it against
measured figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.shape import Shape

GIB = 2**30

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: four bits, one byte of scale per 64, and a second scale per 256 of those."""
HALF, FULL = 2, 4

LAYER_HIDDEN, LAYER_INNER = 26, 8
"""Bytes that one token keeps for the backward pass of one layer, per element of the hidden width (norms in
32 bits, residuals, attention in and out) and of the MLP's (gate, its activation, up, their product)."""
BACKWARD = 1.5
"""While a layer's gradients flow, that much of it again."""
LOGIT_COPIES = {"trl": 2, "unsloth": 0}
"""Tables of all logits in half precision alive at once: the logits and their gradient."""
CHUNKED = int(0.2 * GIB)
"""The tile that stands in for all logits where they are computed in pieces."""
SAMPLING = 16
"""Bytes per logit of the last position while a token is drawn (32-bit copies, sorting)."""
CACHE_SLACK = {"trl": 1.10, "unsloth": 1.05}
"""A cache that grows by copying leaves holes; one of fixed size nearly none."""
WORKSPACE = {"cuda": int(0.45 * GIB), "cpu": 0}
"""Matrices unpacked from four bits, cuBLAS, captured graphs, fragments."""
UNSLOTH_STEP = 256
"""unsloth rounds its cache up to a multiple of this."""


@dataclass(frozen=True)
class Memory:
    """Bytes, part by part."""

    weights: int
    adapter: int
    optimiser: int
    gradients: int
    activations: int
    logits: int
    kv_cache: int
    sampling: int
    workspace: int

    @property
    def learning(self) -> int:
        """What only learning takes."""
        return self.gradients + self.activations + self.logits

    @property
    def generating(self) -> int:
        """What only generating takes."""
        return self.kv_cache + self.sampling

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        resident = self.weights + self.adapter + self.optimiser
        return resident + max(self.learning, self.generating) + self.workspace

    def gib(self) -> dict[str, float]:
        """Every part in GiB."""
        return {name: round(value / GIB, 3) for name, value in vars(self).items()}


def estimate(
    shape: Shape,
    *,
    precision: str,
    trainable: int,
    optim: str,
    micro_batch: int,
    generated: int,
    prompt: int,
    completion: int,
    checkpointing: bool,
    chunked: bool = False,
    backend: str = "trl",
    cards: int = 1,
    window: int | None = None,
    wide_embedding: bool = False,
) -> Memory:
    """Predict the memory of each card.

    Args:
        shape: the model.
        precision: `4bit`, `16bit` or `32bit`, of the frozen weights.
        trainable: parameters of the adapter.
        optim: TRL's name; one with 8bit keeps a byte per state.
        micro_batch: completions through the model at once while it learns.
        generated: completions generated at once.
        prompt, completion: their limits in tokens.
        checkpointing: activations are computed twice instead of kept.
        chunked: log-probabilities in pieces, without a table of all logits.
        backend: `trl` or `unsloth`.
        cards: gradients are exchanged between them in buckets.
        window: tokens that unsloth keeps room for in the cache of each completion (max_seq_length).
        wide_embedding: embedding and head in 32 bits, as `prepare_model_for_kbit_training` leaves them.
    """
    cuda = precision != "32bit"
    wide = HALF if cuda else FULL
    per_weight = {"4bit": NF4, "16bit": HALF, "32bit": FULL}[precision]
    weights = int(shape.linear * per_weight) + (shape.embedding + shape.small) * wide
    if wide_embedding:  # and autocast keeps a half-precision copy of the head beside it
        weights += shape.embedding * (FULL - wide) + shape.vocabulary * shape.hidden * HALF
    states = 2 if "8bit" in optim else 8
    if optim in ("sgd", "adafactor"):
        states = 4
    tokens = micro_batch * (prompt + completion)
    stream = tokens * shape.hidden * (FULL if wide_embedding else wide)
    layer = tokens * (LAYER_HIDDEN * shape.hidden + LAYER_INNER * shape.intermediate) * wide // HALF
    if not checkpointing:
        activations = layer * shape.layers
    elif backend == "unsloth":  # keeps them in the host's memory
        activations = int(layer * BACKWARD) + stream
    else:
        activations = int(layer * BACKWARD) + stream * shape.layers
    table = micro_batch * (completion + 1) * shape.vocabulary * wide
    copies = LOGIT_COPIES[backend]
    logits = CHUNKED if chunked or copies == 0 else table * copies
    length = prompt + completion
    if backend == "unsloth":
        length = -(-(window or length) // UNSLOTH_STEP) * UNSLOTH_STEP
    cache = generated * length * shape.layers * shape.kv_width * wide
    return Memory(
        weights=weights,
        adapter=trainable * FULL,
        optimiser=trainable * states,
        gradients=trainable * FULL * (2 if cards > 1 else 1),
        activations=activations,
        logits=logits,
        kv_cache=int(cache * CACHE_SLACK[backend]),
        sampling=generated * shape.vocabulary * SAMPLING,
        workspace=WORKSPACE["cuda" if cuda else "cpu"],
    )
