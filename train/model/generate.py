"""Generates completions for training: every prompt once, every step one replay.

transformers' `generate` launches some two thousand kernels from Python for each token of an 8B model in
4 bit, so that a step takes the same time for 6 sequences as for 48. Here the step is captured once as a CUDA
graph and replayed. A group's prompt is read once and its keys and values are kept once: the queries of the
whole group meet them as the rows of one matrix, and so do the queries that share a key-value head. On the CPU
there is no graph, and sequences that have ended leave the batch. What is sampled is what `generate` would
sample: the same processors, the same `multinomial`.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import pad
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

from train.model import packing

ATTENTION = "rig_grouped"
LOOK = 16
"""Steps between two looks whether all have ended: each look makes the CPU wait for the GPU."""
PREFILL_TOKENS = 8192
"""Prompt tokens read at once; bounds the memory of the widest layer's activations."""


class PromptCache:
    """Keys and values of the prompts of a batch, each kept once for the rows that begin with it."""

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], rows: int) -> None:
        """`pairs`: of each layer (prompts, key heads, width, dim); equally many `rows` begin with each."""
        self.keys = [keys for keys, _ in pairs]
        self.values = [values for _, values in pairs]
        self.rows = rows

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Forget all rows of the batch but these; from here on each has a prompt of its own."""
        # rows: (batch,), True for one that stays; one: (rows that stay,), the prompt of each
        one = torch.arange(self.rows, device=rows.device)[rows] * len(self.keys[0]) // self.rows
        self.keys = [keys[one] for keys in self.keys]
        self.values = [values[one] for values in self.values]
        self.rows = len(one)


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    prompts: PromptCache | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token of each row over its prompt and over what the row has said.

    `query`: (batch, heads, 1, dim); `key`, `value`: (batch, key heads, said, dim); `attention_mask`: (batch,
    1, 1, width of the prompts + said), 0 where a key counts and -inf elsewhere. Returns (batch, 1, heads,
    dim) and no weights. Without `prompts` it is transformers' own function.
    """
    if prompts is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
        return found
    assert attention_mask is not None
    batch, heads, _, width = query.shape
    kept = key.shape[1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    # (prompts * key heads, width of the prompts, dim)
    asked_k, asked_v = prompts.keys[layer].flatten(0, 1), prompts.values[layer].flatten(0, 1)
    # `group` rows share a prompt, `each` query heads share a key head
    group, each = batch // (len(asked_k) // kept), heads // kept

    def together(rows: torch.Tensor) -> torch.Tensor:
        """(batch * key heads, each, n) as (prompts * key heads, group * each, n)."""
        rows = rows.view(-1, group, kept, each, rows.shape[-1]).transpose(1, 2)
        return rows.reshape(len(asked_k), group * each, -1)

    def apart(rows: torch.Tensor) -> torch.Tensor:
        """And back."""
        rows = rows.view(-1, kept, group, each, rows.shape[-1]).transpose(1, 2)
        return rows.reshape(batch * kept, each, -1)

    # (batch * key heads, each, dim): the head of a query is key head * each + which of them
    rows = query.reshape(batch * kept, each, width)
    # (batch * key heads, each, width of the prompts), then (batch * key heads, each, said)
    asked = apart(_product(together(rows), asked_k.transpose(1, 2)))
    said = _product(rows, key.flatten(0, 1).transpose(1, 2))
    # (batch, key heads, each, width of the prompts + said); the mask's middle axes of 1 spread over it
    scores = torch.cat([asked, said], -1).view(batch, kept, each, -1)
    shares = torch.add(attention_mask, scores, alpha=scaling or width**-0.5).softmax(-1)
    shares = shares.to(value.dtype).flatten(0, 1)
    asked, said = torch.split(shares, [asked.shape[-1], said.shape[-1]], -1)
    # (batch * key heads, each, dim) is (batch, heads, dim) in memory
    mixed = apart(_product(together(asked), asked_v)) + _product(said, value.flatten(0, 1))
    return mixed.to(value.dtype).view(batch, 1, heads, -1), None


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply batches of matrices, into 32 bits: a score of 10 in 16 bits is off by 0.03."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right).float()


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def can_generate(model: Any, config: GenerationConfig) -> bool:
    """Whether this file can stand in for `model.generate`: full attention, one sequence per row, no beams.

    Not where unsloth has rewritten the models: theirs do not fill the cache they are given.
    """
    return (
        packing.full_attention(model)
        and packing.uses_attention_interface(model)
        and config.num_beams in (None, 1)
        and config.num_return_sequences in (None, 1)
    )


def generate_in_portions(
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


class DecodeStep:
    """One forward pass of the whole batch by one token; on a GPU it is captured and then replayed."""

    def __init__(self, model: Any, prompts: PromptCache, mask: torch.Tensor, new: int) -> None:
        """`mask`: (batch, width of the prompts), True where a key counts; `new`: tokens that will be said."""
        self.model = model
        self.prompts = prompts
        said = -(-new // packing.ROUND) * packing.ROUND
        # (batch, 1, 1, width of the prompts + said): nothing has been said yet
        counts = torch.cat([mask, mask.new_zeros(len(mask), said)], 1)[:, None, None]
        self.mask = torch.zeros_like(counts, dtype=torch.float32).masked_fill(~counts, -torch.inf)
        # (batch, 1): the place of the next token in its own row, and the token
        self.position = mask.sum(1)[:, None]
        self.token = torch.zeros_like(self.position)
        # (1,): where all rows write next, behind the prompts
        self.slot = torch.tensor([mask.shape[1]], device=mask.device)
        self.layers = [
            _empty(pair, len(mask), said) for pair in zip(prompts.keys, prompts.values, strict=True)
        ]
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

    def capture_graph(self) -> None:
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

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows only (without a graph)."""
        self.mask, self.position, self.token = (
            self.mask[rows],
            self.position[rows],
            self.token[rows],
        )
        self.prompts.keep_rows(rows)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def _forward(self) -> torch.Tensor:
        self.mask.index_fill_(3, self.slot, 0.0)
        logits: torch.Tensor = self.model(
            input_ids=self.token,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=Cache(layers=self.layers),
            use_cache=True,
            prompts=self.prompts,
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
    `model.generate` does. `graph` None = capture on a CUDA GPU. The model's attention function and
    training mode are as before when it returns.
    """
    config = model.config.get_text_config(decoder=True)
    before, training = config._attn_implementation, model.training
    model.eval()
    config._attn_implementation = ATTENTION
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
    # (batch, prompt)
    batch, prompt = input_ids.shape
    new = config.max_new_tokens
    blank = _padding(config)
    # (batch, width of the prompts): padded on the left to a multiple of ROUND
    wide = -prompt % packing.ROUND
    mask = pad(attention_mask, (wide, 0)).bool()
    logits, prompts = _read(model, pad(input_ids, (wide, 0)), mask)
    step = DecodeStep(model, prompts, mask, new)
    on_gpu = input_ids.is_cuda if graph is None else graph
    if on_gpu and new > 1:
        step.capture_graph()
    ends = torch.tensor(_listed(config.eos_token_id), device=input_ids.device)
    choose = _sampler(model, config, prompt, ends)
    # (batch, prompt + new), filled from the left; the batch may shrink, `said` does not
    said = torch.cat([input_ids, input_ids.new_full((batch, new), blank)], dim=1)
    # (rows still in the batch,): which of `said` they are, and whether they go on
    rows = torch.arange(batch, device=input_ids.device)
    alive = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
    for index in range(new):
        token = choose(said[rows, : prompt + index], logits).masked_fill(~alive, blank)
        said[rows, prompt + index] = token
        alive = alive & ~torch.isin(token, ends)
        if (not on_gpu or index % LOOK == LOOK - 1) and not alive.any():
            return said[:, : prompt + index + 1]
        if index == new - 1:
            break
        if not on_gpu and int(alive.sum()) * 2 <= len(rows):
            step.keep_rows(alive)
            rows, token, alive = rows[alive], token[alive], alive[alive]
        logits = step(token)
    return said


def _read(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, PromptCache]:
    """Read each different prompt once; return every row's last logits and the prompts for the whole batch."""
    # (prompts,) the first row of each, and (batch,) the prompt of each row
    first, group = packing.find_distinct_rows(input_ids.masked_fill(~mask, -1))
    # (prompts, width)
    ids, mask = input_ids[first], mask[first]
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
        # of each layer (prompts of this piece, key heads, width, dim), twice
        pieces.append([(layer.keys, layer.values) for layer in cache.layers])
    # (runs of equal rows,): the block that a prompt serves is as long as divides them all
    runs = torch.unique_consecutive(group, return_counts=True)[1]
    begins = group[:: math.gcd(*runs.tolist())]  # a prompt stands once for each block of equal rows
    pairs = []
    for index in range(len(pieces[0])):
        keys, values = (torch.cat([piece[index][of] for piece in pieces]) for of in (0, 1))
        for piece in pieces:
            piece[index] = (keys[:0], values[:0])  # so that the prompt's cache is not held twice
        if len(begins) > len(ids):
            keys, values = keys[begins], values[begins]
        pairs.append((keys, values))
    return torch.cat(logits)[group], PromptCache(pairs, len(group))


def _empty(pair: tuple[torch.Tensor, torch.Tensor], rows: int, length: int) -> StaticLayer:
    """A layer's cache for what `rows` rows will say, in tensors that never move, like its prompts' pair."""
    layer = StaticLayer(length)
    layer.lazy_initialization(*(one[:1].expand(rows, -1, -1, -1) for one in pair))
    return layer


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
