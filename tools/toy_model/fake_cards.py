"""Invents cards and the posts about them; no name, text or figure of a real card is used.

What is learnt is copying: a name goes into the post letter by letter, however odd, and every figure in the
post is one of the facts. Which wording is taken depends on what the card is, so that posts differ.
"""

# ruff: noqa: SIM905 - lists read best as text

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from random import Random

from tools.toy_model import word_lists as w
from tools.toy_model.fake_articles import Writer, made_up

Facts = dict[str, str]

ATTRIBUTES = "DARK EARTH LIGHT WATER WIND FIRE DARK EARTH LIGHT WATER WIND FIRE DIVINE".split()
TYPES = (
    "Warrior|Machine|Fiend|Dragon|Spellcaster|Fairy|Beast|Winged Beast|Cyberse|Beast-Warrior|Aqua|"
    "Insect|Zombie|Rock|Plant|Psychic|Reptile|Pyro|Thunder|Dinosaur|Fish|Wyrm|Sea Serpent|Illusion|"
    "Divine-Beast"
).split("|")
MONSTERS = (
    "Effect Monster|Normal Monster|Tuner Effect Monster|Fusion Effect Monster|Synchro Effect Monster|"
    "Pendulum Effect Monster|Flip Effect Monster|Ritual Effect Monster|Fusion Monster|Ritual Monster|"
    "Synchro Tuner Effect Monster|Gemini Effect Monster|Union Effect Monster|Spirit Effect Monster|"
    "Pendulum Normal Monster|Toon Effect Monster|Tuner Normal Monster|Pendulum Tuner Effect Monster|Token"
).split("|")
RANKED = ["Xyz Effect Monster", "Xyz Monster", "Xyz Pendulum Effect Monster"]
LINKED = ["Link Effect Monster", "Link Monster"]
SPELLS = [
    "Normal Spell",
    "Quick-Play Spell",
    "Continuous Spell",
    "Field Spell",
    "Equip Spell",
    "Ritual Spell",
]
TRAPS = ["Normal Trap", "Continuous Trap", "Counter Trap"]

OPENERS = {  # what stands before the name, what stands after it: by attribute, or by the kind of the card
    "DARK": (
        ("Out of the shadows comes", "and the duel turns dark."),
        ("Tonight belongs to", "and to everyone who likes the dark."),
        ("Lights out:", "is waiting in the shadows."),
    ),
    "LIGHT": (
        ("A bright day for", "and for all its fans."),
        ("Step into the light with", "at your side."),
        ("Shining on the field today:", "in all its glory."),
    ),
    "EARTH": (
        ("Feel the ground shake when", "enters the duel."),
        ("Solid as a rock:", "holds the field today."),
        ("Down to earth with", "as card of the day."),
    ),
    "WATER": (
        ("The tide brings in", "for the card of the day."),
        ("Deep waters hide", "until the time is right."),
        ("Make a splash with", "on your field."),
    ),
    "FIRE": (
        ("Things heat up when", "joins the duel."),
        ("Handle with care:", "plays with fire."),
        ("The flames rise for", "on the field today."),
    ),
    "WIND": (
        ("A fresh wind brings", "to the table today."),
        ("Hold on to your cards:", "flies in."),
        ("Up in the air today:", "over the field."),
    ),
    "DIVINE": (
        ("Bow down before", "and count your blessings."),
        ("A divine day with", "on the field."),
    ),
    "Spell": (
        ("A little magic today:", "is the card of the day."),
        ("Have you ever cast", "at the right moment?"),
        ("Today we look at", "and the magic behind it."),
        ("Some duels are won with", "in hand."),
    ),
    "Trap": (
        ("Watch your step:", "is set face-down."),
        ("It is a trap!", "is the card of the day."),
        ("Think twice when", "lies on the other side."),
        ("Nobody sees", "coming before it is too late."),
    ),
    "": (
        ("Card of the day:", "is in the spotlight."),
        ("Today we look at", "and what it brings."),
        ("Say hello to", "in our daily look at the cards."),
    ),
}
CLOSERS = (
    "Would you play it?",
    "Who has it in the deck?",
    "Do you remember your first time with it?",
    "What would you play beside it?",
    "Is there room for it in your deck?",
    "Tell us your best story with it.",
)
REFUSALS = (
    "The post does not contain the card's name.",
    "The name of the card is not written exactly as given.",
    "The post is too long.",
    "The post is too short.",
    "The post has a figure that is not among the facts.",
    "The number {n} is not among the facts.",
    "The post has a link, a hashtag or a mention.",
    "The answer is not valid JSON.",
    "The post is the same as an earlier one.",
    "The post is too similar to an earlier post.",
    "The post contains a word that is not allowed.",
)


