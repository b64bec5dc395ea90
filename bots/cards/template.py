"""Sentences made of a card's facts alone: the post when the model fails, and the picture in words."""

from __future__ import annotations

import re
from collections.abc import Callable

from bots.cards.card import Card

OPENERS = (
    "Card of the day: {}",
    "On the table today: {}",
    "Today's card: {}",
    "In the spotlight: {}",
)


def template_post(card: Card, fits: Callable[[str], bool]) -> str:
    """A post of the facts; the card's own words are quoted as far as they fit, whole sentences only.

    >>> template_post(Card(1, "Moss Golem", "Normal Monster", attack=900, defence=2100), lambda text: True)
    'On the table today: Moss Golem. Normal Monster, ATK 900, DEF 2100.'
    """
    opener = OPENERS[card.id % len(OPENERS)].format(card.name)
    post = f"{opener}{'' if opener[-1] in '.!?' else '.'} {', '.join(_figures(card))}."
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"(])|\n+", card.text)[:2]:
        longer = f"{post} {sentence}"
        if not sentence.endswith((".", "!", "?")) or not fits(longer):
            break
        post = longer
    return post


def alt_text(card: Card) -> str:
    """The card's picture in words.

    >>> alt_text(Card(1, "Moss Golem", "Normal Monster", attack=900))
    'The trading card "Moss Golem": Normal Monster, ATK 900.'
    """
    return f'The trading card "{card.name}": {", ".join(_figures(card))}.'


def _figures(card: Card) -> list[str]:
    facts = card.to_facts()
    found = [facts.get("Card", ""), facts.get("Attribute", ""), facts.get("Type", "")]
    found += [
        f"{key} {facts[key]}"
        for key in ("Level", "Rank", "Link", "Scale", "ATK", "DEF")
        if key in facts
    ]
    return [piece for piece in found if piece]
