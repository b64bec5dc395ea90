"""A post of X whose answer was lost is found again, whatever X made of its text:
`pytest tests/test_bots_outlets_x_found.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox
from bots.outlets import x as module
from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.build import build_outlet
from bots.outlets.errors import Rejected, Unclear
from bots.outlets.same_text import is_same_text
from support.daemons import by_hand, keep_x_secrets, settings
from support.fake_x import SECRETS, Event, FakeX
from support.simulated import Clock, simulated

TEXTS = [
    "A harbour reopens\nThe old harbour takes ships again.\nhttps://news.example/harbour",
    "See https://a.example/story for more.",
    "See (https://a.example/story), and https://b.example/x?a=1&b=2#end!",
    "Visit rig.dev today.",
    "Now on Node.js and https://docs.example/guide/",
    "https://a.example/first is where it begins",
    "詳しくは https://news.example/a。次の記事もどうぞ。",
    "5 < 6 & 7 > 2, “so they say” \N{EM DASH} e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}",
    "  a  post\n\n\nwith odd   spaces ",
    "https://müller.example/straße/1 is a page",
    "100 % of it: https://a.example/100%25/caf%C3%A9",
    "At the end two: https://a.example/1 https://a.example/2",
]


@pytest.fixture
def fake() -> Iterator[FakeX]:
    with FakeX() as server:
        yield server


@pytest.fixture
def x(fake: FakeX) -> Outlet:
    return build_outlet("x", {"x": {"api": fake.url}}, SECRETS)


def post(text: str, **more: Any) -> Post:
    return Post("digest", datetime.now(UTC).replace(microsecond=0), text, "key", **more)


@pytest.mark.parametrize("explains", [True, False], ids=["entities", "no entities"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_with_links_is_found(x: Outlet, fake: FakeX, text: str, explains: bool) -> None:
    fake.explains = explains
    fake.will(Event("drop", stored=True))
    one = post(text)
    with pytest.raises(Unclear):
        x.send_post(one)
    for other in range(20):  # what else the account says meanwhile: more than a page
        fake._keep(f"Something else, number {other}. https://a.example/{other}", [])
    assert x.find_post(one) == fake.stored[0]["id"]


@pytest.mark.parametrize("text", TEXTS)
def test_with_a_picture_it_is_found_too(x: Outlet, fake: FakeX, text: str, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"\xff\xd8\xff")
    one = post(text, image=picture, alt="A harbour.")
    media = x.prepare_post(one, "")
    fake.will(Event("internal_error", stored=True))
    sent = post(text, image=picture, alt="A harbour.", media=media)
    with pytest.raises(Unclear):
        x.send_post(sent)
    assert x.find_post(sent) == fake.stored[0]["id"]


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("Read https://a.example/one", "Read https://a.example/two"),
        ("Read https://a.example/one", "Read"),
        ("Read", "Read https://a.example/one"),
        ("Read https://a.example/one today", "Read https://a.example/one tonight"),
        ("rig.dev is cool", "rig.io is cool"),
        (
            "Two https://a.example/1 https://a.example/2",
            "Two https://a.example/2 https://a.example/1",
        ),
    ],
)
def test_another_text_or_another_link_is_not_it(
    x: Outlet, fake: FakeX, there: str, asked: str
) -> None:
    x.send_post(post(there))
    assert x.find_post(post(asked)) == LOST


def test_a_text_that_is_cut_is_found_by_its_whole_or_its_beginning(x: Outlet, fake: FakeX) -> None:
    fake.cut = 80
    long = "The council of Lisk has voted for the new crane, after a debate of nine hours, by one vote. "
    one = post(f"{long}https://a.example/crane")
    x.send_post(one)
    assert x.find_post(one) == fake.stored[0]["id"]
    assert is_same_text(
        one.text, "The council of Lisk has voted for the new crane, after… https://t.co/x"
    )
    assert not is_same_text(
        one.text, "The council of Lisk has voted against the crane, after… https://t.co/x"
    )
    assert not is_same_text(one.text, "The council… https://t.co/x")


def test_a_moment_that_has_not_come_for_x_is_left_out(x: Outlet, fake: FakeX) -> None:
    ahead = Post("digest", datetime.now(UTC) + timedelta(days=2), TEXTS[0], "key")
    number = x.send_post(ahead)
    assert x.find_post(ahead) == number


def test_a_duplicate_that_was_taken_for_lost_yesterday_is_found(x: Outlet, fake: FakeX) -> None:
    fake._keep(TEXTS[0], [])
    fake.stored[0]["created_at"] = (
        f"{datetime.now(UTC) - timedelta(hours=20):%Y-%m-%dT%H:%M:%S.000Z}"
    )
    assert x.find_post(post(TEXTS[0])) == LOST
    assert x.send_post(post(TEXTS[0])) == fake.stored[0]["id"]
    fake.stored[0]["created_at"] = "2020-01-01T00:00:00.000Z"
    with pytest.raises(Rejected, match="same text before"):
        x.send_post(post(TEXTS[0]))


BOT = """
from bots.bot import Draft, bots

