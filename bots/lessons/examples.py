"""A worked post for any card, made of its facts in whole sentences: what a model may begin from.

The template that stands in for a model is a list with a name before it. These are sentences, in many orders,
so that a model that starts from them has more than one thing to say; every one of them is checked as a
model's own post is, and the template takes the place of one that does not pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bots.cards.card import Card
from bots.cards.template import template_post

MONSTERS = (
    "{name} brings {figures} to the field as {kind} of the {attribute} attribute.",
    "With {figures}, {name} is {kind} that stands for {attribute}.",
    "Meet {name}: {kind}, {attribute} by attribute, with {figures}.",
    "{attribute} has a face today, and it is {name}, {kind} with {figures}.",
    "How would you use {figures}? {name} is {kind}, and its attribute is {attribute}.",
    "{figures} on {kind}: that is {name}, a child of {attribute}.",
    "{name} comes as {kind}. Its attribute is {attribute}, and it holds {figures}.",
)
OTHERS = (
    "{name} is {kind} that waits quietly for its moment.",
    "Keep a place free in your plans for {name}, {kind}.",
    "Meet {name}: {kind} with a clever plan behind it.",
    "When would you turn over {name}? It is {kind}, patient and sly.",
    "{kind_capital} steps out of the binder: {name}.",
    "Today it is the turn of {name}, {kind} to be read twice.",
    "{name} comes as {kind}, and a whole duel may hang on it.",
)
EFFECTS = (
    "What it is about: {topics}.",
    "Its text turns on {topics}.",
    "Think of {topics} when you read it.",
    "It has to do with {topics}.",
    "At its heart: {topics}.",
)
TOPICS = {
    "Special Summon": "Special Summons", "draw": "drawing", "destroy": "destruction",
    "negate": "negation", "banish": "banishing", "Tribute": "Tributes", "damage": "damage", "LP": "LP",
    "Life Points": "Life Points", "GY": "the GY", "Graveyard": "the Graveyard", "Deck": "the Deck",
    "hand": "the hand", "Equip": "equipping", "Counter": "counters", "discard": "discarding",
    "coin": "a coin", "attack": "attacking", "Battle Phase": "the Battle Phase",
    "face-up": "whatever lies face-up", "opponent": "the opponent", "target": "a target",
    "Level": "Levels", "Spell": "Spells", "Trap": "Traps", "monster": "monsters",
}  # fmt: skip
"""What a card's text may be about: a word of it, and how a sentence calls it."""


def worked_post(card: Card, faults: Callable[[str], list[str]]) -> tuple[str, str]:
    """A post about `card` that has no `faults`, and who wrote it: `example`, or `template` where none passed.

    >>> worked_post(Card(3, "Moss Golem", "Normal Monster", race="Rock", attribute="EARTH", attack=900,
    ...                  defence=2100), lambda post: [])[0]
    'EARTH has a face today, and it is Moss Golem, a Rock Normal Monster with 900 ATK and 2100 DEF.'
    """
    for post in (_sentences(card), _sentences(card, effect=False)):
        if not faults(post):
            return post, "example"
    return template_post(card, lambda text: not faults(text)), "template"


def _sentences(card: Card, *, effect: bool = True) -> str:
    facts = card.to_facts()
    kind = f"{card.race} {card.kind}".strip()
    words = {
        "name": card.name,
        "kind": f"{'an' if kind[:1] in 'AEIOU' else 'a'} {kind}",
        "kind_capital": f"{'An' if kind[:1] in 'AEIOU' else 'A'} {kind}",
        "attribute": card.attribute,
        "figures": _figures(facts),
    }
    forms = MONSTERS if card.attribute and words["figures"] else OTHERS
    post = forms[card.id % len(forms)].format(**words)
    topics = [name for word, name in TOPICS.items() if re.search(rf"\b{word}", card.text)]
    topics = topics[: 3 if forms is MONSTERS else 5]
    if effect and topics and "Normal Monster" not in card.kind:
        joined = " and ".join([", ".join(topics[:-1]), topics[-1]] if topics[1:] else topics)
        post += " " + EFFECTS[card.id // len(forms) % len(EFFECTS)].format(topics=joined)
    return post[:1].upper() + post[1:] if not post.startswith(card.name) else post


def _figures(facts: dict[str, str]) -> str:
    """As a sentence says them: "Level 4, 900 ATK and 2100 DEF".

    >>> _figures({"Level": "4", "ATK": "900", "DEF": "2100"}), _figures({"ATK": "?"})
    ('Level 4, 900 ATK and 2100 DEF', '')
    """
    found = [f"{key} {facts[key]}" for key in ("Level", "Rank", "Link", "Scale") if key in facts]
    found += [f"{facts[key]} {key}" for key in ("ATK", "DEF") if facts.get(key, "?") != "?"]
    return " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
