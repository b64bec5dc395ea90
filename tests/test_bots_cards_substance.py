"""A post that says nothing of its card but the name: `pytest tests/test_bots_cards_substance.py`."""

from __future__ import annotations

import json

import pytest
from conftest import SHARED

from bots.cards.card import Card
from bots.cards.fact_check import card_faults
from bots.cards.substance import substance_faults
from bots.cards.template import template_post

CARDS = SHARED / "data" / "ygo" / "cardinfo.json"

MANNERS = Card(
    21, "Trapdoor Manners", "Normal Trap", frame="trap", text="Destroy 1 attacking monster."
)
WYVERN = Card(
    22, "Dragon Ward", "Effect Monster", frame="effect", race="Dragon", attribute="FIRE",
    rank_word="Level", rank=4, attack=1500, defence=1200,
    text="You can Tribute this card; draw 1 card from your Deck.",
)  # fmt: skip
SPIRITS = Card(23, "Ascend the Stair", "Skill Card", frame="skill", text="")

EMPTY = (
    "{}",
    "{}.",
    '"{}"!!!',
    "{} {} {}",
    "The card {}.",
    "{} is a card.",
    "Card of the day: {}!",
    "Say hello to {} today.",
    "Here is {}, check it out!",
    "{} \N{SPARKLES}",
    "Today we present {} to all our fans!",
    "{} is one of the best cards ever!",
    "Would you play {}?",
    "Put {} into your deck!",
    "I love {}. Do you?",
    "{}: that's the name.",
)


@pytest.mark.parametrize("card", [MANNERS, WYVERN, SPIRITS])
@pytest.mark.parametrize("words", EMPTY)
def test_a_name_in_other_words_is_no_post(card: Card, words: str) -> None:
    found = card_faults(words.format(*[card.name] * 3), card)
    assert any("nothing but the name" in fault for fault in found)


@pytest.mark.parametrize(
    ("card", "post"),
    [
        (MANNERS, "Trapdoor Manners destroys an attacker."),
        (MANNERS, "Trapdoor Manners, a Normal Trap."),
        (WYVERN, "Dragon Ward: 1500 ATK."),
        (WYVERN, "Dragon Ward is a Dragon."),
        (WYVERN, "Give up Dragon Ward and draw."),
        (WYVERN, "Dragon Ward sleeps where the mountain smokes and waits."),
        (WYVERN, "Dragon Ward: ein Drache aus Feuer, der Karten zieht."),
        (SPIRITS, "Ascend the Stair is a Skill Card."),
    ],
)
def test_whatever_is_said_of_the_card_is_a_post(card: Card, post: str) -> None:
    assert substance_faults(post, card) == []


@pytest.mark.skipif(not CARDS.exists(), reason="needs the real cards in ../shared")
def test_real_cards_have_something_to_say_and_their_names_say_nothing() -> None:
    entries = json.loads(CARDS.read_text("utf-8"))["data"]
    for card in map(Card.from_api, entries[::7]):
        assert substance_faults(template_post(card, lambda text: False), card) == []
        for words in EMPTY:
            assert substance_faults(words.format(*[card.name] * 3), card), words
