"""Whether a post says anything of its card beyond the name: a name alone is true, and no post.

Words are told apart by lists, not by meaning: what any post about any card might say (`FILLER`), what stands
among this card's facts, and the rest. The rewards of `bots.lessons` count with the same lists, so that what
a model is taught and what the bot lets through can't part.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from bots.cards.card import Card

FILLER = frozenset(
    word
    for line in Path(__file__).with_name("filler.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
    for word in line.split()
)
"""Words that tell nothing of one card rather than of another."""
ENOUGH_WORDS = 4
"""So many words beside `FILLER` are a thought of the model's own, even if none is among the facts."""

WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")


def split_words(text: str) -> list[str]:
    """The words and numbers of `text` in lower case; numbers without separators.

    >>> split_words("It’s 2,500 ATK!")
    ["it's", '2500', 'atk']
    """
    found = (one.replace("’", "'").casefold() for one in WORD.findall(text))
    return [re.sub(r"[.,]", "", one) if one[0].isdigit() else one for one in found]


@lru_cache(maxsize=4096)
def class_words(card: Card) -> frozenset[str]:
    """What the card is: its kind, attribute, type and figures, each word without a plural's s.

    >>> sorted(class_words(Card(1, "Moss Golem", "Normal Monster", race="Rock", attack=900)))
    ['900', 'atk', 'monster', 'normal', 'rock']
    """
    facts = card.to_facts()
    classes = {stem(word) for key in ("Card", "Attribute", "Type") for word in _of(facts, key)}
    labels = [key for key in ("Level", "Rank", "Link", "Scale", "ATK", "DEF") if key in facts]
    figures = {word for key in labels for word in [key.lower(), *_of(facts, key)]}
    return frozenset((classes | figures) - FILLER)


@lru_cache(maxsize=4096)
def fact_words(card: Card) -> frozenset[str]:
    """The words of `class_words` and of the card's text by which it is known; its name is none of them."""
    text = _of(card.to_facts(), "Text")
    kept = {stem(w) for w in text if w not in FILLER and (len(w) > 2 or w.isdigit())}
    return class_words(card) | (kept - {stem(word) for word in split_words(card.name)} - FILLER)


def told_words(post: str, card: Card) -> list[str]:
    """What `post` says beside the card's name and `FILLER`, each word once, in order.

    >>> told_words("Say hello to Moss Golem: the Golem has 900 ATK!", Card(1, "Moss Golem", "Monster"))
    ['900', 'atk']
    """
    name = {stem(word) for word in split_words(card.name)}
    facts = fact_words(card)
    beside = re.sub(re.escape(card.name), " ", post, flags=re.IGNORECASE)
    words = [stem(word) for word in split_words(beside) if word not in FILLER]
    return list(
        dict.fromkeys(w for w in words if w in facts or (w not in name and w not in FILLER))
    )


def substance_faults(post: str, card: Card) -> list[str]:
    """Why `post` says too little of `card`; empty when it says something.

    >>> golem = Card(1, "Moss Golem", "Normal Monster", race="Rock", attack=900)
    >>> substance_faults("Card of the day: Moss Golem!", golem)
    ['The post says nothing but the name of the card: say what it is or what it does.']
    >>> substance_faults("Moss Golem, solid as a Rock.", golem)
    []
    """
    told = told_words(post, card)
    if class_words(card) & set(told) or len(told) >= ENOUGH_WORDS:
        return []
    if len(told) > 1 and fact_words(card) & set(told):
        return []
    return ["The post says nothing but the name of the card: say what it is or what it does."]


def stem(word: str) -> str:
    """A word without the s of its plural or its genitive.

    >>> stem("monsters"), stem("golem's"), stem("boss"), stem("900")
    ('monster', 'golem', 'boss', '900')
    """
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _of(facts: dict[str, str], key: str) -> list[str]:
    return split_words(facts.get(key, ""))
