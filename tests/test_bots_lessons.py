"""What a bot asks, as lessons, and what never gets into them: `pytest tests/test_bots_lessons.py`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED

from bots.articles.cache import ArticleCache, cache_key
from bots.articles.prompts import summary_messages
from bots.articles.reading_list import ReadingList
from bots.bot import Draft
from bots.cards.bot import CardOptions
from bots.cards.database import CardDatabase, CardPool, replace_copy
from bots.cards.prompts import card_messages
from bots.commands.lessons import write_bot_lessons
from bots.credentials import save_credentials
from bots.daemon import process
from bots.documents.article import Article
from bots.ledger import outbox, review, slots
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.lessons.cards import card_lessons
from bots.lessons.notes import LessonNotes
from bots.lessons.private import PrivateWords
from rig.errors import WrongUse

NOW = datetime.now(UTC).replace(microsecond=0)
GOLEM, HERON = "1001", "1002"
KEY = "zk9Qw-7781-kastanie"


def configure(elsewhere: Path, **bot: Any) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in bot.items()]
    table = "\n".join(["[bots.cards]", *lines, "[bots.cards.options]", 'source = "samples"'])
    (elsewhere / "rig.toml").write_text(table, "utf-8")


def put(ledger: Ledger, hour: int, bot: str, draft: Draft) -> int:
    slot = NOW - timedelta(hours=hour)
    run = slots.take_slot(ledger, bot, slot, "me", NOW)
    assert run
    outbox.put_draft(
        ledger, run, bot, slot, draft, [DeliveryTarget("x", True, 0)],
        approved=False, expires=NOW + timedelta(days=9), now=NOW,
    )  # fmt: skip
    return int(review.latest_posts(ledger, bot, 99)[-1].id)


def about(card: str, text: str, own: str = "") -> Draft:
    return Draft(text, card, own_words=own, data={"card": "a card"})


def lessons(elsewhere: Path, bot: str = "cards", context: int = 4096) -> dict[str, dict[str, Any]]:
    write_bot_lessons(bot, "lessons.jsonl", context)
    text = (elsewhere / "lessons.jsonl").read_text("utf-8")
    return {row.get("card") or row["url"]: row for row in map(json.loads, text.splitlines())}


def test_every_card_of_the_pool_is_asked_for_as_the_bot_asks(elsewhere: Path) -> None:
    configure(elsewhere, outlets=["screen", "bluesky"])
    found = lessons(elsewhere)
    with CardDatabase.open_samples() as database:
        assert list(found) == database.pool_ids(CardPool())
        for number, row in found.items():
            card = database.card_by_id(number)
            assert row["prompt"] == card_messages(card.to_facts())
            assert (row["facts"], row["subject"]) == (card.to_facts(), card.name)
            assert row["messages"][:-1] == row["prompt"]
            assert card.name in json.loads(row["messages"][-1]["content"])["post"]
            assert (row["written_by"], row["posts"]) == ("example", [])
            assert row["asked"] == {"attempts": 4, "temperature": 0.7, "max_tokens": 320}
            assert row["limits"] == [
                {"outlet": "screen", "limit": 280}, {"outlet": "bluesky", "limit": 300},
            ]  # fmt: skip


def test_what_a_person_decided_stands_beside_the_model_s_text(elsewhere: Path) -> None:
    configure(elsewhere)
    ledger = process.open_ledger()
    edited = put(ledger, 1, "cards", about(GOLEM, "Moss Golem has 900 ATK."))
    review.edit_draft(ledger, edited, "Moss Golem sleeps behind 2100 DEF.", NOW)
    review.approve_draft(ledger, edited, NOW)
    refused = put(ledger, 2, "cards", about(HERON, "Lantern Heron, 1200 ATK, a bird."))
    review.reject_draft(ledger, refused, "too dull", NOW)
    put(ledger, 3, "cards", about("1003", "Nobody said anything of this one."))
    put(ledger, 4, "other", about("1004", "Another bot's."))
    found = lessons(elsewhere)
    (golem,), (heron,) = found[GOLEM]["posts"], found[HERON]["posts"]
    assert (golem["verdict"], golem["wanted"]) == ("edited", "Moss Golem sleeps behind 2100 DEF.")
    assert (golem["text"], golem["author"]) == ("Moss Golem has 900 ATK.", "model")
    assert found[GOLEM]["written_by"] == "person"
    assert json.loads(found[GOLEM]["messages"][-1]["content"]) == {"post": golem["wanted"]}
    assert (heron["verdict"], heron["wanted"], heron["reason"]) == ("rejected", "", "too dull")
    assert found[HERON]["written_by"] == "example"
    assert sum(bool(row["posts"]) for row in found.values()) == 2


def test_the_month_s_posts_stand_in_turn_in_the_rows(elsewhere: Path) -> None:
    configure(elsewhere)
    ledger = process.open_ledger()
    said = [f"Post number {at} of the month about a card." for at in range(20)]
    for at, text in enumerate(said):
        put(ledger, at + 1, "cards", about("1", text))
    put(ledger, 24 * 45, "cards", about("1", "From long ago."))
    dropped = put(ledger, 24 * 44, "cards", about("1", "Left out."))
    review.reject_draft(ledger, dropped, "no", NOW)
    rows = lessons(elsewhere).values()
    assert {text for row in rows for text in row["earlier"]} == set(said)
    assert max(len(row["earlier"]) for row in rows) <= 8


PRIVATE = [
    ("Moss Golem has 900 ATK, says Zwiebelturm.", "Zwiebelturm"),
    ("Moss Golem has 900 ATK, says zwiebeltürme and ZWIEBELTURM.", "zwiebelturm"),
    ("Moss Golem has 900 ATK, thanks to @mira_w.", "mira_w"),
    ("Moss Golem has 900 ATK: @mira@chaos.example", "mira"),
    ("Moss Golem has 900 ATK: mail mira.w@chaos.example", "mira.w"),
    ("Moss Golem: 900 ATK https://x.com/mira_w/status/1", "mira_w"),
    (f"Moss Golem has 900 ATK {KEY}", KEY),
    ("Moss Golem has 900 ATK sk-abcdef1234567890abcd", "sk-abcdef"),
    ("Moss Golem has 900 ATK, call +49 30 1234567", "1234567"),
]


@pytest.mark.parametrize(("text", "word"), PRIVATE)
def test_no_private_word_gets_in(elsewhere: Path, text: str, word: str) -> None:
    configure(elsewhere, blocked=["Zwiebelturm"])
    save_credentials("x", {"access_token": KEY})
    ledger = process.open_ledger()
    reason = f"not this: {text}"
    for hour, act in enumerate(("approve", "edit", "reject", "wait")):
        number = put(ledger, hour + 1, "cards", about(GOLEM, text if act != "edit" else "Fine."))
        if act == "edit":
            review.edit_draft(ledger, number, text, NOW)
        if act == "reject":
            review.reject_draft(ledger, number, reason, NOW)
        if act == "approve":
            review.approve_draft(ledger, number, NOW)
    found = lessons(elsewhere)
    assert found[GOLEM]["posts"] == []
    assert word.lower() not in (elsewhere / "lessons.jsonl").read_text("utf-8").lower()


def test_a_reason_is_kept_without_what_is_private_in_it(elsewhere: Path) -> None:
    configure(elsewhere, blocked=["Acme"])
    ledger = process.open_ledger()
    number = put(ledger, 1, "cards", about(GOLEM, "Moss Golem has 900 ATK."))
    review.reject_draft(ledger, number, "sounds like Acme, ask @mira", NOW)
    (post,) = lessons(elsewhere)[GOLEM]["posts"]
    assert post["reason"] == "sounds like (…), ask (…)"


@pytest.mark.parametrize(
    "text",
    [
        "The Token creation of a basic strategy, 4-0 at 2100 DEF.",
        "Super-duper-ultra-mega-hyper-compound-words-are-no-keys.",
        "Five @ a time? 5 @ 3.",
        "Planned by nobody: an annex.",
    ],
)
def test_honest_words_are_not_private(text: str) -> None:
    words = PrivateWords.collect(["ann", "basi"], ["short", "a-long-secret"])
    assert words.find_private(text) is None
    assert words.remove_private(text) == text


def test_a_card_may_be_called_like_a_handle(tmp_path: Path) -> None:
    entry = {"id": 7, "name": "Achichi @Ignister", "type": "Effect Monster", "atk": 800, "def": 800,
             "race": "Cyberse", "attribute": "FIRE", "level": 2, "desc": "An @Ignister."}  # fmt: skip
    replace_copy([entry], {"version": "1"}, tmp_path / "copy.sqlite")
    notes = LessonNotes()
    with CardDatabase.open_copy(tmp_path / "copy.sqlite") as database:
        own = database.card_by_id(7).own_words()
        (row,) = card_lessons(
            "cards", CardOptions(), database, [], decided=[], notes=notes,
            month=[("Achichi @Ignister, 800 ATK.", own), ("Thanks, @mira!", "")],
            private=PrivateWords(),
        )  # fmt: skip
    assert "Name: Achichi @Ignister" in row["prompt"][1]["content"]
    assert notes.to_sentences() == ["Left out: 1 posts of the last month with something private."]


# ----------------------------------------------------------------------------------------------------------
# Articles


def shelf(**texts: str) -> None:
    """Articles that were read already, on the list and in the cache."""
    cache = ArticleCache.at_home()
    with ReadingList.at_home() as reading:
        for name, text in texts.items():
            url = f"https://a.example/{name}"
            reading.add_url(url, name)
            found = Article(text, "html", title=f"About {name}", date="2026-11-02", url=url)
            cache.put_value(cache_key("page", url, False, False), found.as_dict())
    cache.close()


LONG = "The harbour was dredged again in spring. " * 30


def test_articles_are_asked_for_as_the_digest_asks(elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text(
        '[bots.digest]\nblocked = ["Geheimhaus"]\n[bots.digest.options]\nlength = "short"\nlanguage = "de"\n'
    )
    shelf(
        harbour=LONG, secret=f"{LONG} Geheimhaus pays.", people=f"{LONG} Ask @mira or bo@x.example."
    )
    found = lessons(elsewhere, "digest")
    task = "Write a summary of 1 sentence. Write in German."
    row = found["https://a.example/harbour"]
    assert row["prompt"] == summary_messages(LONG, task)
    assert (row["text"], row["about"]) == (LONG, "About harbour\n2026-11-02")
    assert (row["asked"]["points"], row["asked"]["language"]) == (1, "de")
    assert len(found) == 2, "the one with a blocked word is left out"
    assert found["https://a.example/people"]["text"].endswith("Ask (…) or (…).")
    assert "messages" not in row


def test_a_text_that_does_not_fit_is_asked_for_in_parts(elsewhere: Path) -> None:
    shelf(harbour=LONG * 6)
    (elsewhere / "rig.toml").write_text("[bots.digest]\n")
    write_bot_lessons("digest", "lessons.jsonl", 1024)
    text = (elsewhere / "lessons.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) > 3
    assert "".join(row["text"] for row in rows) == LONG * 6
    assert {row["prompt"][0]["content"].rpartition("says. ")[2] for row in rows} == {
        "Write a summary of 6 sentences."
    }


def test_a_digest_s_approved_summary_is_the_one_to_copy(elsewhere: Path) -> None:
    shelf(harbour=LONG)
    (elsewhere / "rig.toml").write_text("[bots.digest]\n")
    ledger = process.open_ledger()
    url = "https://a.example/harbour"
    text = f"About harbour\nIt was dredged.\n{url}"
    number = put(ledger, 1, "digest", Draft(text, url, links=True, data={"urls": [url]}))
    review.approve_draft(ledger, number, NOW)
    row = lessons(elsewhere, "digest")[url]
    assert row["messages"][-1] == {"role": "assistant", "content": "It was dredged."}
    assert row["posts"][0]["wanted"] == "It was dredged."


def test_what_cannot_be_a_lesson_says_why(elsewhere: Path) -> None:
    (elsewhere / "mine.py").write_text("def talk(context): return None\n")
    (elsewhere / "rig.toml").write_text('[bots.mine]\nrun = "mine.py:talk"\n[bots.digest]\n')
    for bot, why in (("mine", "function of your own"), ("digest", "nothing to make lessons")):
        with pytest.raises(WrongUse, match=why):
            write_bot_lessons(bot, "lessons.jsonl", 4096)
    assert not (elsewhere / "lessons.jsonl").exists()


@pytest.mark.skipif(
    not (SHARED / "data" / "ygo").exists(), reason="needs the real cards in ../shared"
)
def test_real_cards_make_lessons_that_are_worth_copying(tmp_path: Path) -> None:
    from bots.lessons.rewards import card_post

    entries = json.loads((SHARED / "data" / "ygo" / "cardinfo.json").read_text("utf-8"))["data"]
    replace_copy(entries[::60], {"version": "1"}, tmp_path / "copy.sqlite")
    with CardDatabase.open_copy(tmp_path / "copy.sqlite") as database:
        rows = list(
            card_lessons(
                "cards", CardOptions(), database, [{"outlet": "x", "limit": 280}], decided=[],
                month=[], private=PrivateWords(), notes=LessonNotes(),
            )
        )  # fmt: skip
    assert len(rows) == len(entries[::60])
    columns: dict[str, Any] = {
        name: [row[name] for row in rows] for name in ("facts", "limits", "earlier")
    }
    marks = card_post([row["messages"][-1]["content"] for row in rows], **columns)
    assert sum(mark or 0 for mark in marks) / len(marks) > 0.65
