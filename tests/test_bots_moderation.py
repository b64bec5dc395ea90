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


@pytest.mark.parametrize(
    "text",
    [
        "ماهی\u200cگیران می\u200cتوانند صید خود را تخلیه کنند.",  # Persian
        "شک\u200c آمد.",
        "शक्\u200cति और क्\u200dष",  # Hindi
        "അവന്\u200d വന്നു",  # Malayalam
        "nach neun Wochen Instand\u00adsetzung",
        "Scotland \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f won.",
        "فتح ميناء \u2066Lisk\u2069 أبوابه.",
        "The site now runs on Node.js and Vue.js for all.",
        "A file called notes.txt is lost.",
    ],
)
def test_what_a_language_needs_is_no_fault(text: str) -> None:
    assert not find_faults(text)


@pytest.mark.parametrize(
    "text", ["zero\u200cwidth", "a\u2066b without an end", "so\u00ad", "\u202eabc", "see node.io"]
)
def test_what_none_needs_still_is(text: str) -> None:
    assert find_faults(text)
