"""Learns from completions without padding, and reads the prompt that a group shares once.

TRL sends rows of (prompt | completion) through the model, padded to the longest of the whole step, and each
prompt as often as it has completions: of 48 rows of 200 and 200 tokens more than two fifths are prompts read
again, and completions that end early are mostly padding. Here the rows of a micro-batch become one row of the
tokens that count, each prompt once; only attention sees rows, because only there do tokens meet. What comes
back has the shape that TRL expects. Log-probabilities and gradients are those of the padded rows, up to the
rounding of sums in another order.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rig_packed"
ROUND = 8
"""Keys are a multiple of this: the attention kernels want aligned masks."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a micro-batch lie in one packed row: first every prompt once, then the completions.

    B rows of P + L columns hold U different prompts and T different tokens. Indices point into the packed row
    (0 where there is nothing), but for `place`.
    """

    ids: torch.Tensor
    """(1, T): the tokens."""
    positions: torch.Tensor
    """(1, T): the place of each in its own row, from 0."""
    prompts: torch.Tensor
    """(U, longest prompt)."""
    queries: torch.Tensor
    """(B, longest completion)."""
    keys: torch.Tensor
    """(B, longest prompt + longest completion, rounded up): what the queries of that row may look at."""
    mask: torch.Tensor
    """(B, 1, queries, keys), True where a query looks at a key; every query looks at one at least."""
    place: torch.Tensor
    """(T): where the attention of `prompts`, then of `queries`, both flattened, holds this token."""
    rows: torch.Tensor
    """(B, P + L): the padded rows again."""


def layout(input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int) -> Layout:
    """Pack rows of `prompt` columns of a prompt, padded on the left, and then its completion."""
    ids, counts = input_ids.cpu(), attention_mask.bool().cpu()
    asked, said = counts[:, :prompt], counts[:, prompt:]
    _, group = torch.unique(ids[:, :prompt].masked_fill(~asked, -1), dim=0, return_inverse=True)
    first = torch.stack([(group == one).nonzero()[0, 0] for one in range(int(group.max()) + 1)])
    lengths = torch.cat([asked.sum(1)[first], said.sum(1)])
    starts = lengths.cumsum(0) - lengths
    different, total = len(first), int(lengths.sum())

    prompts, is_prompt = _grid(starts[:different], lengths[:different])
    queries, is_query = _grid(starts[different:], lengths[different:])
    keys, is_key = (
        torch.cat([prompts[group], queries], 1),
        torch.cat([is_prompt[group], is_query], 1),
    )
    ends = torch.arange(queries.shape[1])
    earlier = torch.cat(
        [torch.ones(len(ends), prompts.shape[1], dtype=torch.bool), ends[:, None] >= ends], 1
    )
    blank = (0, -keys.shape[1] % ROUND)
    keys = torch.nn.functional.pad(keys, blank)
    mask = torch.nn.functional.pad(is_key[:, None, :] & earlier, blank)[:, None]

    place = torch.zeros(total, dtype=torch.long)
    found = torch.cat([prompts[is_prompt], queries[is_query]])
    place[found] = torch.cat([is_prompt.flatten(), is_query.flatten()]).nonzero()[:, 0]
    before = torch.cat(
        [starts[group, None].expand_as(asked), starts[different:, None].expand_as(said)], 1
    )
    within = torch.cat([asked.cumsum(1), said.cumsum(1)], 1) - 1
    rows = (before + within) * counts
    packed, positions = torch.zeros(2, total, dtype=torch.long)
    packed[rows[counts]] = ids[counts]
    positions[rows[counts]] = (counts.cumsum(1) - 1)[counts]

    parts = (packed[None], positions[None], prompts, queries, keys, mask, place, rows)
    return Layout(*(part.to(input_ids.device, non_blocking=True) for part in parts))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed row, (1, heads, T, dim): prompts among themselves, completions with theirs.

    Returns (1, T, heads, dim) and no weights. Without a layout it is transformers' own function.
    """
    if layout is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **rest
        )
        return found
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    prompts, queries, keys = layout.prompts, layout.queries, layout.keys
    asked, _ = sdpa_attention_forward(
        module, _taken(q, prompts), _taken(k, prompts), _taken(v, prompts), None, **rest
    )
    said, _ = sdpa_attention_forward(
        module, _taken(q, queries), _taken(k, keys), _taken(v, keys), layout.mask, **rest
    )
    both = torch.cat([asked.flatten(0, 1), said.flatten(0, 1)])
    return both.index_select(0, layout.place)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def supported(model: Any) -> bool:
    """Whether tokens of `model` meet in attention alone, all of it full, and through transformers' interface.

    Not where unsloth has rewritten the models.
    """
    if "unsloth" in sys.modules:
        return False
    shape = model.config.get_text_config(decoder=True)
    kinds = set(getattr(shape, "layer_types", None) or ["full_attention"])
    sliding = getattr(shape, "sliding_window", None) and getattr(shape, "use_sliding_window", True)
    return (
        kinds == {"full_attention"}
        and not sliding
        and bool(getattr(_backbone(model), "_supports_attention_backend", False))
        and shape._attn_implementation in ("sdpa", ATTENTION)
    )


