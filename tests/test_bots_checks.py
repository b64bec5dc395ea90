"""What no post may be, and what is true of a card: `pytest tests/test_bots_checks.py`."""

from __future__ import annotations

import pytest

from bots.cards.card import Card
from bots.cards.fact_check import card_faults
from bots.cards.template import template_post
from bots.moderation import find_faults, repetition_faults

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
    "text",
    [
        "Error: Unable to fetch trivia.",  # the first bot tweeted this
        '"Tornado Bird" is not a real YuGiOh card.',  # and this, under the picture of Tornado Bird
        "As an AI language model, I cannot write about cards.",
        "I'm sorry, but I do not recognise this card.",
        "Sure! Here is a tweet about the card.",
        "Post: Halcyon Drake is here.",
        '{"post": "Halcyon Drake"}',
        "Halcyon Drake [insert fact here]",
        "<reasoning>hm</reasoning> Halcyon Drake",
        "Traceback (most recent call last)",
        "Read more: https://example.com",
        "Read more at example.com!",
        "Ends.Begins without a blank",  # some platform makes a link of it
        "Hello @konami",
        "Mail me at a.b@example.org",
        "#yugioh Halcyon Drake",
        "Call 555-123-4567 now",
        "Card 4111 1111 1111 1111",
        "Halcyon Drake\x1b[31m in red",
        "Halcyon\u202e ekarD",
        "zero\u200bwidth",
        "What a shit card",
        "   ",
    ],
)
def test_no_post_is_like_this(text: str) -> None:
    assert find_faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "Halcyon Drake: Level 8, 2700 ATK. Would you play it?",
        "“Curly” quotes – and dashes — are fine…",
        "We're #1 and it costs 5$ 😀👨‍👩‍👧",
        "He said: what a day! Nothing more.",
    ],
)
def test_a_plain_post_passes(text: str) -> None:
    assert not find_faults(text)


def test_a_word_of_the_card_itself_may_be_said() -> None:
    assert find_faults("Dick is a name.")
    assert not find_faults("Moby Dick the Whale swims.", own_words="Moby Dick the Whale")
    assert find_faults("Moby Dick the Whale swims.", blocked=["whale"], own_words="")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Halcyon Drake is here.", "halcyon drake IS here!!", True),
        ("Say hello to Halcyon Drake, 2700 ATK.", "Say hello to Halcyon Drake: 2700 ATK!", True),
        (
            "Say hello to Halcyon Drake in our daily look.",
            "Say hello to Moss Golem in our daily look.",
            False,
        ),
        ("Nothing like it.", "Something else altogether.", False),
    ],
)
def test_a_near_duplicate_is_one(first: str, second: str, same: bool) -> None:
    assert bool(repetition_faults(second, [first])) is same


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
