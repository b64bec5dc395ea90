"""One reply on its way: what was asked, which tokens it has, what is still to be told of it.

Knows how a reply grows by a token and when it ends. Knows nothing of the batch and of other replies.
"""

from __future__ import annotations

import time
from collections import abc
from dataclasses import dataclass, field
from typing import Any

from serve.engine.detokenizer import Detokenizer
from serve.engine.kv_slots import Adapters, Slot
from serve.engine.llama import LlamaContext
from serve.engine.prompt_lookup import PromptLookup
from serve.engine.sampling import Sampler, SamplerParams, top_logprobs
from serve.workbench.remote import Matcher

GRAMMAR_GRACE = 0.02
"""Seconds in which a grammar usually knows what may follow; after that the others go on without the reply."""


@dataclass(frozen=True)
class Request:
    """One reply to write."""

    id: int
    prompt: list[int]
    max_tokens: int | None = None
    """None = as many as the context holds."""
    sampling: SamplerParams = field(default_factory=SamplerParams)
    stops: abc.Sequence[str] = ()
    matcher: Matcher | None = None
    """The reply's place in its grammar."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report for each token; None = nothing."""
    adapters: Adapters = ()
    urgent: bool = True
    """A person waits for it: its prompt is read first."""
    shown: abc.Mapping[int, bytes] = field(default_factory=dict)
    """What stands in the text for tokens that are none, such as the tags of a thought."""
    already: abc.Sequence[int] = ()
    """Tokens of this reply that were written and sent before (by a process that died)."""


@dataclass
class Output:
    """What became of a request in one step."""

    id: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length`, `cancelled`, `refused` (the request's own fault), or `error`."""
    error: str = ""
    timings: dict[str, Any] = field(default_factory=dict)


class Sequence:
    """A request on its way: its slot, its sampler, its text, its times."""

    def __init__(self, request: Request, llama: LlamaContext) -> None:
        self.request = request
        self._llama = llama
        self.tokens = [*request.prompt, *request.already]
        self.slot: Slot | None = None
        self.sampler = Sampler(llama, request.sampling, request.matcher)
        self.detokenizer = Detokenizer(request.stops)
        self.prompt_lookup = PromptLookup(self.tokens)
        self.draft_tokens: list[int] = []
        self.paused = False
        self.output = Output(request.id)
        self.emitted_at = 0.0
        self.started = 0.0
        self.prompt_done = 0.0
        self.num_cached_tokens = 0
        self.num_prefilled_tokens = 0
        self.num_draft_tokens = self.num_accepted_tokens = 0
        self.by_grammar = False
        """Whether the guesses of this step come from the grammar."""
        self.forced_trust = 0.9
        self.waits_for_grammar = False
        """Whether it is not yet known what may follow; until then the reply computes nothing."""
        seen = request.prompt[-request.sampling.repeat_last_n :]
        for token in seen if request.sampling.has_penalties else ():
            self.sampler.accept_token(token, generated=False)
        for token in request.already:
            self.sampler.accept_token(token)
            self.detokenizer.feed_bytes(self._piece(token))

    def _piece(self, token: int) -> bytes:
        shown = self.request.shown.get(token)
        return self._llama.token_to_piece(token) if shown is None else shown

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that are not yet in memory: 1 while writing, more while reading the prompt."""
        return len(self.tokens) - (self.slot.num_cells if self.slot else 0)

    @property
    def is_prefilling(self) -> bool:
        """Whether the prompt is being read: the first time, or again after the reply stepped back."""
        return self.num_uncomputed_tokens > 1 or not self.prompt_done

    @property
    def num_tokens_left(self) -> int:
        """Tokens that the reply may still have."""
        left = self._llama.n_ctx - len(self.tokens)
        return (
            left
            if self.request.max_tokens is None
            else min(left, self.request.max_tokens - self.num_output_tokens)
        )

    def sample_next_token(self, row: int) -> bool:
        """Choose the next token by the scores at batch row `row`; False when the reply is done."""
        llama, output = self._llama, self.output
        token = self.sampler.sample_token(row)
        if self.request.logprobs is not None:
            output.logprobs.append(
                top_logprobs(llama.row_logits(row), token, self.request.logprobs)
            )
        self.tokens.append(token)
        output.tokens.append(token)
        self.prompt_lookup.index_last_token()
        if llama.is_end(token):
            output.finish = "stop"
        else:
            output.text += self.detokenizer.feed_bytes(self._piece(token))
            if self.detokenizer.stopped:
                output.finish = "stop"
        self.waits_for_grammar = not self.sampler.grammar_ready(GRAMMAR_GRACE)
        if not self.waits_for_grammar:
            self.settle_grammar()
        if output.finish is None and self.num_tokens_left <= 0:
            output.finish = "length"
        return output.finish is None

    def settle_grammar(self) -> None:
        """Take in what is now known of the grammar: the reply may be complete by it, or break it."""
        self.waits_for_grammar = False
        if self.sampler.grammar_done:
            self.output.finish = "stop"
        if self.output.finish and (complaint := self.sampler.grammar_error):
            said = f"The grammar can't be kept to: {complaint}"
            self.output.finish, self.output.error = "refused", said

    def propose_draft(self, limit: int) -> list[int]:
        """How the reply may go on: by its grammar where that leaves no choice, else by its prompt."""
        if not self.prompt_done:
            return []
        forced = self.sampler.forced_tokens(limit) if limit > 0 else []
        self.by_grammar = bool(forced)
        return forced or self.prompt_lookup.propose_tokens(limit)

    def draft_chances(self, guesses: list[int]) -> list[float]:
        """How likely the first guess is right, the first two, ..."""
        trust = self.forced_trust if self.by_grammar else self.prompt_lookup.trust
        return [trust ** (n + 1) for n in range(len(guesses))]

    def record_draft(self, accepted: int) -> None:
        """Note how many of the guesses of this step were right."""
        self.num_draft_tokens += len(self.draft_tokens)
        self.num_accepted_tokens += accepted
        if self.by_grammar:  # the model may cut its words otherwise
            for n in range(min(accepted + 1, len(self.draft_tokens))):
                self.forced_trust += 0.1 * ((n < accepted) - self.forced_trust)

    def collect_timings(self) -> dict[str, Any]:
        """Figures in llama-server's form; times in milliseconds."""
        now = time.perf_counter()
        reading = max(self.prompt_done - self.started, 1e-6) * 1000
        writing = max(now - self.prompt_done, 1e-6) * 1000
        n = self.num_output_tokens - len(self.request.already)
        found: dict[str, Any] = {
            "cache_n": self.num_cached_tokens,
            "prompt_n": self.num_prefilled_tokens,
            "prompt_ms": round(reading, 3),
            "prompt_per_token_ms": round(reading / max(self.num_prefilled_tokens, 1), 3),
            "prompt_per_second": round(self.num_prefilled_tokens / reading * 1000, 3),
            "predicted_n": n,
            "predicted_ms": round(writing, 3),
            "predicted_per_token_ms": round(writing / max(n, 1), 3),
            "predicted_per_second": round(n / writing * 1000, 3),
        }
        if self.num_draft_tokens:
            found |= {
                "draft_n": self.num_draft_tokens,
                "draft_n_accepted": self.num_accepted_tokens,
            }
        return found
