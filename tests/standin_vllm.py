"""A stand-in for vLLM 0.26's in-process `LLM`, for what TRL 1.14.2 asks of it: transformers on the CPU.

vLLM needs a CUDA card. This answers from a model of its own, whose weights come by `load_weights`, with
log-probabilities after the temperature, and like vLLM's worker it sets the random states of the process to a
seed of its own when it starts (`vllm/v1/worker/gpu_worker.py`, `init_device`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed


class SamplingParams(SimpleNamespace):
    """What TRL asks for each completion."""

    ignore_eos = False
    min_tokens = 0


class LLM:
    """One engine; the last one started is `LLM.last`."""

    last: LLM

    def __init__(self, model: str, **options: Any) -> None:
        """Load the model of a folder."""
        set_seed(0)
        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.asked: list[SamplingParams] = []
        self.syncs = 0
        self.seeds: set[int] = set()
        runner = SimpleNamespace(model=self)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        lengths = SimpleNamespace(max_model_len=options["max_model_len"])
        self.llm_engine = SimpleNamespace(model_executor=executor, model_config=lengths)
        LLM.last = self

    def load_weights(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        """Take weights under the names of the base model; an unknown name or shape is an error."""
        own = dict(self.model.named_parameters())
        for name, weight in pairs:
            assert own[name].shape == weight.shape
            own[name].data.copy_(weight)

    def reset_prefix_cache(self) -> None:
        """Called after each synchronisation."""
        self.syncs += 1

    @torch.no_grad()
    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: SamplingParams, use_tqdm: bool
    ) -> list[SimpleNamespace]:
        """One completion for each prompt, with the log-probability of every token that was drawn."""
        self.asked.append(sampling_params)
        self.seeds.add(torch.initial_seed())
        asked = [prompt["prompt_token_ids"] for prompt in prompts]
        wide = max(map(len, asked))
        ids = torch.tensor([[0] * (wide - len(row)) + row for row in asked])
        mask = torch.tensor([[0] * (wide - len(row)) + [1] * len(row) for row in asked])
        ends = set() if sampling_params.ignore_eos else set(self.model.config.eos_token_id)
        said: list[list[int]] = [[] for _ in asked]
        shares: list[list[dict[int, SimpleNamespace]]] = [[] for _ in asked]
        going = [True] * len(asked)
        past = None
        for _ in range(sampling_params.max_tokens):
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            found = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=past,
                use_cache=True,
            )
            past = found.past_key_values
            logs = (found.logits[:, -1].float() / sampling_params.temperature).log_softmax(-1)
            ids = torch.multinomial(logs.exp(), 1)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            for row, token in enumerate(ids[:, 0].tolist()):
                if going[row]:
                    said[row].append(token)
                    log = SimpleNamespace(logprob=float(logs[row, token]), rank=1)
                    shares[row].append({token: log})
                    going[row] = token not in ends
            if not any(going):
                break
        return [
            SimpleNamespace(
                prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=tokens, logprobs=logs)]
            )
            for prompt, tokens, logs in zip(asked, said, shares, strict=True)
        ]
