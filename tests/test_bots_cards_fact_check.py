"""What is true of a card, and what a post may not say of it: `pytest tests/test_bots_cards_fact_check.py`."""

from __future__ import annotations

import pytest

from bots.cards.card import Card
from bots.cards.fact_check import card_faults
from bots.cards.template import template_post
from bots.moderation import find_faults

DRAKE = Card(
    8, "Halcyon Drake", "Synchro Effect Monster", frame="synchro", race="Dragon", attribute="WIND",
    rank_word="Level", rank=8, attack=2700, defence=2000,
    text='1 Tuner + 1+ non-Tuner monsters\nOnce per turn: You can add 1 "Halcyon" Spell to your hand.',
)  # fmt: skip


SPELL = Card(15, "Second Helping", "Normal Spell", frame="spell", text="Pay 1000 LP; draw 2 cards.")


OCTANT = Card(
    9, "Number Keeper Octant", "Xyz Effect Monster", frame="xyz", race="Cyberse", attribute="LIGHT",
    rank_word="Rank", rank=4, attack=2400, defence=-1, text="2 Level 4 monsters",
)  # fmt: skip


@pytest.mark.parametrize(
    ("card", "post"),
    [
        (DRAKE, "Halcyon Drake: Level 8, Dragon: 2700 ATK and 2000 DEF."),
        (DRAKE, "Halcyon Drake is a WIND Dragon with 2,700 ATK. Would you play it?"),
        (DRAKE, "Halcyon Drake, a Synchro Monster."),
        (DRAKE, 'Halcyon Drake adds one "Halcyon" Spell.'),
        (SPELL, "Second Helping: pay 1000 LP and draw 2 cards."),
        (SPELL, "Second Helping lets you draw two cards."),
        (OCTANT, "Number Keeper Octant: Rank 4, 2400 ATK."),
    ],
)
def test_what_the_card_says_may_be_said(card: Card, post: str) -> None:
    assert card_faults(post, card) == []


@pytest.mark.parametrize(
    ("card", "post", "why"),
    [
        (DRAKE, "A dragon of the wind: 2700 ATK.", "does not contain the card's name"),
        (DRAKE, "halcyon drake: 2700 ATK.", "not written exactly"),
        (DRAKE, "Halcyon Drake: 2800 ATK.", "2800 is not among the facts"),
        (DRAKE, "Halcyon Drake: 2000 ATK.", "2000 ATK"),  # true of its DEF alone
        (DRAKE, "Halcyon Drake has an ATK of 2000.", "ATK of 2000"),
        (DRAKE, "Halcyon Drake: Level 1.", "Level 1"),  # a 1 stands in its text
        (DRAKE, "Halcyon Drake: Rank 8.", "Rank 8"),
        (DRAKE, "Halcyon Drake, a DARK Dragon.", "DARK"),
        (DRAKE, "Halcyon Drake, a Warrior monster.", "Warrior"),
        (DRAKE, "Halcyon Drake, a Fusion Monster.", "Fusion"),
        (DRAKE, "Halcyon Drake, a trap card.", "Trap"),
        (DRAKE, "Halcyon Drake was banned.", "banned"),
        (DRAKE, "Halcyon Drake, first printed in 2004.", "2004"),
        (DRAKE, "Halcyon Drake is the strongest.", "strongest"),
        (DRAKE, 'Halcyon Drake likes "Blue Moon".', "Blue Moon"),
        (DRAKE, "Halcyon Drake and Moss Golem are friends.", "Moss Golem"),
        (DRAKE, "Halcyon Drake and its seven brothers.", "seven"),
        (SPELL, "Second Helping, a fine monster.", "monster"),
        (SPELL, "Second Helping draws 3 cards.", "3 is not"),
        (OCTANT, "Number Keeper Octant: Level 9.", "9"),
        (OCTANT, "Number Keeper Octant: 0 DEF.", "0"),  # printed "?"
    ],
)
def test_what_the_card_does_not_say_is_refused(card: Card, post: str, why: str) -> None:
    names = {"moss golem": "Moss Golem"}
    found = card_faults(post, card, lambda phrases: [names[p] for p in phrases if p in names])
    assert found
    assert why.lower() in " ".join(found).lower()


@pytest.mark.parametrize("card", [DRAKE, SPELL, OCTANT])
def test_the_template_passes_its_own_checks(card: Card) -> None:
    post = template_post(card, lambda text: len(text) < 280)
    assert card_faults(post, card) + find_faults(post, own_words=card.own_words()) == []