def prepare(model: Any) -> None:
    """Let `model` attend through this file from here on: also where a layer is computed again."""
    model.config.get_text_config(decoder=True)._attn_implementation = ATTENTION


@contextlib.contextmanager
def packing(model: Any, prompt: int) -> Iterator[None]:
    """While this is open, `model` packs the rows it is given, each `prompt` columns and a completion."""
    backbone = _backbone(model)
    plain, own = backbone.forward, vars(backbone).get("forward")

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: None = None,
        **rest: Any,
    ) -> Any:
        where = layout(input_ids, attention_mask, prompt)
        found = plain(
            input_ids=where.ids,
            position_ids=where.positions,
            # four dimensions: transformers hands it on as it is, and the layout says it all
            attention_mask=where.mask[:1, :, :1, :1],
            layout=where,
            **rest,
        )
        hidden = found.last_hidden_state[0].index_select(0, where.rows.flatten())
        found.last_hidden_state = hidden.view(*input_ids.shape, -1)
        return found

    backbone.forward = forward
    try:
        yield
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own


def regrouped(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same micro-batches with the completions of a prompt side by side, so that they share it.

    Prompts come in the order in which they first appear, so what was shuffled stays so.
    """
    prompts = torch.cat([batch["prompt_ids"] for batch in batches]).cpu()
    size = len(batches[0]["prompt_ids"])
    seen: dict[bytes, int] = {}
    keys = [seen.setdefault(row.numpy().tobytes(), len(seen)) for row in prompts]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))

    def column(name: str) -> list[Any]:
        values = [batch[name] for batch in batches]
        if isinstance(values[0], torch.Tensor) and values[0].ndim:
            whole = torch.cat(values)
            return list(torch.split(whole[order.to(whole.device)], size))
        if isinstance(values[0], list):
            flat = [one for value in values for one in value]
            return [[flat[at] for at in order[i : i + size]] for i in range(0, len(flat), size)]
        return values  # one for all

    columns = {name: column(name) for name in batches[0]}
    return [{name: values[at] for name, values in columns.items()} for at in range(len(batches))]


# ----------------------------------------------------------------------------------------------------------


def _grid(starts: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of spans that begin at `starts`, one span a row, 0 behind its end; and where they count."""
    columns = torch.arange(max(1, int(lengths.max())))
    inside = columns < lengths[:, None]
    return (starts[:, None] + columns) * inside, inside


def _taken(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(T, heads, dim) by (rows, columns) as (rows, heads, columns, dim)."""
    found = tokens.index_select(0, index.flatten())
    return found.view(*index.shape, *tokens.shape[1:]).transpose(1, 2)


def _backbone(model: Any) -> Any:
    """The layers of a causal language model, under its adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model
