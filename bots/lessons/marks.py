"""What a post about a card is worth, from 0 to 1: the bot's own checks first, then how much it says and how.

A post that the bot would refuse earns at most 0.2, and less the more there is against it. One that it would
take earns the product of what it tells of the card, in words of its own, as sentences, unlike the other
posts: no virtue can be bought with another. Every part is graded, for a mark that all of a group earn alike
teaches nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bots import moderation
from bots.cards.card import Card
from bots.cards.fact_check import card_faults
from bots.cards.prompts import card_messages
from bots.cards.substance import (
    FILLER,
    class_words,
    fact_words,
    split_words,
    stem,
    told_words,
)
from bots.lessons.limits import EVERYWHERE, Limit, length_faults

REFUSED = 0.2
"""The most that a post earns which the bot would refuse."""
UNDRESSED = 0.1
"""The most that a text earns which is no JSON of the schema, however good the post would be."""
WORDS, FACTS, LETTERS = 8, 3, 70
"""Different words, words of the card's facts, and characters beside the name that are enough."""
IN_TEXT = 0.7
"""What a word of the card's text counts beside one of its kind or figures: any sentence may hold it."""
RUN = 4
"""So many words in a row that stand in the prompt, or in the post before, are copied."""
OWN = 0.6
"""Share of words in no such run that is enough."""
GLUE = 0.18
"""Share of little words (is, with, the) in a text that is sentences and no list of words."""
LITTLE = frozenset(
    (
        "a", "an", "the", "is", "are", "was", "has", "have", "be", "it", "its", "it's", "this", "that",
        "and", "or", "but", "with", "of", "for", "in", "on", "at", "to", "by", "from", "as", "you",
        "your", "when", "if", "while", "what", "which", "who", "can", "could", "will", "would", "may",
        "do", "does", "how", "into"
    )
)  # fmt: skip
SHAPE = 4
"""Words from which on two posts about different cards can be said to have one shape."""

Known = Callable[[Iterable[str]], Iterable[str]]
"""Of many phrases in lower case those that are names of cards."""


@dataclass(frozen=True)
class CardTask:
    """One card as a post about it is asked for, and what the post has to keep to."""

    card: Card
    limits: Sequence[Limit] = EVERYWHERE
    earlier: Sequence[str] = ()
    """What the bot posted in the last month."""


@dataclass(frozen=True)
class PostMark:
    """One reply, and what it is worth."""

    post: str
    """The post in it; empty where there is none."""
    mark: float
    faults: tuple[str, ...] = ()
    """Why the bot would refuse it; empty for one that it would take."""


def post_faults(post: str, task: CardTask, known: Known, earlier: Sequence[str]) -> list[str]:
    """Why the bot would refuse `post`: all that the card bot and `SlotContext.find_faults` look at."""
    own = task.card.own_words()
    found = card_faults(post, task.card, known) + moderation.find_faults(post, own_words=own)
    return [*found, *length_faults(post, task.limits)] or moderation.repetition_faults(
        post, earlier
    )


def mark_replies(
    tasks: Sequence[CardTask], replies: Sequence[str], known: Known = lambda names: ()
) -> list[PostMark]:
    """Mark one reply for each task; replies to one card are a group, and all are one another's company."""
    earlier = list(dict.fromkeys(text for task in tasks for text in task.earlier))
    month = [_pieces(moderation.normalise_text(text)) for text in earlier]
    found = [read_reply(reply) for reply in replies]
    own = [_pieces(_beside(post, task.card)) for (post, _), task in zip(found, tasks, strict=True)]
    whole = [_pieces(moderation.normalise_text(post)) for post, _ in found]
    shapes = [_shape(post, task.card) for (post, _), task in zip(found, tasks, strict=True)]
    marks = []
    for at, (task, (post, dress)) in enumerate(zip(tasks, found, strict=True)):
        if not post:
            marks.append(PostMark("", 0.0, ("The answer has no post in it.",)))
            continue
        others = [other for other in range(len(tasks)) if other != at]
        group = [own[other] for other in others if tasks[other].card == task.card]
        rest = [other for other in others if tasks[other].card != task.card]
        alike = max((_overlap(own[at], pieces) for pieces in [*group, *month]), default=0.0)
        stale = max((_overlap(whole[at], whole[other]) for other in rest), default=0.0)
        shape = max((_overlap(shapes[at], shapes[other]) for other in rest), default=0.0)
        faults = post_faults(post, task, known, earlier)
        worth = said_enough(post, task.card) * in_own_words(post, task.card)
        worth *= 1 - 0.85 * max(_ramp(alike, 0.5, 0.85), _ramp(stale, 0.75, 0.95))
        worth *= 1 - 0.6 * _ramp(shape, 0.6, 0.95)
        worth *= REFUSED / len(faults) if faults else 1.0
        undressed = ["The answer is not JSON of the schema."] if dress < 1 else []
        marks.append(PostMark(post, round(worth * dress, 4), (*undressed, *faults)))
    return marks


