"""One card: what the model is told of it, and what a post about it may say.

Made from an entry of the YGOPRODeck API in its present or its older shape. Absent and null mean the same
there; a strength of -1 is printed as "?".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """One card by its name, however often it was printed."""

    id: int
    name: str
    kind: str
    """In words, such as "Effect Monster" or "Continuous Spell"."""
    frame: str = ""
    """`effect`, `spell`, `xyz`, `link`, ...: the API's frameType."""
    text: str = ""
    race: str = ""
    """The monster's type ("Dragon"); empty for spells, traps and skills."""
    attribute: str = ""
    rank_word: str = ""
    """`Level`, `Rank` or `Link`, whichever this card has."""
    rank: int | None = None
    scale: int | None = None
    attack: int | None = None
    defence: int | None = None
    archetype: str = ""
    sets: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    """Lower case, such as "goat"; only known when the API was asked with misc=yes."""
    date: str = ""
    """First day in the TCG, "2002-03-08"; only known as the formats are."""
    image: str = ""
    """Address of the full picture."""

    def to_facts(self) -> dict[str, str]:
        """What the model is given, in the order that the toy model was taught.

        >>> Card(1, "Moss Golem", "Normal Monster", attack=900, defence=-1).to_facts()
        {'Name': 'Moss Golem', 'Card': 'Normal Monster', 'ATK': '900', 'DEF': '?'}
        """
        found = {
            "Name": self.name,
            "Card": self.kind,
            "Attribute": self.attribute,
            "Type": self.race,
            self.rank_word: _shown(self.rank),
            "Scale": _shown(self.scale),
            "ATK": _shown(self.attack),
            "DEF": _shown(self.defence),
            "Text": self.text,
        }
        return {key: value for key, value in found.items() if key and value}

    @classmethod
    def from_facts(cls, facts: Mapping[str, str], number: int = 0) -> Card:
        """The card that `to_facts` tells of: all that a post about it is checked against.

        >>> golem = Card(1, "Moss Golem", "Normal Monster", rank_word="Level", rank=4, attack=900, defence=-1)
        >>> Card.from_facts(golem.to_facts(), 1) == golem
        True
        """
        word = next((key for key in ("Level", "Rank", "Link") if key in facts), "")
        return cls(
            id=number,
            name=facts["Name"],
            kind=facts.get("Card", ""),
            text=facts.get("Text", ""),
            race=facts.get("Type", ""),
            attribute=facts.get("Attribute", ""),
            rank_word=word,
            rank=_number(facts.get(word)),
            scale=_number(facts.get("Scale")),
            attack=_number(facts.get("ATK")),
            defence=_number(facts.get("DEF")),
        )

    def own_words(self) -> str:
        """Everything that stands on the card, in one line."""
        return " ".join(self.to_facts().values())

    def to_json(self) -> str:
        """As the local copy keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what `to_json` wrote."""
        found: dict[str, Any] = json.loads(text)
        for name in ("sets", "formats"):
            found[name] = tuple(found[name])
        return cls(**found)

    @classmethod
    def from_api(cls, entry: Mapping[str, Any]) -> Card:
        """Make a card of one entry of `data`; KeyError when it has no id, name or type."""
        raw = str(entry["type"])
        race = str(entry.get("race") or "")
        frame = str(entry.get("frameType") or _frame(raw))
        monster = entry.get("atk") is not None
        word = {"xyz": "Rank", "xyz_pendulum": "Rank", "link": "Link"}.get(frame, "Level")
        rank = entry.get("linkval") if word == "Link" else entry.get("level")
        misc: Mapping[str, Any] = (entry.get("misc_info") or [{}])[0]
        images = entry.get("card_images") or [{}]
        return cls(
            id=int(entry["id"]),
            name=str(entry["name"]),
            kind=str(entry.get("humanReadableCardType") or _kind(raw, race)).strip(),
            frame=frame,
            text="\n".join(" ".join(x.split()) for x in str(entry.get("desc") or "").splitlines()),
            race=race if monster else "",
            attribute=str(entry.get("attribute") or ""),
            rank_word=word if rank is not None and monster else "",
            rank=rank if monster else None,
            scale=entry.get("scale"),
            attack=entry.get("atk"),
            defence=entry.get("def") if word != "Link" else None,
            archetype=str(entry.get("archetype") or ""),
            sets=tuple(sorted({str(s["set_name"]) for s in entry.get("card_sets") or []})),
            formats=tuple(str(name).lower() for name in misc.get("formats") or []),
            date=str(misc.get("tcg_date") or ""),
            image=str(images[0].get("image_url") or ""),
        )


def _shown(number: int | None) -> str:
    return "" if number is None else "?" if number < 0 else str(number)


def _number(shown: str | None) -> int | None:
    return None if shown is None else -1 if shown == "?" else int(shown)


def _kind(raw: str, race: str) -> str:
    """The kind in words where the API's older shape gives none."""
    if raw in ("Spell Card", "Trap Card"):
        return f"{race or 'Normal'} {raw.removesuffix(' Card')}"
    return raw


def _frame(raw: str) -> str:
    lower = raw.lower()
    for frame in ("spell", "trap", "xyz", "link", "synchro", "fusion", "ritual", "skill", "token"):
        if frame in lower:
            return frame
    return "normal" if "normal" in lower else "effect"
