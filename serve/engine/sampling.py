"""How one sequence picks its next token: llama.cpp's own sampler chain, and a grammar that is asked last.

The token is sampled first and the grammar checks that one token; only when it refuses are the scores of
the whole vocabulary masked and sampled again. A grammar before the chain would look at 128,000 tokens
each time. The chain does not see them all either: what it would cut to the `top_k` likeliest is cut down to
a few hundred here, by one comparison, and biases are added here. For a vocabulary of 128,000 that takes a
tenth of a millisecond where llama.cpp's `llama_sampler_sample` takes one.
"""

from __future__ import annotations

import ctypes
import secrets
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from serve.engine.llama import LlamaContext
from serve.workbench.remote import Matcher

WIDEST = 1e4
"""Scores that lie further than this below the best one are no candidates."""
FINITE = 1e30
"""The largest bias that counts: an infinite one would leave nothing to compare."""
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class SamplerParams:
    """What a request asks of its sampler; the defaults are llama.cpp's."""

    temperature: float = 0.8
    """0 = always the likeliest token."""
    top_k: int = 40
    """Keep this many tokens (0 = all)."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens that the penalties look back on (0 = none)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None = another one for each request."""
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes the scores."""
        asked = (self.repeat_penalty - 1.0, self.presence_penalty, self.frequency_penalty)
        return self.repeat_last_n != 0 and any(asked)

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is simply the one with the highest score."""
        return self.temperature <= 0 and not self.has_penalties

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens the chain can choose from (0 = any).

        A penalty may lift a token that was not among them.
        """
        return 0 if self.has_penalties else 1 if self.temperature <= 0 else max(self.top_k, 0)


class Sampler:
    """The state of one sequence: the chain with its random numbers, and the grammar's position."""

    def __init__(
        self, llama: LlamaContext, asked: SamplerParams, matcher: Matcher | None = None
    ) -> None:
        self._llama = llama
        self._matcher = matcher
        self._chain = None if asked.is_greedy else _chain(llama, asked)
        self._cut = asked.num_candidates
        self._gap = 4.0
        """How far below the best score the last candidate was looked for."""
        bias: dict[int, float] = {}
        for token, more in asked.logit_bias:
            bias[token] = max(-FINITE, min(bias.get(token, 0.0) + more, FINITE))
        # a sparse row of scores: which tokens, and how much more for each, both (biased,)
        self._biased = np.fromiter(bias, np.intp, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))

    def sample_token(self, row: int) -> int:
        """Choose and accept the next token by the scores at batch row `row`."""
        # (n_vocab,), a view of llama.cpp's own scores: what is added here is taken back below
        logits = self._llama.row_logits(row)
        own = logits[self._biased]  # (biased,), a copy
        logits[self._biased] = own + self._bias
        if self._matcher is None:
            token = self._choose(logits)
        else:
            token = self._choose_by_grammar(logits, self._matcher)
        logits[self._biased] = own  # what is reported is the model's own
        if self._chain is not None:
            lib.llama_sampler_accept(self._chain, token)
        return token

    def accept_token(self, token: int, *, generated: bool = True) -> None:
        """Take `token` as chosen elsewhere: a prompt token, or one of a reply that is resumed."""
        if generated and self._matcher is not None:
            self._matcher.consume_token(token)
        if self._chain is not None:
            if generated:  # a draw, as when it was chosen: a resumed reply goes on with its seed
                self._apply(np.array([(token, 0.0, 0.0)], CANDIDATE))
            lib.llama_sampler_accept(self._chain, token)

    def grammar_ready(self, seconds: float = 0.0) -> bool:
        """Whether it is known what may follow; waits that long. Only then ask, and sample."""
        return self._matcher is None or self._matcher.is_ready(seconds)

    @property
    def grammar_done(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self._matcher is not None and bool(self._matcher.is_stopped or self._matcher.error)

    @property
    def grammar_error(self) -> str:
        """What is wrong with the grammar, found while it ran; empty when nothing is."""
        return self._matcher.error if self._matcher is not None else ""

    def forced_tokens(self, limit: int) -> list[int]:
        """The tokens that the grammar leaves no choice about, at most `limit`."""
        return [] if self._matcher is None else self._matcher.forced_tokens[:limit]

    def close(self) -> None:
        """Free the chain, and let go of the grammar."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._matcher is not None:
            self._matcher.close()

    def _choose_by_grammar(self, logits: NDArray[np.float32], matcher: Matcher) -> int:
        token = self._choose(logits)
        if not matcher.allows_token(token):
            allowed = matcher.allowed_tokens(len(logits))  # (n_vocab,)
            token = self._choose(np.where(allowed, logits, np.float32(-np.inf)))
        matcher.consume_token(token)
        return token

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._chain is None:
            return int(logits.argmax())
        # (n_vocab,) -> (candidates,): token numbers, then the structs that llama.cpp's chain sorts and cuts
        tokens = self._likeliest(logits) if self._cut else np.arange(len(logits))
        candidates = np.empty(len(tokens), CANDIDATE)
        candidates["id"] = tokens
        candidates["logit"] = logits[tokens]
        return self._apply(candidates)

    def _likeliest(self, logits: NDArray[np.float32]) -> NDArray[np.intp]:
        """Tokens among which the `_cut` likeliest are, in order of their number: (at least `_cut`,)."""
        best = logits.max()
        while self._gap < WIDEST:
            tokens = np.flatnonzero(logits >= best - np.float32(self._gap))
            if len(tokens) >= self._cut:
                if len(tokens) > 16 * self._cut:
                    self._gap *= 0.8
                return tokens
            self._gap *= 1.5
        self._gap = 4.0
        return np.arange(len(logits))

    def _apply(self, candidates: NDArray[Any]) -> int:
        data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
        array = lib.llama_token_data_array(data, len(candidates), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


def top_logprobs(logits: NDArray[np.float32], token: int, n: int) -> list[tuple[int, float]]:
    """(token, natural log of its probability) of the chosen token, then of the `n` likeliest ones.

    Probabilities are the model's own, before temperature and cuts.
    """
    scores = logits.astype(np.float64)  # (n_vocab,)
    total = float(scores.max()) + float(np.log(np.exp(scores - scores.max()).sum()))
    # (n,): the n largest in any order, which costs one pass, and only those are sorted
    best = np.argpartition(scores, -n)[-n:] if n else np.empty(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    return [(int(t), float(scores[t]) - total) for t in (token, *best)]


def _chain(llama: LlamaContext, asked: SamplerParams) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    n_vocab = llama.n_vocab
    parts = []
    if asked.has_penalties:
        parts.append(
            lib.llama_sampler_init_penalties(
                n_vocab,
                asked.repeat_last_n,
                asked.repeat_penalty,
                asked.frequency_penalty,
                asked.presence_penalty,
            )
        )
    if asked.temperature <= 0:
        parts.append(lib.llama_sampler_init_greedy())
    else:
        seed = secrets.randbits(32) if asked.seed is None else asked.seed & 0xFFFFFFFF
        parts += [
            lib.llama_sampler_init_top_k(asked.top_k),
            lib.llama_sampler_init_typical(asked.typical_p, 1),
            lib.llama_sampler_init_top_p(asked.top_p, 1),
            lib.llama_sampler_init_min_p(asked.min_p, 1),
            lib.llama_sampler_init_temp(asked.temperature),
            lib.llama_sampler_init_dist(seed),
        ]
    for part in parts:
        lib.llama_sampler_chain_add(chain, part)
    return chain
