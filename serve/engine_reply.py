"""One reply on its way: what was asked, which tokens it has, what is still to be told of it.

Knows how a reply grows by a token and when it ends. Knows nothing of the batch and of other replies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.drafting import Drafter
from serve.engine_native import Native
from serve.prefix import Adapters, Resident
from serve.sampling import Sampler, Sampling, top_logprobs
from serve.stops import Text


@dataclass(frozen=True)
class Job:
    """One reply to write."""

    id: int
    prompt: list[int]
    max_tokens: int | None = None
    """None = as many as the context holds."""
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    matcher: Any = None
    """A grammar's state (llguidance.LLMatcher), or None."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report for each token; None = nothing."""
    adapters: Adapters = ()
    urgent: bool = True
    """A person waits for it: its prompt is read first."""
    already: Sequence[int] = ()
    """Tokens of this reply that were written and sent before (by a process that died)."""


@dataclass
class Event:
    """What became of a job in one step."""

    id: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length`, `cancelled`, `refused` (the request's own fault), or `error`."""
    error: str = ""
    timings: dict[str, Any] = field(default_factory=dict)


class Writing:
    """A job on its way: its sequence, its sampler, its text, its times."""

    def __init__(self, job: Job, native: Native) -> None:
        self.job = job
        self._native = native
        self.tokens = [*job.prompt, *job.already]
        self.resident: Resident | None = None
        self.sampler = Sampler(native, job.sampling, job.matcher)
        self.text = Text(job.stops)
        self.drafter = Drafter(self.tokens)
        self.draft: list[int] = []
        self.paused = False
        self.event = Event(job.id)
        self.emitted_at = 0.0
        self.started = 0.0
        self.prompt_done = 0.0
        self.reused = 0
        self.read = 0
        self.drafted = self.draft_taken = 0
        self.by_grammar = False
        """Whether the guesses of this step come from the grammar."""
        self.forced_trust = 0.9
        for token in job.prompt[-job.sampling.repeat_last_n :] if job.sampling.penalises else ():
            self.sampler.accept(token, generated=False)
        for token in job.already:
            self.sampler.accept(token)
            self.text.feed(native.piece(token))

    @property
    def written(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def todo(self) -> int:
        """Tokens that are not yet in memory: 1 while writing, more while reading the prompt."""
        return len(self.tokens) - (self.resident.held if self.resident else 0)

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        left = self._native.n_ctx - len(self.tokens)
        return (
            left if self.job.max_tokens is None else min(left, self.job.max_tokens - self.written)
        )

    def grow(self, row: int) -> bool:
        """Choose the next token by the scores at batch row `row`; False when the reply is done."""
        native, event = self._native, self.event
        token = self.sampler.pick(row)
        if self.job.logprobs is not None:
            event.logprobs.append(top_logprobs(native.logits(row), token, self.job.logprobs))
        self.tokens.append(token)
        event.tokens.append(token)
        self.drafter.push()
        if native.is_end(token):
            event.finish = "stop"
        else:
            event.text += self.text.feed(native.piece(token))
            if self.text.stopped or self.sampler.done:
                event.finish = "stop"
            elif self.left <= 0:
                event.finish = "length"
        if event.finish and (complaint := self.sampler.complaint):
            event.finish, event.error = "refused", f"The grammar can't be kept to: {complaint}"
        return event.finish is None

    def guesses(self, limit: int) -> list[int]:
        """How the reply may go on: by its grammar where that leaves no choice, else by its prompt."""
        if not self.prompt_done:
            return []
        forced = self.sampler.forced(limit) if limit > 0 else []
        self.by_grammar = bool(forced)
        return forced or self.drafter.propose(limit)

    def chances(self, guesses: list[int]) -> list[float]:
        """How likely the first guess is right, the first two, ..."""
        trust = self.forced_trust if self.by_grammar else self.drafter.trust
        return [trust ** (n + 1) for n in range(len(guesses))]

    def learn_forced(self, taken: int) -> None:
        """Note how far guesses by the grammar were right: the model may cut its words otherwise."""
        if self.by_grammar:
            for n in range(min(taken + 1, len(self.draft))):
                self.forced_trust += 0.1 * ((n < taken) - self.forced_trust)

    def timings(self) -> dict[str, Any]:
        """Figures in llama-server's form; times in milliseconds."""
        now = time.perf_counter()
        reading = max(self.prompt_done - self.started, 1e-6) * 1000
        writing = max(now - self.prompt_done, 1e-6) * 1000
        n = self.written - len(self.job.already)
        found: dict[str, Any] = {
            "cache_n": self.reused,
            "prompt_n": self.read,
            "prompt_ms": round(reading, 3),
            "prompt_per_token_ms": round(reading / max(self.read, 1), 3),
            "prompt_per_second": round(self.read / reading * 1000, 3),
            "predicted_n": n,
            "predicted_ms": round(writing, 3),
            "predicted_per_token_ms": round(writing / max(n, 1), 3),
            "predicted_per_second": round(n / writing * 1000, 3),
        }
        if self.drafted:
            found |= {"draft_n": self.drafted, "draft_n_accepted": self.draft_taken}
        return found
