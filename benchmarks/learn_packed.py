"""Learning from packed rows against padded ones, forward and backward: `python benchmarks/learn_packed.py`.

A random Llama (8 layers, width 512, all its weights learn) on the CPU, groups of 6 completions. The two take
turns on the same rows, and their gradients are compared. On a GPU `benchmarks/grpo_8b.py` measures whole
steps, with `--set backend.packed=false` for the rival.
"""

from __future__ import annotations

import platform
import time
from statistics import median
from typing import Any

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from train.model import packing

GROUP, PROMPTS, PROMPT, COMPLETION = 6, 2, 209, 200
VOCABULARY = 4096


def rows(share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A micro-batch of two groups; completions of `share` of the limit on average, one at the limit."""
    torch.manual_seed(seed)
    count = GROUP * PROMPTS
    ids = torch.randint(5, VOCABULARY, (count, PROMPT + COMPLETION))
    ids[:, :PROMPT] = ids[::GROUP, :PROMPT].repeat_interleave(GROUP, 0)
    mask = torch.ones_like(ids)
    if share < 1:
        spread = torch.rand(count) * 2 * min(share, 1 - share) + max(0.0, 2 * share - 1)
        lengths = (spread * COMPLETION).long().clamp(1, COMPLETION)
        lengths[0] = COMPLETION
        mask[:, PROMPT:] = (torch.arange(COMPLETION) < lengths[:, None]).long()
    return ids, mask


def learn(model: Any, ids: torch.Tensor, mask: torch.Tensor, packed: bool) -> float:
    """One forward and backward pass; returns its seconds, the gradients stay."""
    model.zero_grad()
    began = time.perf_counter()
    if packed:
        with packing.packed_forward(model, PROMPT):
            loss = nll(model, ids, mask)
    else:
        loss = nll(model, ids, mask)
    loss.backward()
    return time.perf_counter() - began


def nll(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Mean negative log-likelihood of the completions."""
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    held = mask[:, PROMPT:].bool()
    logits = model.lm_head(hidden[:, PROMPT - 1 : -1][held])
    return torch.nn.functional.cross_entropy(logits, ids[:, PROMPT:][held])


@click.command()
@click.option("--turns", default=9, show_default=True, help="Paired turns; one more warms up.")
def main(turns: int) -> None:
    """Race packed rows against padded ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    packing.install_packed_attention(model)
    click.echo(
        f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    click.echo(
        f"{PROMPTS} prompts of {PROMPT} tokens, {GROUP} completions each of at most {COMPLETION}"
    )
    for share in (1.0, 0.5):
        pairs = []
        for turn in range(turns + 1):
            ids, mask = rows(share, turn)
            padded = learn(model, ids, mask, packed=False)
            wanted = [p.grad.clone() for p in model.parameters()]
            packed = learn(model, ids, mask, packed=True)
            for p, grad in zip(model.parameters(), wanted, strict=True):
                torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)
            pairs.append((padded, packed))
        padded, packed = (median(side) for side in zip(*pairs[1:], strict=True))
        ratios = sorted(one / other for one, other in pairs[1:])
        click.echo(
            f"completions of {share:.0%} of the limit on average: padded {padded:.2f} s, "
            f"packed {packed:.2f} s; {median(ratios):.2f} times as fast "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), gradients alike"
        )


if __name__ == "__main__":
    main()