def card_name(rng: Random) -> str:
    """Invent a name: plain, or as odd as real ones are."""
    name = _plain(rng)
    luck = rng.random()
    if luck < 0.45:
        return name
    other = _plain(rng)
    odd = made_up(rng)
    forms = (
        f"{name} - {other}",
        f"{name}, the {other}",
        f"{name} of the {other}",
        f"{name} of {other}",
        f"{name}: {other}",
        f'"{name}" {other}',
        f'{name} "{other}"',
        f'{other} "{chr(rng.randint(65, 90))}"',
        f'"{chr(rng.randint(65, 90))}" {other}',
        f"No. {rng.randint(1, 107)}: {name}",
        f"Number {rng.randint(1, 107)}: {name}",
        f"{name}!",
        f"{name}! {other}!",
        f"{name} #{rng.randint(1, 9)}",
        f"{name} LV{rng.randint(1, 12)}",
        f"{name}/{odd.capitalize()}",
        f"{odd.capitalize()}/{other}",
        f"{name} & {other}",
        f"{name}@{odd.capitalize()}",
        f"{name} ({other})",
        f"{name}?",
        f"{odd.upper()} {name}",
        ".".join(odd[:4].upper()) + f". {name}",
        f"{name}☆{odd.capitalize()}",
        f"{name}★{other}",
        f"{odd.capitalize()}-{name}",
        f"{name}-{odd.capitalize()}-{rng.randint(1, 99)}",
        f"{odd[:2].upper()}-{rng.randint(1, 999)} {name}",
        f"{name} {rng.randint(1, 9999)}",
        f"{name}'s {other}",
        f"{odd.capitalize()}'s {name}",
        f"{name}, {other}, {odd.capitalize()}",
        f"The {name} That {other}",
        f"{name} the {other} of {odd.capitalize()}",
        f"{odd}{odd.upper()[:3]} {name}",
        f"{name} in the {other}",
        f"{name} from {other}",
        f"{odd.capitalize()}-{odd[:1]}-{odd[:3]} {other}",
    )
    return rng.choice(forms)


def _plain(rng: Random) -> str:
    size = rng.choice((1, 2, 2, 2, 3))
    out: list[str] = []
    for _ in range(size):
        luck = rng.random()
        if luck < 0.25:
            word = rng.choice(w.ADJECTIVES)
        elif luck < 0.5:
            word = rng.choice(w.NOUNS)
        elif luck < 0.9 or not out:
            word = made_up(rng)
        else:  # a word that begins as the last one did is easily skipped in copying: practise it
            word = out[-1][: rng.randint(1, 4)] + rng.choice((made_up(rng), out[-1][2:]))
        if rng.random() < 0.03:
            word = rng.choice(w.FOREIGN) + word
        luck = rng.random()
        if luck < 0.05:
            word = word.upper()
        elif luck < 0.08:
            word = word.capitalize() + made_up(rng).capitalize()
        elif luck < 0.93:
            word = word[0].upper() + word[1:]
        out.append(word)
    return " ".join(out)


def card_facts(rng: Random, with_text: bool = True) -> Facts:
    """Invent the facts of one card, in the order in which the bots give them."""
    facts = {"Name": card_name(rng)}
    luck = rng.random()
    if luck < 0.32:
        facts["Card"] = rng.choice(rng.choice((SPELLS, TRAPS)))
    elif luck < 0.34:
        facts["Card"] = f"Skill - {made_up(rng).capitalize()}"
    else:
        sort = rng.choice((MONSTERS, MONSTERS, MONSTERS, MONSTERS, RANKED, LINKED))
        facts["Card"] = rng.choice(sort) if rng.random() < 0.6 else sort[0]
        facts["Attribute"] = rng.choice(ATTRIBUTES)
        facts["Type"] = rng.choice(TYPES)
        if rng.random() < 0.15:
            facts["Type"] += " / " + rng.choice(
                ("Effect", "Tuner / Effect", "Fusion / Effect", "Normal", "Flip")
            )
        if sort is LINKED:
            facts["Link"] = str(rng.randint(1, 6))
        else:
            facts["Rank" if sort is RANKED else "Level"] = str(rng.randint(1, 12))
        if sort is not RANKED and rng.random() < 0.06:
            facts["Scale"] = str(rng.randint(0, 13))
        facts["ATK"] = _strength(rng)
        if sort is not LINKED:
            facts["DEF"] = _strength(rng)
    if rng.random() < 0.06:
        facts.pop(rng.choice([key for key in facts if key != "Name"]))
    if with_text and rng.random() < 0.93:
        facts["Text"] = card_text(rng, facts["Name"])
    return facts


def _strength(rng: Random) -> str:
    luck = rng.random()
    if luck < 0.02:
        return "?"
    if luck < 0.1:
        return "0"
    if luck < 0.8:
        return str(rng.randint(1, 50) * 100)
    return str(rng.randint(1, 100) * 50 if luck < 0.95 else rng.randint(1, 9999))


