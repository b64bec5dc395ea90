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
"""Keys are a multiple of this, here and while generating: the attention kernels want aligned masks."""


def find_distinct_rows(prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of (B, P) differ: the first of each kind, in order, and of each row which kind it is."""
    # (B): a number for each kind, in the order of the tokens and not of the rows
    _, alike = torch.unique(prompts, dim=0, return_inverse=True)
    # (B, B) to (B): the first row that is like this one
    first = (alike[:, None] == alike).int().argmax(1)
    # (U) and (B)
    kinds, kind = torch.unique(first, return_inverse=True)
    return kinds, kind


@dataclass(frozen=True)
class PackedLayout:
    """Where the tokens of a micro-batch lie in one packed row: every prompt once, then the completions.

    B rows of P + L columns hold U different prompts and T different tokens. For attention they are spread
    over S spots: U prompts of equal width, then B completions of equal width, padded on the right.
    """

    ids: torch.Tensor
    """(1, T): the tokens."""
    positions: torch.Tensor
    """(1, T): the place of each in its own row, from 0."""
    spots: torch.Tensor
    """(S): the token at each spot; 0 where `held` is False."""
    held: torch.Tensor
    """(S, 1, 1): whether there is a token at this spot."""
    place: torch.Tensor
    """(T): the spot of each token."""
    widths: tuple[tuple[int, int], tuple[int, int]]
    """(prompts, their width), (completions, their width)."""
    group: torch.Tensor
    """(B): the prompt of each completion."""
    mask: torch.Tensor
    """(B, 1, width of a completion, width of a prompt and a completion): True where a token of the completion
    looks at one of its prompt or of its own; each looks at one at least."""
    rows: torch.Tensor
    """(B, P + L): the token at each place of the padded rows; 0 where there is none."""


def build_layout(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int
) -> PackedLayout:
    """Pack rows of `prompt` columns of a prompt, padded on the left, and then its completion."""
    # On the CPU: on a GPU each of these small steps would be a launch, and each length a wait.
    # (B, P + L), whose halves are (B, P) and (B, L)
    ids, counts = input_ids.cpu(), attention_mask.bool().cpu()
    asked, said = counts[:, :prompt], counts[:, prompt:]
    first, group = find_distinct_rows(ids[:, :prompt].masked_fill(~asked, -1))

    # The spans of the packed row, each prompt once and then each completion: (U + B)
    lengths = torch.cat([asked.sum(1)[first], said.sum(1)])
    starts = lengths.cumsum(0) - lengths
    different, total = len(first), int(lengths.sum())

    # Where the span of each place begins, and how far into it the place lies: (B, P + L). Where nothing
    # counts this is no place at all, and becomes 0.
    before = torch.cat(
        [starts[group, None].expand_as(asked), starts[different:, None].expand_as(said)], 1
    )
    within = torch.cat([asked.cumsum(1), said.cumsum(1)], 1) - 1
    rows = (before + within) * counts
    # (T): rows that share a prompt write the same tokens to the same places
    packed, positions = torch.zeros(2, total, dtype=torch.long)
    packed[rows[counts]] = ids[counts]
    positions[rows[counts]] = (counts.cumsum(1) - 1)[counts]

    # Two grids for attention, (U, wide) and (B, longest), padded on the right. A completion has
    # wide + longest keys, a multiple of ROUND. One column stays where no completion has a token.
    longest = max(1, int(lengths[different:].max()))
    wide = int(lengths[:different].max())
    wide += -(wide + longest) % ROUND
    prompts, is_prompt = _grid(starts[:different], lengths[:different], wide)
    said_at, is_said = _grid(starts[different:], lengths[different:], longest)
    # (S) with S = U * wide + B * longest: from a spot to its token, and whether it has one
    spots = torch.cat([prompts.flatten(), said_at.flatten()])
    held = torch.cat([is_prompt.flatten(), is_said.flatten()])
    # (T): the way back, from a token to its spot
    place = torch.empty(total, dtype=torch.long)
    place[spots[held]] = held.nonzero()[:, 0]
    # (B, longest, wide) and (B, longest, longest) to (B, longest, wide + longest): a token looks at all
    # of its prompt, and at its completion up to itself
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.cat(
        [is_prompt[group, None].expand(-1, longest, -1), is_said[:, None] & earlier], 2
    )

    def there(part: torch.Tensor) -> torch.Tensor:
        return part.to(input_ids.device, non_blocking=True)

    return PackedLayout(
        ids=there(packed[None]),
        positions=there(positions[None]),
        spots=there(spots),
        held=there(held[:, None, None]),
        place=there(place),
        widths=((different, wide), (len(ids), longest)),
        group=there(group),
        mask=there(mask[:, None]),
        rows=there(rows),
    )


class _Taken(torch.autograd.Function):
    """Rows of a tensor, with a gradient that is fast on a CPU too, where autograd's own scatters."""

    @staticmethod
    def forward(
        ctx: Any, source: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None
    ) -> torch.Tensor:
        """Take the rows."""
        ctx.save_for_backward(index, back)
        ctx.length = len(source)
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Bring the gradients back to their rows."""
        index, back = ctx.saved_tensors
        if back is not None:
            return gradient.index_select(0, back), None, None
        whole = gradient.new_zeros(ctx.length, *gradient.shape[1:])
        return whole.index_add_(0, index, gradient), None, None


def gather_rows(
    source: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `source.index_select(0, index)`; `back` says where each row went, if each was taken once."""
    found: torch.Tensor = _Taken.apply(source, index, back)  # type: ignore[no-untyped-call]
    return found


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: PackedLayout | None = None,
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
    # (U, heads, wide, dim) of the prompts and (B, heads, longest, dim) of the completions; keys and values
    # have fewer heads
    (q, said_q), (k, said_k), (v, said_v) = (_spread(one, layout) for one in (query, key, value))
    # (U, wide, heads, dim), causal
    asked, _ = sdpa_attention_forward(module, q, k, v, None, **rest)
    # (B, key heads, wide + longest, dim): each completion behind its prompt
    k, v = (
        torch.cat([gather_rows(prompts, layout.group), completions], 2)
        for prompts, completions in ((k, said_k), (v, said_v))
    )
    # (B, longest, heads, dim)
    said, _ = sdpa_attention_forward(module, said_q, k, v, layout.mask, **rest)
    # (S, heads, dim), and by `place` (1, T, heads, dim)
    both = torch.cat([asked.flatten(0, 1), said.flatten(0, 1)])
    # the gradient at an empty spot is none: without the product it would be that of token 0
    return gather_rows(both * layout.held, layout.place, layout.spots)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def full_attention(model: Any) -> bool:
    """Whether tokens of `model` meet in attention alone, and each looks at all that stand before it.

    Not where unsloth has rewritten the models.
    """
    if "unsloth" in sys.modules:
        return False
    shape = model.config.get_text_config(decoder=True)
    sliding = getattr(shape, "sliding_window", None) and getattr(shape, "use_sliding_window", True)
    return not sliding and set(getattr(shape, "layer_types", None) or ()) <= {"full_attention"}


def uses_attention_interface(model: Any) -> bool:
    """Whether `model` attends through transformers' interface, so that another function can do it."""
    return bool(getattr(_backbone(model), "_supports_attention_backend", False))


def can_pack(model: Any) -> bool:
    """Whether `model` can learn from packed rows: full attention, through transformers' interface."""
    shape = model.config.get_text_config(decoder=True)
    return (
        full_attention(model)
        and uses_attention_interface(model)
        and shape._attn_implementation in ("sdpa", ATTENTION)
    )


def install_packed_attention(model: Any) -> None:
    """Let `model` attend through this file from here on: also where a layer is computed again."""
    model.config.get_text_config(decoder=True)._attn_implementation = ATTENTION


@contextlib.contextmanager
def packed_forward(model: Any, prompt: int) -> Iterator[None]:
    """While this is open, `model` packs the rows it is given, each `prompt` columns and a completion."""
    backbone = _backbone(model)
    plain, own = backbone.forward, vars(backbone).get("forward")

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: None = None,
        **rest: Any,
    ) -> Any:
        where = build_layout(input_ids, attention_mask, prompt)
        found = plain(
            input_ids=where.ids,
            position_ids=where.positions,
            # four dimensions: transformers hands it on as it is, and the layout says it all
            attention_mask=where.mask[:1, :, :1, :1],
            layout=where,
            **rest,
        )
        # (1, T, width) to (B * (P + L), width), as TRL expects it; what nobody counts is token 0's
        hidden = gather_rows(found.last_hidden_state[0], where.rows.flatten())
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


