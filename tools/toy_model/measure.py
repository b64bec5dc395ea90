"""Measures the toy model on held-out lessons, greedily and sampled: for its card and its tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from bots.cards.prompts import card_messages
from rig.model.chat_template import Message
from rig.model.reply_format import TAUGHT
from tools.toy_model import fake_cards, lessons
from train.data.arithmetic import Problem, make_problems
from train.eval.models import LocalModel, SamplingParams

TOKENS_AT_ONCE = 32_768
"""Tokens of the batch that texts are summarised in."""


class Toy:
    """The model in a folder, in float32, asked many things at once."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        from tools.toy_model import model

        self.model = model.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(self, text: str) -> int:
        """Length of `text` in tokens."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def say(
        self,
        prompts: Sequence[list[Message]],
        most: int = 64,
        *,
        temperature: float = 0.0,
        batch: int = 64,
    ) -> list[str]:
        """One reply of at most `most` tokens to each conversation; temperature 0 is greedy."""
        answering = LocalModel(self.model, self.tokenizer, batch)
        return [
            one.text
            for one in answering.generate_completions(prompts, SamplingParams(most, temperature))
        ]


class Sums(NamedTuple):
    """What came of word problems under the taught system prompt, as shares of all replies."""

    accuracy: float
    format: float
    """Replies in the taught form."""
    right_when_reasoned: float
    """Right answers among the replies in the taught form."""
    numbers: float
    """Answers that are a number at all."""


def sums(toy: Toy, count: int = 200, *, each: int = 1, temperature: float = 0.0) -> Sums:
    """Put `count` held-out problems, `each` of them that many times."""
    asked: list[Problem] = list(islice(make_problems("held-out", seed=1), count)) * each
    said = toy.say([question(one) for one in asked], temperature=temperature)
    answers = [TAUGHT.split_reply(text).answer for text in said]
    right = [answer == one.answer for answer, one in zip(answers, asked, strict=True)]
    formed = [TAUGHT.matches_text(text) for text in said]
    both = sum(r and f for r, f in zip(right, formed, strict=True))
    return Sums(
        sum(right) / len(asked),
        sum(formed) / len(asked),
        both / max(1, sum(formed)),
        sum(answer.isdigit() for answer in answers) / len(asked),
    )


def question(one: Problem) -> list[Message]:
    """A word problem as `rig train` and `rig eval` put it."""
    return [lessons.system(TAUGHT.system_prompt), lessons.user(one.question)]


def good_posts(toy: Toy, count: int = 200) -> float:
    """Share of greedy posts about invented cards, in no lesson, that name the card and invent no figure."""
    rng = Random("held-out cards 1")
    facts = [fake_cards.card_facts(rng) for _ in range(count)]
    said = toy.say([card_messages(one) for one in facts], most=160, batch=32)
    return sum(fake_cards.is_good(text, one) for text, one in zip(said, facts, strict=True)) / count


LENGTHS = {512: 6, 1024: 20, 2048: 60, 4096: 130}
"""Length of a conversation in tokens, and of how many sentences its text is made."""


class Summaries(NamedTuple):
    """What came of summaries of invented texts, as shares."""

    exact: float
    """Replies that are the leading sentences, to the letter and to the number."""
    copied: float
    """How much of the shorter of reply and leading sentences comes before the first difference, on average.

    A sentence too many or too few does not count here; the first wrong letter does.
    """


def summaries(toy: Toy, size: int, count: int = 40) -> Summaries:
    """Have `count` texts summarised; conversations are `size` tokens at most, and half of that at least."""
    rng = Random(f"held-out texts 1 {size}")
    made: list[lessons.Lesson] = []
    while len(made) < count:
        one = lessons.leading(rng, LENGTHS[size])
        length = sum(toy.tokens(message["content"]) for message in one.messages)
        if size // 2 < length + toy.tokens(one.reply) <= size - 16:
            made.append(one)
    longest = max(toy.tokens(one.reply) for one in made)
    said = toy.say(
        [one.messages for one in made], most=longest + 1, batch=max(1, TOKENS_AT_ONCE // size)
    )
    pairs = [(text, one.reply) for text, one in zip(said, made, strict=True)]
    shares = [_alike(a, b) / max(1, min(len(a), len(b))) for a, b in pairs]
    return Summaries(sum(a == b for a, b in pairs) / count, sum(shares) / count)


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common before they differ or one ends."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def measure(folder: Path) -> dict[str, float]:
    """All figures, by the words that the card has for them."""
    toy = Toy(folder)
    greedy, sampled = sums(toy), sums(toy, each=4, temperature=1.0)
    return {
        "word problems, greedy: right": greedy.accuracy,
        "word problems, greedy: reasoned through": greedy.format,
        "word problems, greedy: a number is the answer": greedy.numbers,
        "word problems, sampled: right": sampled.accuracy,
        "word problems, sampled: reasoned through": sampled.format,
        "word problems, sampled: right among those": sampled.right_when_reasoned,
        "posts: name the card, and have no figure that is no fact": good_posts(toy),
    } | _summaries(toy)


def _summaries(toy: Toy) -> dict[str, float]:
    out = {}
    for size in LENGTHS:
        found = summaries(toy, size)
        out[f"summaries, {size // 2} to {size} tokens: exactly the leading sentences"] = found.exact
        out[f"summaries, {size // 2} to {size} tokens: copied before the first slip"] = found.copied
    return out
