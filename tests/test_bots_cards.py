"""The card bot on invented cards and a model that says what it is told: `pytest tests/test_bots_cards.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bots.bot import Draft, Skip
from bots.cards import images, refresh
from bots.cards.bot import cards
from bots.cards.card import Card
from bots.cards.database import CardDatabase, CardPool, database_path, replace_copy
from bots.cards.prompts import CARD_SCHEMA
from bots.context import SlotContext
from bots.ledger.deck import LedgerDeck
from bots.ledger.store import Ledger
from bots.outlets.build import build_outlet
from bots.settings import BotSettings
from rig.errors import RigError, WrongUse
from rig.server.client import ModelClient
from support.fake_services import Service
from support.fakes_model import FakeModel, about_the_card

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HERON = "Lantern Heron: 1200 ATK and a light in the dark."


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(about_the_card) as running:
        yield running


def drafted(model: FakeModel, posted: list[str] | None = None, **options: Any) -> Draft:
    found = BotSettings(options={"source": "samples", "card": "Lantern Heron", **options})
    context = SlotContext(
        name="cards",
        settings=found,
        slot=NOW,
        now=NOW,
        outlets=[build_outlet("x", {})],
        connect=lambda limit: ModelClient(model.url, priority="bot", timeout=limit),
        time_limit=timedelta(seconds=20),
        history=lambda limit: posted or [],
    )
    try:
        draft = cards(context)
    finally:
        context.close()
    assert draft is not None
    return draft


def says(post: str) -> str:
    return json.dumps({"post": post})


def test_a_good_post_is_taken_at_once(model: FakeModel) -> None:
    model.will_say(says(HERON))
    draft = drafted(model)
    assert (draft.text, draft.source, draft.attempts) == (HERON, "model", 1)
    request = model.history[0]
    facts = request["messages"][1]["content"].splitlines()
    assert [line.partition(":")[0] for line in facts] == [
        "Name", "Card", "Attribute", "Type", "Level", "ATK", "DEF", "Text",
    ]  # fmt: skip
    assert request["response_format"]["json_schema"]["schema"] == CARD_SCHEMA
    assert model.priorities == ["bot"]


def test_a_refused_post_is_asked_for_again_with_the_reason(model: FakeModel) -> None:
    model.will_say(says("Lantern Heron: 1500 ATK."), says(HERON))
    draft = drafted(model)
    assert (draft.text, draft.attempts) == (HERON, 2)
    assert draft.reasons == ("The number 1500 is not among the facts.",)
    again = model.history[1]["messages"]
    assert again[2]["content"] == says("Lantern Heron: 1500 ATK.")
    assert again[3]["content"].startswith("Refused: The number 1500 is not among the facts.")


def test_after_four_refusals_the_facts_speak_for_themselves(model: FakeModel) -> None:
    model.will_say(*[says("I'm sorry, I can't.")] * 4)
    draft = drafted(model)
    assert draft.source == "template"
    assert draft.attempts == len(draft.reasons) == 4
    assert "Lantern Heron" in draft.text
    assert "1200" in draft.text


def test_or_the_slot_is_left_out(model: FakeModel) -> None:
    model.will_say(*[says("Error: Unable to fetch trivia.")] * 4)
    with pytest.raises(Skip, match="does not contain the card's name"):
        drafted(model, fallback="skip")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Lantern Heron", "not valid JSON"),
        ('{"text": "Lantern Heron"}', "no post in it"),
        ('["Lantern Heron"]', "no post in it"),
        ('{"post": ""}', "no post in it"),
    ],
)
def test_an_answer_in_another_form_is_refused(model: FakeModel, reply: str, reason: str) -> None:
    model.will_say(reply, says(HERON))
    assert reason in drafted(model).reasons[0]


def test_an_answer_that_was_cut_off_is_refused(model: FakeModel) -> None:
    model.finish = "length"
    draft = drafted(model)
    assert draft.source == "template"
    assert set(draft.reasons) == {"The post is too long."}


@pytest.mark.parametrize("status", [503, 429])
def test_a_model_that_is_down_or_busy_leaves_it_to_the_facts(model: FakeModel, status: int) -> None:
    model.will_say((status, "all slots are taken"))
    draft = drafted(model)
    assert draft.source == "template"
    assert "busy" in draft.reasons[0]


def test_a_model_that_never_answers_is_left_behind(model: FakeModel) -> None:
    model.delay = 30
    context = SlotContext(
        name="cards",
        settings=BotSettings(options={"source": "samples"}),
        slot=NOW,
        now=NOW,
        outlets=[],
        connect=lambda limit: ModelClient(model.url, timeout=60),
        time_limit=timedelta(seconds=0.5),
    )
    draft = cards(context)
    assert draft is not None
    assert draft.source == "template"
    assert "no answer within" in draft.reasons[0]


def test_what_was_posted_is_not_posted_again(model: FakeModel) -> None:
    model.will_say(says(HERON), says("A light in the dark: Lantern Heron spreads its wings."))
    draft = drafted(model, posted=[HERON + "!"])
    assert draft.attempts == 2
    assert "same as an earlier one" in draft.reasons[0]


def test_a_text_that_does_not_fit_the_context_is_shortened(model: FakeModel) -> None:
    def small(body: dict[str, Any]) -> str | tuple[int, str]:
        if len(body["messages"][1]["content"]) < 200:
            return about_the_card(body)
        return 400, "the request exceeds the available context size"

    model.otherwise = small
    draft = drafted(model)
    assert draft.source == "model"
    assert draft.attempts > 1
    assert "does not fit the model's context" in draft.reasons[0]


def test_a_model_that_refuses_the_key_is_no_reason_for_a_template(model: FakeModel) -> None:
    model.will_say((401, "Wrong key."))
    with pytest.raises(RigError, match="RIG_API_KEY"):
        drafted(model)


def test_every_card_once_before_any_returns(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    pool = [str(number) for number in range(40)]
    drawn = [
        LedgerDeck(ledger, "cards", NOW + n * timedelta(hours=2)).draw(pool) for n in range(120)
    ]
    for begin in (0, 40, 80):
        assert sorted(drawn[begin : begin + 40]) == sorted(pool)
    assert drawn[:40] != drawn[40:80]
    assert not set(drawn[30:40]) & set(drawn[40:45]), "the last of a round do not open the next"
    assert LedgerDeck(ledger, "cards", NOW).draw(pool) == drawn[0], (
        "a slot tried again has its card"
    )
    other = LedgerDeck(ledger, "other", NOW).draw(pool)
    assert other in pool
    ledger.close()


def test_new_cards_join_the_round(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    for number in range(3):
        LedgerDeck(ledger, "cards", NOW + number * timedelta(hours=2)).draw(["1", "2", "3"])
    drawn = LedgerDeck(ledger, "cards", NOW + timedelta(days=1)).draw(["1", "2", "3", "4"])
    assert drawn == "4"
    ledger.close()


def api(pages: list[list[dict[str, Any]]], version: list[str]) -> Service:
    """YGOPRODeck: its version, and its cards in pages."""

    def answer(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        if path == "/checkDBVer.php":
            return 200, [{"database_version": version[0], "last_update": "2026-01-01 00:00:00"}]
        offset = int(path.rpartition("offset=")[2].partition("&")[0])
        number = offset // refresh.PAGE
        rest = sum(map(len, pages[number + 1 :]))
        meta = {"rows_remaining": rest, "next_page_offset": offset + refresh.PAGE}
        return 200, {"data": pages[number], "meta": meta}

    return Service(answer)


def entry(number: int) -> dict[str, Any]:
    """A card; every second one is older and in the goat format."""
    old = {"formats": ["TCG", "GOAT"], "tcg_date": "2003-01-01"}
    return {
        "id": number,
        "name": f"Card {number}",
        "type": "Effect Monster",
        "frameType": "effect",
        "desc": "It waits.",
        "race": "Rock",
        "atk": 100,
        "def": -1,
        "level": 4,
        "attribute": "EARTH",
        "card_sets": [{"set_name": "First Set"}, {"set_name": "First Set"}],
        "misc_info": [old if number % 2 else {"tcg_date": "2010-01-01"}],
    }


def test_the_copy_is_fetched_page_by_page_and_only_when_it_changed(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "PAUSE", 0.0)
    monkeypatch.setattr(refresh, "PAGE", 3)
    version = ["1.0"]
    with api([[entry(1), entry(2), entry(3)], [entry(4), entry(5)]], version) as service:
        assert refresh.refresh_due(NOW)
        assert refresh.refresh_cards(service.url, now=NOW) == "5 cards, version 1.0."
        assert "newest" in refresh.refresh_cards(service.url, now=NOW)
        asked = [path.partition("?")[0] for _, path, _ in service.history]
        assert asked == ["/checkDBVer.php", "/cardinfo.php", "/cardinfo.php", "/checkDBVer.php"]
        assert not refresh.refresh_due(NOW + timedelta(hours=23))
        assert refresh.refresh_due(NOW + timedelta(hours=25))
        version[0] = "1.1"
        assert "version 1.1" in refresh.refresh_cards(service.url, now=NOW)
    with CardDatabase.open_copy() as database:
        assert len(database) == 5
        assert len(database.pool_ids(CardPool(format="goat"))) == 3
        assert len(database.pool_ids(CardPool(before=NOW.date().replace(2005)))) == 3
        assert len(database.pool_ids(CardPool(sets=("first set",)))) == 5
        with pytest.raises(WrongUse, match="did you mean 'first set'"):
            database.pool_ids(CardPool(sets=("Frist Set",)))
        with pytest.raises(WrongUse, match="No card is in this pool"):
            database.pool_ids(CardPool(types=("Dragon",)))


def test_after_a_failure_the_old_copy_serves_and_nothing_is_asked_for_an_hour(
    own_home: Path,
) -> None:
    replace_copy([entry(1)], {"version": "1.0"})
    with api([[]], ["2.0"]) as service:
        service.queue.clear()
    with pytest.raises(RigError, match="could not be read"):
        refresh.refresh_cards(service.url, now=NOW)
    with pytest.raises(RigError, match="left alone"):
        refresh.refresh_cards(service.url, now=NOW + timedelta(minutes=59))
    assert not refresh.refresh_due(NOW + timedelta(minutes=59))
    assert refresh.refresh_due(NOW + timedelta(minutes=61))
    with CardDatabase.open_copy() as database:
        assert len(database) == 1


def test_half_an_answer_leaves_the_old_copy(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "PAUSE", 0.0)
    monkeypatch.setattr(refresh, "PAGE", 1)
    replace_copy([entry(1)], {"version": "1.0"})
    with api([[entry(1)], [{"id": 2}]], ["2.0"]) as service, pytest.raises(RigError):
        refresh.refresh_cards(service.url, now=NOW)
    with CardDatabase.open_copy() as database:
        assert database.copy_info()["version"] == "1.0"
    assert [
        path.name for path in database_path().parent.iterdir() if path.name.endswith(".part")
    ] == []


def test_a_picture_is_pulled_once(own_home: Path) -> None:
    pulls: list[str] = []
    picture = b"\xff\xd8\xff" + bytes(50)

    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pulls.append(self.path)
            body = picture if self.path == "/7.jpg" else b"<html>not a picture</html>"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        card = Card(
            7,
            'A "/strange" name',
            "Normal Spell",
            image=f"http://127.0.0.1:{server.server_port}/7.jpg",
        )
        draft = Draft("text")
        first = images.attach_picture(draft, card, "Words.")
        second = images.attach_picture(draft, card, "Words.")
        assert first.image == second.image
        assert first.image is not None
        assert first.image.read_bytes() == picture
        assert pulls == ["/7.jpg"]
        bad = Card(8, "Bad", "Normal Spell", image=f"http://127.0.0.1:{server.server_port}/8.jpg")
        without = images.attach_picture(draft, bad, "Words.")
        assert without.image is None
        assert "no JPEG" in without.reasons[0]
    finally:
        server.shutdown()
        server.server_close()


def test_a_misspelt_option_of_the_bot_names_the_nearest(model: FakeModel) -> None:
    with pytest.raises(WrongUse, match="did you mean 'temperature'"):
        drafted(model, temprature=1)