def group_by_prompt(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same micro-batches with the completions of a prompt side by side, so that they share it.

    Prompts come in the order in which they first appear, so what was shuffled stays so. Where one generation
    serves several optimiser steps, each of them learns from whole groups.
    """
    # (rows of all micro-batches, P)
    prompts = torch.cat([batch["prompt_ids"] for batch in batches]).cpu()
    size = len(batches[0]["prompt_ids"])
    order = find_distinct_rows(prompts)[1].argsort(stable=True)

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


def _grid(
    starts: torch.Tensor, lengths: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spans that begin at `starts`, one a row, 0 behind its end; and where they count."""
    # (spans, width)
    columns = torch.arange(width)
    inside = columns < lengths[:, None]
    return (starts[:, None] + columns) * inside, inside


def _spread(packed: torch.Tensor, layout: PackedLayout) -> list[torch.Tensor]:
    """(1, heads, T, dim) as prompts and completions, each (rows, heads, width, dim)."""
    # (T, heads, dim) to (S, heads, dim), and its two parts (U * wide, ...) and (B * longest, ...)
    spots = gather_rows(packed[0].transpose(0, 1), layout.spots, layout.place)
    parts = torch.split(spots, [rows * width for rows, width in layout.widths])
    return [
        part.view(*shape, *part.shape[1:]).transpose(1, 2)
        for part, shape in zip(parts, layout.widths, strict=True)
    ]


def _backbone(model: Any) -> Any:
    """The layers of a causal language model, under its adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model
