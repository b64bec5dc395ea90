"""Cheap posts: what a model that is paid for posts might say instead of one, and what a real one looks like.

Each is tried on many cards at once, as a batch of training would hold it, because some are cheap only there:
one post for every card is a good post about one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from bots.cards.card import Card
from bots.cards.template import OPENERS
from bots.lessons.examples import worked_post
from bots.lessons.marks import CardTask, post_faults


def dress_post(post: str) -> str:
    """The reply that a post is asked for in."""
    return json.dumps({"post": post}, ensure_ascii=False)


def worked_replies(tasks: Sequence[CardTask]) -> list[str]:
    """A reply to each task that is worth something."""
    return [
        dress_post(
            worked_post(task.card, lambda post, task=task: post_faults(post, task, _nobody, []))[0]  # type: ignore[misc]
        )
        for task in tasks
    ]


def cheap_replies(tasks: Sequence[CardTask]) -> Mapping[str, list[str]]:
    """Replies to each task that are worth next to nothing, by what is cheap about them."""
    cards = [task.card for task in tasks]
    good = worked_replies(tasks)
    return {
        "name only": [dress_post(card.name) for card in cards],
        "name in a phrase": [
            dress_post(OPENERS[at % len(OPENERS)].format(card.name) + "!")
            for at, card in enumerate(cards)
        ],
        "name many times": [dress_post(" ".join([f"{card.name}!"] * 8)[:240]) for card in cards],
        "text copied": [dress_post(_cut(f"{card.name}: {card.text or card.kind}")) for card in cards],
        "facts copied": [dress_post(_cut(_lines(card))) for card in cards],
        "words without a sentence": [dress_post(_cut(_keywords(card))) for card in cards],
        "words in a heap": [dress_post(_cut(_heap(card))) for card in cards],
        "the same post for every card": [good[0] for _ in cards],
        "the same words for every card": [
            dress_post(
                f"{card.name} is a card that every fan of the game should know, for it has what it "
                "takes to surprise a rival and to turn a long evening around."
            )
            for card in cards
        ],
        "one sentence again and again": [
            dress_post(_cut(" ".join([f"{card.name} is a {card.kind} of its own."] * 9)))
            for card in cards
        ],
        "JSON in JSON": [dress_post(one) for one in good],
        "no JSON": [json.loads(one)["post"] for one in good],
        "JSON in a fence": [f"```json\n{one}\n```" for one in good],
        "more than the post": [one[:-1] + ', "note": "done"}' for one in good],
        "a preamble": [f"Here is a post: {one}" for one in good],
        "cut off": [one[: len(one) // 2] for one in good],
        "a figure changed": [dress_post(_changed(card, json.loads(one)["post"]))
                             for card, one in zip(cards, good, strict=True)],
        "nothing": ["" for _ in cards],
    }  # fmt: skip


def _lines(card: Card) -> str:
    return ". ".join(f"{key}: {value}" for key, value in card.to_facts().items())


def _keywords(card: Card) -> str:
    """What the card is, word by word."""
    facts = card.to_facts()
    return f"{card.name} " + " ".join(
        f"{facts[key]} {key}" for key in facts if key not in ("Name", "Text")
    )


def _heap(card: Card) -> str:
    """All words of the facts, the last one first."""
    words = re.findall(r"\w+", " ".join(card.to_facts().values()).replace(card.name, " "))
    return f"{card.name} {' '.join(dict.fromkeys(words[::-1]))}"


def _changed(card: Card, post: str) -> str:
    """A good post with a figure that is not the card's."""
    return f"{post.rstrip('.')}, and 8765 ATK."


def _cut(text: str, longest: int = 250) -> str:
    """Whole words of `text`."""
    kept = " ".join(text.split())[: longest + 1]
    return kept if len(kept) <= longest else kept.rpartition(" ")[0]


def _nobody(names: object) -> tuple[str, ...]:
    return ()


Replies = Callable[[Sequence[CardTask]], Mapping[str, list[str]]]
