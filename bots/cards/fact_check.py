"""Whether a post tells the truth of its card: its name, figures and kind, and nothing that was not given.

A rule can't know what a sentence means. So it asks for less: every number, every quoted name, every word
that classifies a card or claims something about its history must stand among the facts. What a rule can't
clear is refused: a lost post costs nothing, a wrong one is what the first bot was known for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from bots.cards.card import Card
from bots.cards.substance import substance_faults

COUNTS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
)  # fmt: skip
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORDS_FOR_NUMBERS = {word: str(n) for n, word in enumerate(COUNTS, start=2)} | {
    "hundred": "100",
    "thousand": "1000",
    "dozen": "12",
    "zero": "0",
}
LABELLED = re.compile(
    r"(?P<a>\d[\d.,]*|\?)\s*(?P<b>ATK|DEF|attack|defen[cs]e)\b(?! of \d)"
    r"|\b(?P<c>ATK|DEF|attack|defen[cs]e|Level|Rank|Link|Scale)\s*(?:of|is|[:=-])?\s*(?P<d>\d[\d.,]*|\?)"
    r"|\b(?P<e>\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)[- ]stars?\b",
    re.IGNORECASE,
)
ATTRIBUTES = (
    "DARK", "LIGHT", "EARTH", "WATER", "FIRE", "WIND", "DIVINE",
)  # fmt: skip
RACES = (
    "Aqua", "Beast-Warrior", "Winged Beast", "Beast", "Creator God", "Cyberse", "Dinosaur",
    "Divine-Beast", "Dragon", "Fairy", "Fiend", "Fish", "Illusion", "Insect", "Machine", "Plant",
    "Psychic", "Pyro", "Reptile", "Rock", "Sea Serpent", "Spellcaster", "Thunder", "Warrior", "Wyrm",
    "Zombie",
)  # fmt: skip
KINDS = (
    "Spell", "Trap", "Quick-Play", "Continuous", "Equip", "Field", "Counter", "Ritual", "Fusion",
    "Synchro", "Xyz", "Link", "Pendulum", "Tuner", "Flip", "Gemini", "Union", "Spirit", "Toon",
    "Normal", "Effect", "Token", "Skill",
)  # fmt: skip
CLAIMS = re.compile(
    r"\b(?:banned|forbidden|semi-limited|limited(?: to| list)|illegal|errata|reprint(?:ed)?"
    r"|first (?:printed|released)|released|debut(?:ed)?|tournament|champion(?:ship)?|meta(?:game)?|anime"
    r"|manga|episode|rare(?:st)?|expensive|worth|price[sd]?|cheap(?:est)?|best-selling|only card"
    r"|(?:the|its|game's|most) (?:best|worst|strongest|weakest|powerful|popular|famous|iconic)|iconic"
    r"|legendary|fun fact|trivia|did you know|based on|designed by|created by|originally"
    r"|in (?:the )?(?:19|20)\d\d)\b",
    re.IGNORECASE,
)
QUOTED = re.compile(r'"([^"]{3,})"')
CURLY = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "‐": "-", "‑": "-", "–": "-", "—": "-"}
)


def card_faults(
    post: str, card: Card, known: Callable[[Iterable[str]], Iterable[str]] = lambda names: ()
) -> list[str]:
    """Why `post` may not be said of `card`; empty when it may.

    `known` picks, out of many phrases in lower case, those that are names of cards.

    >>> golem = Card(1, "Moss Golem", "Normal Monster", race="Rock", attribute="EARTH", attack=900)
    >>> card_faults("Moss Golem: 900 ATK and a heart of stone.", golem)
    []
    >>> card_faults("Moss Golem: 950 ATK!", golem)
    ['The number 950 is not among the facts.']
    """
    name = card.name.translate(CURLY)
    text = " ".join(post.translate(CURLY).split())
    if name not in text:
        if name.lower() in text.lower():
            return ["The name of the card is not written exactly as given."]
        return ["The post does not contain the card's name."]
    said = text.replace(name, " ")  # what is said beside the name
    facts = " ".join(card.to_facts().values()).translate(CURLY)
    return [
        *substance_faults(text, card),
        *_figures(said, card, facts),
        *_kinds(said, card, facts),
        *_claims(said, facts),
        *_names(said, facts, known),
    ]


def _figures(said: str, card: Card, facts: str) -> list[str]:
    given = {_plain(n) for n in NUMBER.findall(facts)}
    given |= {n for word, n in WORDS_FOR_NUMBERS.items() if re.search(rf"\b{word}\b", facts, re.I)}
    for found in NUMBER.findall(said):
        if _plain(found) not in given:
            return [f"The number {found} is not among the facts."]
    for word, number in WORDS_FOR_NUMBERS.items():
        if number not in given and re.search(rf"\b{word}\b", said, re.IGNORECASE):
            return [f"The number {word} is not among the facts."]
    right = {
        "ATK": card.attack,
        "ATTACK": card.attack,
        "DEF": card.defence,
        "SCALE": card.scale,
        card.rank_word.upper(): card.rank,
        "STAR": card.rank if card.rank_word != "Link" else None,
    }
    in_text = {_label(m) for m in LABELLED.finditer(card.text)}
    for match in LABELLED.finditer(said):
        label, value = _label(match)
        true = right.get(label)
        shown = None if true is None else "?" if true < 0 else str(true)
        if value != shown and (label, value) not in in_text:
            return [f"The figure {match[0].strip()!r} is not what the facts say."]
    return []


def _label(match: re.Match[str]) -> tuple[str, str]:
    """What a figure is called and how much it is: ("ATK", "1800"), ("LEVEL", "4"), ("STAR", "4")."""
    label = (match["b"] or match["c"] or "star").upper()
    value = (match["a"] or match["d"] or match["e"]).lower()
    return "DEF" if label.startswith("DEFEN") else label, WORDS_FOR_NUMBERS.get(
        value, _plain(value)
    )


def _kinds(said: str, card: Card, facts: str) -> list[str]:
    """Words that classify: an attribute in capitals, a type or a kind before a word like "monster"."""
    for attribute in ATTRIBUTES:
        if re.search(rf"\b{attribute}\b", said) and not re.search(rf"\b{attribute}\b", facts):
            return [f"The attribute {attribute} is not among the facts."]
    for word in RACES:
        pattern = rf"\b{word}(?:-type|s?\b(?=[: ,]*(?:type|monster|card|with|:)))"
        if re.search(pattern, said) and not re.search(rf"\b{word}", facts, re.IGNORECASE):
            return [f"The type {word} is not among the facts."]
    for word in KINDS:
        pattern = rf"\b{word}(?:[ -](?:\w+[ -])?(?:monster|spell|trap|card|summon)s?)\b"
        if re.search(pattern, said, re.IGNORECASE) and not re.search(
            rf"\b{word}", facts, re.IGNORECASE
        ):
            return [f"The kind {word} is not among the facts."]
    monster = bool(re.search(r"\bmonster\b", said, re.IGNORECASE))
    if monster and not re.search(r"\bmonster", facts, re.IGNORECASE):
        return ["The facts do not say that it is a monster."]
    return []


def _claims(said: str, facts: str) -> list[str]:
    for match in CLAIMS.finditer(said):
        if match[0].lower() not in facts.lower():
            return [f"The claim {match[0]!r} is not among the facts."]
    return []


def _names(said: str, facts: str, known: Callable[[Iterable[str]], Iterable[str]]) -> list[str]:
    """Names in quotes, and names of other cards, must stand in this card's text."""
    lower = facts.lower()
    for quoted in QUOTED.findall(said):
        if quoted.strip(" .,!?").lower() not in lower:
            return [f'The name "{quoted}" is not among the facts.']
    words = re.findall(r"[\w'\"!?#&/:★☆.-]+", said)
    phrases = {
        " ".join(words[i : i + size]).strip(" .,!?:;\"'").lower()
        for size in range(2, 8)
        for i in range(len(words) - size + 1)
        if words[i][:1].isupper()
    }
    for other in known(phrases):
        if other.lower() not in lower:
            return [f"The post names another card ({other})."]
    return []


def _plain(number: str) -> str:
    """A number without separators: 2,500 is 2500, a comma or full stop at its end is none of it.

    >>> _plain("2,500"), _plain("1800."), _plain("?")
    ('2500', '1800', '?')
    """
    return re.sub(r"[.,]", "", number)
