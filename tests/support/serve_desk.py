"""An engine in this process for the tests of `serve.engine`, and what it said of each request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve.engine.llama import LlamaContext
from serve.engine.sampling import SamplerParams
from serve.engine.scheduler import Scheduler
from serve.engine.sequence import Output, Request
from serve.workbench.grammar import GrammarCompiler

GREEDY = SamplerParams(temperature=0)
TEXT = "the hat in on an the he in the hat on the tin; "


class Desk:
    """An engine, and what it said of each request."""

    def __init__(self, path: Path, *, ctx: int = 1024, sequences: int = 12, **options: Any) -> None:
        adapters = options.pop("adapters", ())
        self.native = LlamaContext(
            path,
            ctx=ctx,
            batch=512,
            sequences=sequences,
            threads=1,
            flash_attn=False,  # see test_flash_attention_rounds_otherwise_...
            adapters=adapters,
        )
        self.path = path
        self.said: dict[int, Output] = {}
        self.order: list[int] = []
        self.engine = Scheduler(self.native, self._take, **options)
        self.grammars = GrammarCompiler(self.native)
        self._next = 0

    def _take(self, events: list[Output]) -> None:
        for event in events:
            so_far = self.said.setdefault(event.id, Output(event.id))
            so_far.tokens += event.tokens
            so_far.text += event.text
            so_far.logprobs += event.logprobs
            so_far.timings = event.timings or so_far.timings
            so_far.error = event.error or so_far.error
            if event.finish:
                assert so_far.finish is None, "a job ends once"
                so_far.finish = event.finish
                self.order.append(event.id)

    def tokens(self, text: str) -> list[int]:
        return self.native.tokenize(text, special=True, add_special=True)

    def submit(self, prompt: str | list[int], **asked: Any) -> int:
        self._next += 1
        tokens = self.tokens(prompt) if isinstance(prompt, str) else prompt
        whole: dict[str, Any] = {"max_tokens": 24, "sampling": GREEDY, **asked}
        self.engine.add_request(Request(self._next, tokens, **whole))
        return self._next

    def run(self, steps: int = 100_000) -> None:
        while steps and self.engine.run_step():
            steps -= 1

    def ask(self, prompt: str | list[int], **asked: Any) -> Output:
        job = self.submit(prompt, **asked)
        self.run()
        return self.said[job]


def no_end(desk: Desk) -> SamplerParams:
    """Greedy, and the reply never ends by itself."""
    return SamplerParams(temperature=0, logit_bias=((desk.tokens("<|eot_id|>")[-1], -1e9),))
