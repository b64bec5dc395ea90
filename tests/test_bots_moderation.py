"""What no post may be: `pytest tests/test_bots_moderation.py`."""

from __future__ import annotations

import pytest

from bots.moderation import find_faults, repetition_faults


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
