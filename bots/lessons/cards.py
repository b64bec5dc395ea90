"""The lessons of the card bot: every card of its pool, with the prompt that the bot would ask about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bots.cards.bot import CardOptions
from bots.cards.card import Card
from bots.cards.database import CardDatabase
from bots.cards.prompts import card_messages
from bots.ledger.decisions import DecidedPost
from bots.lessons.attacks import dress_post
from bots.lessons.examples import worked_post
from bots.lessons.file import Lesson
from bots.lessons.marks import CardTask, post_faults
from bots.lessons.notes import LessonNotes
from bots.lessons.private import PrivateWords

EARLIER = 8
"""Posts of the last month in one row: each row has others, so that a step's rows hold them all in turn."""


def card_lessons(
    bot: str,
    options: CardOptions,
    database: CardDatabase,
    limits: Sequence[Mapping[str, Any]],
    *,
    decided: Iterable[DecidedPost],
    month: Sequence[tuple[str, str]],
    private: PrivateWords,
    notes: LessonNotes,
) -> Iterator[Lesson]:
    """A row for each card of the pool, in the order of their numbers.

    `decided`: what a person said of posts. `month`: what the bot posted in the last month, each text with the
    words of its card. What is left out is counted in `notes`.
    """
    if options.card:
        numbers = [str(database.card_by_name(options.card).id)]
    else:
        numbers = database.pool_ids(options.pool)
    by_card: dict[str, list[DecidedPost]] = {}
    for one in decided:
        by_card.setdefault(one.subject, []).append(one)
    open_posts = [text for text, own in month if private.find_private(text, own) is None]
    notes.add("posts of the last month with something private", len(month) - len(open_posts))
    asked = {
        "attempts": options.attempts,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
    }
    for at, number in enumerate(numbers):
        card = database.card_by_id(number)
        posts = _posts(card, by_card.get(number, ()), private, notes)
        earlier = [
            text
            for text in _rotated(open_posts, at * EARLIER, EARLIER)
            if card.name.lower() not in text.lower()
        ]
        facts = card.to_facts()
        prompt = card_messages(facts)
        reply, author = _reply(card, posts, limits, database)
        yield {
            "kind": "card",
            "bot": bot,
            "subject": card.name,
            "card": number,
            "prompt": prompt,
            "facts": facts,
            "limits": list(limits),
            "asked": asked,
            "earlier": earlier,
            "posts": posts,
            "messages": [*prompt, {"role": "assistant", "content": dress_post(reply)}],
            "written_by": author,
        }


def _posts(
    card: Card, decided: Iterable[DecidedPost], private: PrivateWords, notes: LessonNotes
) -> list[dict[str, Any]]:
    found = []
    for one in decided:
        public = card.own_words()
        if any(private.find_private(text, public) for text in (one.text, one.wanted)):
            notes.add("decided posts with something private")
            continue
        notes.add(f"{one.verdict} posts", kept=True)
        found.append(
            {
                "text": one.text,
                "author": one.author,
                "verdict": one.verdict,
                "wanted": one.wanted,
                "reason": private.remove_private(one.reason),
                "at": one.at.isoformat(timespec="seconds"),
            }
        )
    return found


def _reply(
    card: Card,
    posts: Sequence[Mapping[str, Any]],
    limits: Sequence[Mapping[str, Any]],
    database: CardDatabase,
) -> tuple[str, str]:
    """The reply worth copying: what a person wanted last, else a worked example."""
    if wanted := [post["wanted"] for post in posts if post["wanted"]]:
        return wanted[-1], "person"
    task = CardTask(card, limits)
    return worked_post(card, lambda post: post_faults(post, task, database.known_names, []))


def _rotated(texts: Sequence[str], start: int, count: int) -> list[str]:
    """`count` of them from `start` on, round and round.

    >>> _rotated("abc", 4, 2), _rotated("abc", 0, 9)
    (['b', 'c'], ['a', 'b', 'c'])
    """
    size = len(texts)
    return [texts[(start + at) % size] for at in range(min(count, size))]
