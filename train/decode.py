"""Generates completions for training: every prompt once, every step one replay.

transformers' `generate` launches some two thousand kernels from Python for each token of an 8B model in
4 bit, so that a step takes the same time for 6 sequences as for 48. Here the step is captured once as a CUDA
graph and replayed. A group's prompt is read once and its keys and values are copied to the whole group;
queries that share a key-value head are answered together instead of copying the head for each. On the CPU
there is no graph, and sequences that have ended leave the batch. What is sampled is what `generate` would
sample: the same processors, the same `multinomial`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DynamicCache,
    GenerationConfig,
)
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from train import packing

ATTENTION = "rig_grouped"
LOOK = 16
"""Steps between two looks whether all have ended: each look makes the CPU wait for the card."""
PREFILL_TOKENS = 8192
"""Prompt tokens read at once; bounds the memory of the widest layer's activations."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token: (batch, heads, 1, dim) queries over (batch, key heads, length, dim) keys.

    The heads that share a key head become rows of one small matrix, so no key is copied. Longer queries go
    to transformers' own function. Returns (batch, 1, heads, dim) and no weights.
    """
    if query.shape[2] != 1:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
        return found
    batch, heads, _, width = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    mixed = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(batch, 1, heads, width), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class FixedLayer(StaticLayer):  # type: ignore[misc]
    """Keys and values of one layer in tensors that never move, filled from a prompt that was read before."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, group: torch.Tensor, length: int
    ) -> None:
        """`keys`, `values`: (prompts, heads, prompt length, dim); `group`: each batch row's prompt."""
        super().__init__(max_cache_len=length)
        self.dtype, self.device = keys.dtype, keys.device
        self.keys = self._filled(keys, group, length)
        self.values = self._filled(values, group, length)
        self.cumulative_length = torch.tensor(keys.shape[2], device=keys.device)
        self.is_initialized = True

    @staticmethod
    def _filled(source: torch.Tensor, group: torch.Tensor, length: int) -> torch.Tensor:
        _, heads, prompt, width = source.shape
        whole = source.new_zeros(len(group), heads, length, width)
        for row, prompt_row in enumerate(group.tolist()):  # row by row: no second copy of the whole
            whole[row, :, :prompt] = source[prompt_row]
        return whole

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all rows of the batch but these."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def supported(model: Any, config: GenerationConfig) -> bool:
    """Whether this file can stand in for `model.generate`: full attention, one sequence per row, no beams.

    Not where unsloth has rewritten the models: theirs do not fill the cache they are given.
    """
    return (
        packing.full_attention(model)
        and config.num_beams in (None, 1)
        and config.num_return_sequences in (None, 1)
    )


def in_portions(
    portion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    config: GenerationConfig,
    at_once: int,
) -> torch.Tensor:
    """Continue the rows of `input_ids`, (batch, prompt), by `portion(ids, mask)`, `at_once` rows at a time.

    Returns what one call for all would: (batch, prompt + new), padded to the longest.
    """
    said = []
    for at in range(0, len(input_ids), at_once):
        if at and input_ids.is_cuda:  # a captured step gives its memory back only when asked
            torch.cuda.empty_cache()
        said.append(portion(input_ids[at : at + at_once], attention_mask[at : at + at_once]))
    longest = max(rows.shape[1] for rows in said)
    blank = _padding(config)
    return torch.cat([pad(rows, (0, longest - rows.shape[1]), value=blank) for rows in said])


class Step:
    """One forward pass of the whole batch by one token; on a card it is captured and then replayed."""

    def __init__(
        self, model: Any, layers: list[FixedLayer], mask: torch.Tensor, start: torch.Tensor
    ) -> None:
        """`mask`: (batch, length), True where a key counts; `start`: (batch,) position of the next token."""
        self.model = model
        self.layers = layers
        self.mask = mask[:, None, None, :].contiguous()
        self.position = start[:, None].clone()
        self.token = torch.zeros_like(self.position)
        self.slot = layers[0].cumulative_length.reshape(1).clone()
        self.logits: torch.Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Take each row's last token, (batch,); return the next one's logits, (batch, vocabulary)."""
        self.token.copy_(token[:, None])
        if self.graph is not None:
            self.graph.replay()
        else:
            self.logits = self._forward()
        assert self.logits is not None
        return self.logits

    def capture(self) -> None:
        """Record the step; the two warm-up passes write only where the first real step writes again."""
        state = [
            self.mask,
            self.position,
            self.slot,
            *(layer.cumulative_length for layer in self.layers),
        ]
        kept = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)
        with torch.cuda.graph(graph):
            self.logits = self._forward()
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)
        self.graph = graph

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only (without a graph)."""
        self.mask, self.position, self.token = (
            self.mask[rows],
            self.position[rows],
            self.token[rows],
        )
        for layer in self.layers:
            layer.keep(rows)

    def _forward(self) -> torch.Tensor:
        self.mask.index_fill_(3, self.slot, True)
        logits: torch.Tensor = self.model(
            input_ids=self.token,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=Cache(layers=self.layers),
            use_cache=True,
        ).logits[:, -1]
        self.slot.add_(1)
        self.position.add_(1)
        return logits