told = []


def one(context):
    if told or context.slot.hour > {last}:
        return None
    return Draft({text!r}, subject="s", links=True)


one.delivered = told.append
"""


def days(
    home: Path, fake: FakeX, clock: Clock, text: str, hours: int
) -> tuple[list[Any], list[Any]]:
    """A bot that says `text` until it hears that it was delivered; what became of it, what it heard."""
    path = home / "one.py"
    path.write_text(BOT.format(text=text, last=23))
    keep_x_secrets(home)
    bot = {"run": f"{path}:one", "schedule": "0 */2 * * *", "outlets": ["x"]}
    found = settings({"one": bot}, {"x": {"api": fake.url}})
    ledger = Ledger.open(f"sqlite:///{home}/l.sqlite")
    daemon, scheduler = by_hand(found, ledger, clock)
    switches.set_enabled(ledger, "one", True, "0 */2 * * *", clock())
    scheduler.until(clock.now + timedelta(hours=hours))
    with ledger.read_transaction() as connection:
        rows = list(connection.execute(select(outbox).order_by(outbox.c.slot)).all())
    heard = daemon.deliverer.functions["one"].__globals__["told"]
    ledger.close()
    return rows, heard


@pytest.mark.parametrize(
    "text", [TEXTS[0], "A harbour reopens. The old harbour takes ships again."]
)
def test_the_answer_lost_it_counts_as_sent_and_the_bot_hears_of_it(
    own_home: Path, text: str
) -> None:
    clock = Clock(datetime(2026, 11, 22, 13, 59, tzinfo=UTC))
    with FakeX(clock) as fake, simulated(clock):
        fake.will(Event("drop", stored=True))
        fake.lag = timedelta(seconds=50)
        rows, heard = days(own_home, fake, clock, text, 7)
        assert [(r.state, r.attempt, r.external_id) for r in rows] == [
            ("sent", 1, fake.stored[0]["id"])
        ]
        assert [d.external_id for d in heard] == [fake.stored[0]["id"]]
        assert len(fake.attempts) == 1


def test_a_post_taken_for_lost_is_found_by_the_next_attempt(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X hides it for hours, the slot is over; the same text of the next slot then names the first."""
    clock = Clock(datetime(2026, 11, 22, 13, 59, tzinfo=UTC))
    monkeypatch.setattr(module, "READ", 1.0)
    with FakeX(clock) as fake, simulated(clock):
        fake.will(Event("drop", stored=True))
        fake.lag = timedelta(minutes=100)
        rows, heard = days(own_home, fake, clock, TEXTS[0], 7)
        assert len(fake.stored) == 1
        assert rows[-1].state == "sent"
        assert {d.external_id for d in heard} == {fake.stored[0]["id"]}


def test_what_was_said_before_is_not_taken_for_this_post(own_home: Path) -> None:
    """A bot that may say the same each day: the earlier post has a row of its own."""
    clock = Clock(datetime(2026, 11, 22, 13, 59, tzinfo=UTC))
    with FakeX(clock) as fake, simulated(clock):
        days(own_home, fake, clock, TEXTS[0], 2)
        ledger = Ledger.open(f"sqlite:///{own_home}/l.sqlite")
        with ledger.write_transaction() as connection:  # years of texts lie between them
            connection.execute(outbox.update().values(text="Something else."))
        ledger.close()
        rows, heard = days(own_home, fake, clock, TEXTS[0], 2)
        assert [r.state for r in rows] == ["sent", "failed"]
        assert "same text before" in rows[1].reason
        assert heard == []
