"""Many prompts to one model, whole texts back: a PyTorch model in batches, or any OpenAI-compatible server.

Greedy unless a temperature is given, so that two labels differ by their weights alone. Texts come back raw,
tags and all: what they are worth is `train.eval.scoring`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from rig.model.chat_template import Message
from rig.server.client import ContextOverflow, ModelClient, RequestRefused, ServerBusy

Prompt = list[Message]
Progress = Callable[[int], None]
"""Called with how many more answers are done."""

PATIENCE = 120.0
"""Seconds to go on asking a server that says it is busy."""


class CompletionOutput(NamedTuple):
    """What a model said to one prompt."""

    text: str
    tokens: int
    """Tokens generated, the end token included; 0 where a server does not say."""
    finished: bool
    """Whether it came to an end by itself, and was not cut off."""


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn; saved with every result."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    seed: int = 3407

    def to_record(self) -> dict[str, Any]:
        """For run.json and --json."""
        return {"greedy": self.temperature == 0, **asdict(self)}


class EvalModel(Protocol):
    """A model that can be asked."""

    def generate_completions(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, progress: Progress | None = None
    ) -> list[CompletionOutput]:
        """Return one answer per prompt, in their order."""


class LocalModel:
    """A PyTorch model and its tokenizer; the longest prompts go first, `batch` at a time."""

    def __init__(self, model: Any, tokenizer: Any, batch: int = 16) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch

    def generate_completions(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, progress: Progress | None = None
    ) -> list[CompletionOutput]:
        """Return one answer per prompt, in their order; a GPU that is too small gets smaller batches."""
        import torch

        texts = [
            self.tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
            for p in prompts
        ]
        # The template has written the start token already; a second one would be another prompt.
        tokens = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        waiting = sorted(range(len(prompts)), key=lambda at: -len(tokens[at]))
        said: dict[int, CompletionOutput] = {}
        torch.manual_seed(sampling.seed)
        while waiting:
            batch = waiting[: self.batch]
            try:
                found = self._generate([tokens[at] for at in batch], sampling)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch = max(1, self.batch // 2)
                torch.cuda.empty_cache()
                continue
            said.update(zip(batch, found, strict=True))
            del waiting[: len(batch)]
            if progress:
                progress(len(batch))
        return [said[at] for at in range(len(prompts))]

    def _generate(
        self, tokens: list[list[int]], sampling: SamplingParams
    ) -> list[CompletionOutput]:
        import torch
        from transformers import GenerationConfig

        from train.model import generate

        own = self.model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if sampling.temperature > 0 else {}),
        )
        width = max(map(len, tokens))
        pad = self.tokenizer.pad_token_id
        # (batch, width), padded on the left, so that all completions begin in one column
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in tokens])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        with torch.inference_mode():
            if generate.can_generate(self.model, config):
                whole = generate.generate(self.model, ids, mask, config)
            else:
                whole = self.model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=config
                )
        stops = {ends} if isinstance(ends, int) else set(ends or ())
        return [self._said(row, stops) for row in whole[:, width:].tolist()]

    def _said(self, ids: list[int], stops: set[int]) -> CompletionOutput:
        end = next((at for at, token in enumerate(ids) if token in stops), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return CompletionOutput(text, len(kept) + (end is not None), end is not None)


class ServedModel:
    """A server at the end of `client`, asked `parallel` questions at a time.

    `name` is the model to ask for, where a server holds several; else the first that it lists.
    """

    def __init__(self, client: ModelClient, parallel: int = 4, name: str | None = None) -> None:
        self.client = client
        self.parallel = parallel
        self.name = name or client.model or "default"
        self._raw = True

    def generate_completions(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, progress: Progress | None = None
    ) -> list[CompletionOutput]:
        """Return one answer per prompt, in their order; a busy server is asked again."""

        def one(at: int) -> CompletionOutput:
            said = self._one(prompts[at], sampling, sampling.seed + at)
            if progress:
                progress(1)
            return said

        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(one, range(len(prompts))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> CompletionOutput:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.client.chat(
                    prompt,
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=seed,
                    raw=self._raw,
                    model=self.name,
                )
            except ServerBusy as busy:
                if time.monotonic() + busy.retry_after > deadline:
                    raise
                time.sleep(busy.retry_after)
                continue
            except RequestRefused as refused:
                if not self._raw or "reasoning_format" not in str(refused):
                    raise
                self._raw = False  # a server that takes no field it does not know
                continue
            except ContextOverflow:
                return CompletionOutput(
                    "", 0, False
                )  # a prompt that the server's context can't hold is a miss
            return CompletionOutput(answer.text, answer.completion_tokens, answer.finish == "stop")