def card_text(rng: Random, name: str) -> str:
    """Invent a rules text; like real ones it repeats the name and is full of figures that are no facts."""
    writer = Writer(rng)
    pick = rng.choice
    kin = pick((name, card_name(rng), pick(writer.odd).capitalize()))
    out = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8))):
        count = rng.randint(1, 4)
        what = pick((
            f'"{kin}"', f"{pick(ATTRIBUTES)} monster", f"{pick(TYPES)} monster", "card",
            f'"{kin}" monster', f"Level {rng.randint(1, 12)} or lower monster", "Spell/Trap", "monster",
        ))  # fmt: skip
        where = pick(
            ("hand", "Deck", "GY", "field", "Graveyard", "Extra Deck", "side of the field")
        )
        deed = pick((
            f"draw {count} card{'s' * (count > 1)}", f"add {count} {what} from your Deck to your hand",
            f"Special Summon {count} {what} from your {where}", f"destroy {count} {what} on the field",
            f"this card gains {rng.randint(1, 30) * 100} ATK", "negate that effect",
            f"banish it from your {where}", f"target {count} {what} in your {where}",
            f"inflict {rng.randint(1, 20) * 100} damage to your opponent",
            f"shuffle {count} {what} into the Deck", f"gain {rng.randint(1, 20) * 100} LP",
        ))  # fmt: skip
        when = pick((
            "When this card is Normal Summoned:", "If this card is sent to the GY:", "Once per turn:",
            "During your Main Phase:", "(Quick Effect):", f"If you control {count} {what}:",
            "During the End Phase:", "When your opponent declares an attack:",
            f"While you control {what},", "If this card battles:",
        ))  # fmt: skip
        luck = rng.random()
        if luck < 0.6:
            out.append(
                f"{when} You can {deed}; {pick(('then', 'and if you do,', 'also'))} {pick(writer.odd)} it."
            )
        elif luck < 0.7:
            out.append(f'You can only use this effect of "{name}" once per turn.')
        elif luck < 0.75:
            out.append(f"{count} {what}s + {count}+ non-Tuner monsters")
        elif luck < 0.85:
            out.append(f"● {deed[0].upper()}{deed[1:]}.")
        else:
            out.append(writer.sentence())
    return " ".join(out)


def post(rng: Random, facts: Mapping[str, str]) -> str:
    """Write a post of 60 to 240 characters that names the card once and says only what the facts say."""
    kind = facts.get("Card", "")
    mood = facts.get("Attribute") or next(
        (word for word in ("Spell", "Trap") if kind.endswith(word)), ""
    )
    openers = OPENERS[mood]
    before, after = openers[ord(facts["Name"][0]) % len(openers)]
    closer = CLOSERS[len(kind) % len(CLOSERS)] if rng.random() < 0.8 else rng.choice(CLOSERS)
    return " ".join(
        part for part in (before, facts["Name"], after, _figures(facts), closer) if part
    )


def _figures(facts: Mapping[str, str]) -> str:
    """Say what the card is and how strong; a stat that is unknown (`?`) is left out."""
    atk, defence, kind = facts.get("ATK", "?"), facts.get("DEF", "?"), facts.get("Card", "")
    rank = next((f"{key} {facts[key]}" for key in ("Level", "Rank", "Link") if key in facts), "")
    stats = " and ".join(
        f"{value} {key}" for key, value in (("ATK", atk), ("DEF", defence)) if value != "?"
    )
    if not rank and not stats:
        return f"Card type: {kind}." if kind else ""
    head = ", ".join(part for part in (rank, facts.get("Type", kind)) if part)
    return f"{head}: {stats}." if stats else f"{head}."


def answer(text: str) -> str:
    r"""Put a post into the JSON that was asked for.

    >>> print(answer('Flying "C"'))
    {"post": "Flying \"C\""}
    """
    return json.dumps({"post": text}, ensure_ascii=False)


def is_good(reply: str, facts: Mapping[str, str]) -> bool:
    """Whether a reply is the JSON asked for, names the card exactly, and has no figure that is no fact.

    >>> facts = {"Name": "Moss Golem", "ATK": "900"}
    >>> is_good(answer("Moss Golem: 900 ATK"), facts), is_good(answer("Moss Golem: 800 ATK"), facts)
    (True, False)
    """
    try:
        said = json.loads(reply)
    except ValueError:
        return False
    if (
        not isinstance(said, dict)
        or set(said) != {"post"}
        or facts["Name"] not in str(said["post"])
    ):
        return False
    known = {
        figure
        for key, value in facts.items()
        if key != "Text"
        for figure in re.findall(r"\d+", value)
    }
    return set(re.findall(r"\d+", str(said["post"]))) <= known


def spoilt(rng: Random, text: str, facts: Mapping[str, str]) -> tuple[str, str]:
    """Spoil a post as a model might, and give a reason for refusing it."""
    luck = rng.random()
    name = facts["Name"]
    if luck < 0.3:
        cut = rng.randint(0, len(name) - 1)
        text = text.replace(name, name[:cut] + made_up(rng))
    elif luck < 0.5:
        text = text.replace(name, card_name(rng))
    elif luck < 0.7:
        text += f" {rng.randint(1, 99) * 50} ATK!"
    elif luck < 0.8:
        text += " " + Writer(rng).sentence()
    return text, rng.choice(REFUSALS).format(n=rng.randint(1, 99) * 50)