def read_reply(reply: str) -> tuple[str, float]:
    """The post in a reply, and how much of its worth the form leaves it.

    >>> read_reply('{"post": "Moss Golem wakes."}'), read_reply('{"post": "Moss", "by": "me"}')
    (('Moss Golem wakes.', 1.0), ('Moss', 0.2))
    >>> read_reply('Sure! {"post": "Moss Golem'), read_reply("Moss Golem wakes."), read_reply("[1]")
    (('Moss Golem', 0.1), ('Moss Golem wakes.', 0.1), ('', 0.0))
    """
    try:
        told = json.loads(reply)
    except (ValueError, RecursionError):
        begun = re.search(r'"post"\s*:\s*"((?:[^"\\]|\\.)*)', reply)
        post = " ".join((begun[1] if begun else reply).split())
        return post, UNDRESSED if post else 0.0
    said = told.get("post") if isinstance(told, dict) else None
    if not isinstance(said, str) or not said.strip():
        return "", 0.0
    return " ".join(said.split()), 1.0 if len(told) == 1 else REFUSED


def said_enough(post: str, card: Card) -> float:
    """From 0 for the name alone to 1 for a few facts in a sentence or two.

    >>> golem = Card(1, "Moss Golem", "Normal Monster", race="Rock", attribute="EARTH", attack=900)
    >>> said_enough("Moss Golem!", golem)
    0.0
    >>> said_enough("Moss Golem is a Rock of EARTH with 900 ATK that guards a quiet orchard and never "
    ...             "sleeps while the rain falls.", golem)
    1.0
    """
    told, beside = told_words(post, card), _beside(post, card)
    classes = class_words(card) & set(told)
    facts = len(classes) + IN_TEXT * len(fact_words(card) & set(told) - classes)
    return (
        min(1.0, len(told) / WORDS)
        * min(1.0, len(beside) / LETTERS)
        * (0.05 + 0.95 * math.pow(min(1.0, facts / FACTS), 1.5))
        * _as_sentences(post, card, beside.split())
    )


def _as_sentences(post: str, card: Card, words: Sequence[str]) -> float:
    """Less for a heap of words: no little words among them, no end, not a word that the prompt has not."""
    glue = sum(word in LITTLE for word in words) / len(words) if words else 0.0
    given = {stem(word) for word in split_words(card.own_words())} | LITTLE
    fresh = len({stem(word) for word in words if len(word) > 1} - given)
    return (
        (0.15 + 0.85 * min(1.0, glue / GLUE))
        * (1.0 if re.search(r"[.!?…][\"'”’)]*\s*$", post) else 0.5)
        * (0.4 + 0.3 * min(2, fresh))
    )


def in_own_words(post: str, card: Card) -> float:
    """From 0.1 for words copied from the prompt, or said twice, to 1 for words of its own.

    >>> card = Card(2, "Heron", "Effect Monster", text="You can look at the top card of your Deck.")
    >>> in_own_words("Heron: You can look at the top card of your Deck.", card)
    0.1
    >>> in_own_words("Heron peeks at what you would draw next, and leaves it there.", card)
    1.0
    """
    words, given = _beside(post, card).split(), _given(card)
    copied, seen = set[int](), set[tuple[str, ...]]()
    for at in range(len(words) - RUN + 1):
        run = tuple(words[at : at + RUN])
        if run in given or run in seen:
            copied.update(range(at, at + RUN))
        seen.add(run)
    fresh = 1 - len(copied) / len(words) if words else 0.0
    return 0.1 + 0.9 * _ramp(fresh, 0.25, OWN)


@lru_cache(maxsize=4096)
def _given(card: Card) -> frozenset[tuple[str, ...]]:
    """The runs of words of the prompt."""
    said = split_words(card_messages(card.to_facts())[1]["content"])
    words = split_words(card.text)
    return frozenset(
        tuple(one[at : at + RUN]) for one in (said, words) for at in range(len(one) - RUN + 1)
    )


def _beside(post: str, card: Card) -> str:
    """The words of a post beside the card's name, in lower case."""
    return " ".join(split_words(re.sub(re.escape(card.name), " ", post, flags=re.IGNORECASE)))


def _shape(post: str, card: Card) -> frozenset[str]:
    """What is left of a post without all that is of its card: posts of one mould have the same."""
    facts = fact_words(card) - FILLER
    words = [word for word in _beside(post, card).split() if not word[0].isdigit()]
    kept = [word for word in words if stem(word) not in facts]
    return _pieces(" ".join(kept)) if len(kept) >= SHAPE else frozenset()


def _pieces(text: str) -> frozenset[str]:
    return frozenset(text[at : at + 3] for at in range(len(text) - 2))


def _overlap(mine: frozenset[str], theirs: frozenset[str]) -> float:
    """The share of three-letter pieces that two texts have in common."""
    either = len(mine) + len(theirs)
    common = len(mine & theirs)
    return common / (either - common) if common else 0.0


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, even between.

    >>> _ramp(0.5, 0.5, 0.9), round(_ramp(0.7, 0.5, 0.9), 3), _ramp(1, 0.5, 0.9)
    (0.0, 0.5, 1.0)
    """
    return min(1.0, max(0.0, (value - low) / (high - low)))
