"""Turns lessons into batches of token ids, in one process per core; batch n is always the same.

Knows nothing of torch, so that a worker starts in a moment.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.toy_model import lessons
from tools.toy_model.tokenizer import EOT, PAD, POSITIONS, render

PROMPT_WEIGHT = 0.03
"""What a token of the prompt counts in the loss; one of the reply counts 1."""


LAST_PART = 0.45
"""From here on all sizes and all trades are mixed: what a model that goes on is given."""


class Batch(NamedTuple):
    """Conversations of about one length, padded on the right."""

    size: int
    """The key of `lessons.SIZES` they were made for."""
    ids: NDArray[np.int64]
    """(conversations, tokens)"""
    weights: NDArray[np.float32]
    """What each token counts as a target: (conversations, tokens)."""


class Encoder:
    """Encodes lessons one by one as the model will see them: the prompt, then the reply."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.token_to_id(PAD)

    def encode(self, lesson: lessons.Lesson) -> tuple[list[int], list[int]]:
        """Return the ids of what is given and those of what is to be said, with its end."""
        prompt, reply = self.tokenizer.encode_batch(
            [render(lesson.messages) + lesson.given, lesson.reply + EOT], add_special_tokens=False
        )
        return prompt.ids, reply.ids

    def batch(self, seed: int, index: int, size: int, tokens: int) -> Batch:
        """Make batch number `index` of about `tokens` tokens, padding included."""
        rng = Random(f"{seed} {index} {size}")
        pairs: list[tuple[list[int], list[int]]] = []
        while len(pairs) < max(1, tokens // size):
            prompt, reply = self.encode(lessons.lesson(rng, size))
            if len(prompt) + len(reply) <= min(size, POSITIONS):
                pairs.append((prompt, reply))
        width = max(len(prompt) + len(reply) for prompt, reply in pairs)
        ids = np.full((len(pairs), width), self.pad, dtype=np.int64)
        weights = np.zeros((len(pairs), width), dtype=np.float32)
        for row, (prompt, reply) in enumerate(pairs):
            ids[row, : len(prompt) + len(reply)] = prompt + reply
            weights[row, : len(prompt)] = PROMPT_WEIGHT
            weights[row, len(prompt) : len(prompt) + len(reply)] = 1
        return Batch(size, ids, weights)


_ENCODER: list[Encoder] = []


def _start(tokenizer: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _ENCODER[:] = [Encoder(Tokenizer.from_str(tokenizer))]


def _batch(seed: int, index: int, size: int, tokens: int) -> Batch:
    return _ENCODER[0].batch(seed, index, size, tokens)


def plan(steps: int, tokens: int, seed: int, begin: float = 0.0) -> Iterator[tuple[int, int]]:
    """Choose the size of each batch and how many tokens it has.

    It begins with many small batches of short conversations, full of copying, because all three trades need
    that first; the longest conversations come last. `begin` is the share of the plan to leave out.
    """
    rng = Random(f"plan {seed}")
    for step in range(steps):
        done = begin + (1 - begin) * step / steps
        if done < 0.2:
            shares, part = {150: 1.0}, 4
        elif done < LAST_PART:
            shares, part = {150: 0.2, 160: 0.25, 512: 0.4, 1024: 0.15}, 2
        else:
            shares, part = {160: 0.34, 512: 0.3, 1024: 0.15, 2048: 0.12, 4096: 0.09}, 1
        yield rng.choices(list(shares), list(shares.values()))[0], tokens // part


def batches(
    tokenizer: Tokenizer, steps: int, tokens: int, seed: int, workers: int, begin: float = 0.0
) -> Iterator[Batch]:
    """Make the `steps` batches of the plan, of at most `tokens` tokens, ahead of the training."""
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start, initargs=(tokenizer.to_str(),)
    ) as pool:
        ahead: deque[Future[Batch]] = deque()
        for index, (size, most) in enumerate(plan(steps, tokens, seed, begin)):
            ahead.append(pool.submit(_batch, seed, index, size, most))
            if len(ahead) > 8 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