@torch.no_grad()
def generate(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    generation_config: GenerationConfig,
    *,
    graph: bool | None = None,
) -> torch.Tensor:
    """Continue each row of left-padded `input_ids`, (batch, prompt), by `max_new_tokens` at most.

    Returns prompt and completion, (batch, prompt + new), padded after the end of each sequence, as
    `model.generate` does. `graph` None = capture on a CUDA card. The model's attention function and
    training mode are as before when it returns.
    """
    config = model.config.get_text_config(decoder=True)
    before, training = config._attn_implementation, model.training
    model.eval()
    config._attn_implementation = ATTENTION if before in ("sdpa", packing.ATTENTION) else before
    try:
        with _narrow(model):
            return _generate(model, input_ids, attention_mask, generation_config, graph)
    finally:
        config._attn_implementation = before
        model.train(training)


def _generate(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    config: GenerationConfig,
    graph: bool | None,
) -> torch.Tensor:
    batch, prompt = input_ids.shape
    new = config.max_new_tokens
    length = -(-(prompt + new) // packing.ROUND) * packing.ROUND
    logits, layers = _read(model, input_ids, attention_mask, length)
    mask = attention_mask.new_zeros(batch, length, dtype=torch.bool)
    mask[:, :prompt] = attention_mask.bool()
    step = Step(model, layers, mask, attention_mask.sum(1))
    on_card = input_ids.is_cuda if graph is None else graph
    if on_card and new > 1:
        step.capture()
    ends = torch.tensor(_listed(config.eos_token_id), device=input_ids.device)
    choose = _sampler(model, config, prompt, ends)
    blank = _padding(config)
    said = torch.cat([input_ids, input_ids.new_full((batch, new), blank)], dim=1)
    rows = torch.arange(
        batch, device=input_ids.device
    )  # the rows of `said` that are still in the batch
    alive = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
    for index in range(new):
        token = choose(said[rows, : prompt + index], logits).masked_fill(~alive, blank)
        said[rows, prompt + index] = token
        alive = alive & ~torch.isin(token, ends)
        if (not on_card or index % LOOK == LOOK - 1) and not alive.any():
            return said[:, : prompt + index + 1]
        if index == new - 1:
            break
        if not on_card and int(alive.sum()) * 2 <= len(rows):
            step.keep(alive)
            rows, token, alive = rows[alive], token[alive], alive[alive]
        logits = step(token)
    return said


def _read(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, length: int
) -> tuple[torch.Tensor, list[FixedLayer]]:
    """Read each different prompt once; return every row's last logits and the whole batch's cache."""
    both = torch.stack([input_ids, attention_mask], 1)
    both, group = torch.unique(both, dim=0, return_inverse=True)
    ids, mask = both[:, 0], both[:, 1]
    position = (mask.cumsum(1) - 1).clamp(min=0)
    portion = max(1, PREFILL_TOKENS // ids.shape[1])
    logits: list[torch.Tensor] = []
    pieces: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for at in range(0, len(ids), portion):
        part = slice(at, at + portion)
        cache = DynamicCache()
        logits.append(
            model(
                input_ids=ids[part],
                attention_mask=mask[part],
                position_ids=position[part],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        )
        pieces.append([(layer.keys, layer.values) for layer in cache.layers])
    layers = []
    for index in range(len(pieces[0])):
        keys = torch.cat([piece[index][0] for piece in pieces])
        values = torch.cat([piece[index][1] for piece in pieces])
        for piece in pieces:
            piece[index] = (keys[:0], values[:0])  # so that the prompt's cache is not held twice
        layers.append(FixedLayer(keys, values, group, length))
    return torch.cat(logits)[group], layers


def _sampler(
    model: Any, config: GenerationConfig, prompt: int, ends: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return what chooses the next token, (batch,), from the tokens so far and (batch, vocabulary) logits."""
    config = copy.copy(config)
    # as `generate` sets it; without it a least length is ignored
    config._eos_token_tensor = ends if config.eos_token_id is not None else None
    processors = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=prompt, device=ends.device
    )

    def choose(said: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores = processors(said, logits.float())
        if not config.do_sample:
            return torch.as_tensor(scores.argmax(-1))
        return torch.multinomial(scores.softmax(-1), 1).squeeze(1)

    return choose


@contextlib.contextmanager
def _narrow(model: Any) -> Iterator[None]:
    """Let an adapter in float32 on a 16-bit model answer in 16 bits: no cast per layer and token."""
    frozen = {p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad}
    wide = [p for p in model.parameters() if p.requires_grad and p.dtype == torch.float32]
    kept = [p.data for p in wide]
    if frozen and torch.float32 not in frozen:
        for parameter in wide:
            parameter.data = parameter.data.to(min(frozen, key=lambda dtype: dtype.itemsize))
    try:
        yield
    finally:
        for parameter, data in zip(wide, kept, strict=True):
            parameter.data = data


def _padding(config: GenerationConfig) -> int:
    """What stands after the end of a sequence."""
    return _listed(config.eos_token_id if config.pad_token_id is None else config.pad_token_id)[0]


def _listed(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return [-1]  # no id is -1: nothing ends a sequence but its length
    return [ids] if isinstance(ids, int) else list(ids)
