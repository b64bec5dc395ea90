"""The bots' own checks as rewards for training, found through the entry point `rig.rewards`.

They are called as every reward of the room `train` is: lists of completions and of data columns, one mark or
None (another kind of lesson) each. The columns are those of `rig bot lessons`; nothing else crosses.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rig.model.reply_format import TAUGHT, ReplyFormat

Marks = list[float | None]
Column = Sequence[Any] | None


def card_post(
    completions: Sequence[Any],
    facts: Column = None,
    limits: Column = None,
    earlier: Column = None,
    *,
    reply_format: ReplyFormat = TAUGHT,
    **_: Any,
) -> Marks:
    """From 0 to 1: a post about a card that the bot would take, that says enough, in words of its own.

    >>> golem = {"Name": "Moss Golem", "Card": "Normal Monster", "Type": "Rock", "ATK": "900", "DEF": "2100"}
    >>> post = "Moss Golem, a Rock Normal Monster, guards its orchard with 900 ATK and hides behind 2100 DEF."
    >>> card_post(['{"post": "%s"}' % post, '{"post": "Moss Golem"}', "A Rock."], [golem] * 3)
    [1.0, 0.0, 0.0]
    """
    from bots.cards.card import Card
    from bots.lessons.marks import CardTask, mark_replies

    count = len(completions)
    rows = zip(_cells(facts, count), _cells(limits, count), _cells(earlier, count), strict=True)
    tasks: dict[int, Any] = {}
    for at, (about, most, said) in enumerate(rows):
        if about:
            kept = {"limits": tuple(most)} if most else {}
            tasks[at] = CardTask(Card.from_facts(about), earlier=tuple(said or ()), **kept)
    replies = [reply_format.split_reply(_text(completions[at])).answer for at in tasks]
    with _card_names() as known:
        marks = mark_replies(list(tasks.values()), replies, known)
    found: Marks = [None] * count
    for at, mark in zip(tasks, marks, strict=True):
        found[at] = mark.mark
    return found


def _cells(column: Column, count: int) -> list[Any]:
    """The cells of a column, as they were before a table made text of them."""
    cells = [None] * count if column is None else list(column)
    return [json.loads(cell) if isinstance(cell, str) and cell else cell for cell in cells]


def _text(completion: Any) -> str:
    """What the model said: plain text, or the last message of a conversation."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


@contextmanager
def _card_names() -> Iterator[Callable[[Iterable[str]], Iterable[str]]]:
    """What tells the names of other cards, on a machine that has a copy of them; else nobody."""
    from bots.cards.database import CardDatabase, database_path

    if not database_path().is_file():
        yield lambda phrases: ()
        return
    with CardDatabase.open_copy() as database:
        yield database.known_names


# ----------------------------------------------------------------------------------------------------------
# What `rig rewards --check` tries: see `train.rewards.lint`


def _sample_rows() -> list[dict[str, Any]]:
    """The invented cards that come with rig, as lessons."""
    from bots.cards.database import CardDatabase, CardPool
    from bots.cards.prompts import card_messages

    with CardDatabase.open_samples() as database:
        cards = [database.card_by_id(number) for number in database.pool_ids(CardPool())]
    return [
        {
            "prompt": card_messages(card.to_facts()),
            "question": card.name,
            "answer": card.name,
            "facts": card.to_facts(),
        }
        for card in cards
    ]


def _worked(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from bots.lessons.attacks import worked_replies

    return worked_replies(_tasks(rows))


def _cheap(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, list[str]]:
    from bots.lessons.attacks import cheap_replies

    return cheap_replies(_tasks(rows))


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    from bots.cards.card import Card
    from bots.lessons.marks import CardTask

    facts = _cells([row["facts"] for row in rows], len(rows))
    return [CardTask(Card.from_facts(one, zlib.crc32(one["Name"].encode()))) for one in facts]


card_post.sample_rows = _sample_rows  # type: ignore[attr-defined]
card_post.worked_replies = _worked  # type: ignore[attr-defined]
card_post.cheap_replies = _cheap  # type: ignore[attr-defined]
