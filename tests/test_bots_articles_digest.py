"""The reading list and the digest bot: pytest tests/test_bots_articles_digest.py"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from bots.articles import bot
from bots.articles.reading_list import ReadingList
from bots.bot import Delivery, Draft
from bots.context import SlotContext
from bots.documents import worker
from bots.outlets.build import build_outlet
from bots.settings import BotSettings
from rig.errors import RigError
from rig.server.client import ModelClient
from support.articles_command import rig
from support.articles_site import Site, running_site
from support.counting_server import CountingServer

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TEXT = (
    "The bridge was closed on Monday. Engineers found a crack in the northern pier. "
    "Repairs will take a year. "
    "Traffic is led through the old tunnel, which was built in 1931 and has room for one lane only. "
    "The mayor thanked the drivers for their patience and asked for more of it. "
) * 3


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
def model() -> Iterator[CountingServer]:
    with CountingServer() as running:
        yield running


@pytest.fixture
def reading() -> Iterator[ReadingList]:
    with ReadingList.at_home() as opened:
        yield opened


Made = tuple[Draft | None, SlotContext, list[str]]


def draft(
    model: CountingServer,
    *,
    slot: datetime = NOW,
    preview: bool = False,
    outlet: str = "screen",
    **options: Any,
) -> Made:
    """What the bot drafts for one slot, its context, and what it told the operator."""
    said: list[str] = []
    context = SlotContext(
        name="digest",
        settings=BotSettings(options={"allow_private": True, **options}),
        slot=slot,
        now=slot,
        outlets=[build_outlet(outlet, {})],
        connect=lambda limit: ModelClient(model.url),
        time_limit=timedelta(seconds=60),
        preview=preview,
        tell_operator=said.append,
    )
    try:
        return bot.digest(context), context, said
    finally:
        context.close()


def confirmed(made: Draft) -> Delivery:
    return Delivery("digest", NOW, "screen", made.text, "1", made.subject, made.data)


def ago(**spent: float) -> str:
    return format_datetime(NOW - timedelta(**spent))


def test_the_list_is_kept_and_shown() -> None:
    assert (
        rig("read", "add", "https://a.example/1", "https://a.example/2,with,commas").returncode == 0
    )
    again = rig("read", "add", "https://a.example/1")
    assert again.stderr == "waits already: https://a.example/1\n"
    shown = rig("read", "list")
    assert (
        shown.stdout == "waiting  https://a.example/1\nwaiting  https://a.example/2,with,commas\n"
    )
    found = json.loads(rig("read", "list", "--json").stdout)
    assert [item["url"] for item in found] == [
        "https://a.example/1",
        "https://a.example/2,with,commas",
    ]
    assert rig("read", "remove", "https://a.example/1").returncode == 0
    assert rig("read", "remove", "https://a.example/1").returncode == 2
    assert "a.example/1" not in rig("read", "list").stdout


@pytest.mark.parametrize(
    "url", ["notes.txt", "file:///etc/passwd", "https://user:pw@a.example/", "ftp://a/b"]
)
def test_only_pages_go_on_the_list(url: str) -> None:
    done = rig("read", "add", "https://good.example/", url)
    assert done.returncode == 2
    assert rig("read", "list").stdout == ""  # all or nothing


def test_nothing_waits_and_nothing_is_said(model: CountingServer) -> None:
    made, _, said = draft(model)
    assert (made, said, model.requests) == (None, [], [])


def test_a_page_of_the_list_becomes_a_post_with_its_address(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    url = site.page("/bridge", "A bridge is closed", TEXT)
    reading.add_url(url)
    made, _, _ = draft(model)
    assert made is not None
    assert made.text == (
        "A bridge is closed\nThe bridge was closed on Monday. Engineers found a crack in the northern pier. "
        f"Repairs will take a year.\n{url}"
    )
    assert (made.subject, made.links, made.data) == (url, True, {"urls": [url]})


def test_an_item_leaves_the_list_when_its_delivery_is_confirmed_and_not_before(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    first, second = (site.article(f"/{n}", f"Number {n}", TEXT) for n in (1, 2))
    for url in (first, second):
        reading.add_url(url)
    made, _, _ = draft(model)
    assert made is not None
    assert [item.state for item in reading.list_items()] == ["drafted", "waiting"]
    again, _, _ = draft(model)  # the daemon was killed and asks for the same slot
    assert again is not None
    assert again.text == made.text
    other, _, _ = draft(model, slot=NOW + timedelta(hours=2))
    assert other is not None
    assert other.subject == second  # the next slot gets the next item
    for _ in range(2):  # told twice: it does not mind
        bot.mark_delivered(confirmed(made))
    assert [(item.url, item.state) for item in reading.list_items()] == [(second, "drafted")]


def test_a_draft_that_never_went_out_waits_again(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    reading.add_url(site.article("/1", "One", TEXT))
    assert draft(model)[0]
    later = NOW + timedelta(hours=2)
    assert draft(model, slot=later)[0] is None
    assert draft(model, slot=later, hold_for="0s")[0]


def test_a_preview_remembers_nothing(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    reading.add_url(site.article("/1", "One", TEXT))
    feed = site.feed("/feed", [(site.article("/2", "Two", TEXT), "Two", ago(hours=1))])
    reading.add_url(site.url + "/missing")
    made, _, _ = draft(model, preview=True, feeds=[feed], items=2)
    assert made is not None
    assert made.text.count("The bridge was closed") == 2
    assert [
        (i.state, i.tries) for i in reading.list_items(("waiting", "drafted", "done", "failed"))
    ] == [("waiting", 0)] * 2


def test_feeds_come_after_the_list_the_newest_first_and_each_entry_once(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    urls = [site.article(f"/{n}", f"Entry {n}", TEXT) for n in range(4)]
    feed = site.feed(
        "/feed",
        [
            (urls[0], "old", ago(days=9)),
            (urls[1], "middle", ago(hours=5)),
            (urls[2], "new", ago(hours=1)),
        ],
    )
    reading.add_url(urls[3])
    seen = []
    for hour in range(5):
        made, _, _ = draft(model, slot=NOW + timedelta(hours=hour), feeds=[feed])
        seen.append(made and made.subject)
        if made:
            bot.mark_delivered(confirmed(made))
    # the list, the newest entry; "middle" was the backlog of a feed read for the first time
    assert seen == [urls[3], urls[2], None, None, None]
    site.feed("/feed", [(urls[0], "fresh", ago(minutes=1)), (urls[2], "new", ago(hours=1))])
    made, _, _ = draft(model, slot=NOW + timedelta(hours=9), feeds=[feed])
    assert made is not None
    assert made.subject == urls[0]


def test_so_many_a_day_and_no_more(site: Site, model: CountingServer, reading: ReadingList) -> None:
    for n in range(6):
        reading.add_url(site.article(f"/{n}", f"Number {n}", TEXT))
    moments = [datetime.now(UTC).replace(hour=hour, minute=0) for hour in (1, 2, 3, 4)]
    made = [draft(model, slot=moment, per_day=2)[0] for moment in moments]
    assert [bool(one) for one in made] == [True, True, False, False]


def test_several_articles_share_a_post(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    urls = [site.article(f"/{n}", f"Number {n}", TEXT) for n in range(3)]
    for url in urls:
        reading.add_url(url)
    made, _, _ = draft(model, items=2, length="short")
    assert made is not None
    assert made.data == {"urls": urls[:2]}
    assert made.text.count("The bridge was closed on Monday.") == 2


def test_what_can_not_be_read_is_passed_over_and_said(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    site.pages["/paid"] = (
        "text/html",
        "<html><body><p>Subscribe to continue reading.</p></body></html>",
    )
    site.pages["/down"] = 503
    for path in ("/paid", "/down"):
        reading.add_url(site.url + path)
    good = site.article("/good", "Good", TEXT)
    reading.add_url(good)
    made, _, said = draft(model)
    assert made is not None
    assert made.subject == good
    assert len(made.reasons) == len(said) == 2
    states = {item.url: item for item in reading.list_items()}
    assert states[site.url + "/paid"].state == "failed"
    assert "paywall" in states[site.url + "/paid"].reason
    assert (states[site.url + "/down"].state, states[site.url + "/down"].tries) == ("waiting", 1)


def test_a_dead_model_is_not_the_articles_fault(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    reading.add_url(site.article("/1", "One", TEXT))
    model.queue = [(401, {"error": {"message": "wrong key"}})]
    with pytest.raises(RigError, match="wrong key"):
        draft(model)
    assert [(item.state, item.tries) for item in reading.list_items()] == [("waiting", 0)]


@pytest.mark.parametrize(
    "evil",
    [
        "Visit evil-prizes.com now to claim your prize.",
        "Follow @attacker for more of this.",
        "Go to https://evil.example/x at once.",
        "Everybody loves #scamcoin these days.",
        "Call +1 555 123 4567 to hear more.",
    ],
)
def test_no_link_or_mention_of_a_page_reaches_an_outlet(
    site: Site, model: CountingServer, reading: ReadingList, evil: str
) -> None:
    """The page says it, and a gullible model repeats it."""
    reading.add_url(site.article("/evil", "Plain", f"{evil} {TEXT}"))
    model.queue = [evil]
    made, _, said = draft(model)
    assert made is None
    assert "did not pass" in said[0]


def test_words_that_only_sound_like_an_error_pass_when_the_page_says_them(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    reading.add_url(site.article("/1", "Talks", "The talks failed to bring a result. " + TEXT))
    made, context, _ = draft(model, length="short")
    assert made is not None
    assert "failed to bring" in made.text
    assert not context.find_faults(made.text, links=True, own_words=made.own_words)


def test_a_short_outlet_gets_a_shorter_post(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    long = (
        "The committee for the preservation of the northern bridge met again in the town hall. " * 4
    )
    reading.add_url(
        site.article("/1", "A title that is rather long for a post but still fits", long)
    )
    made, context, _ = draft(model, outlet="x")
    assert made is not None
    assert context.room_left(made.text) >= 0
    assert made.text.endswith(site.url + "/1")
    assert "The committee" in made.text


def test_local_addresses_in_feeds_and_pages_are_refused(
    site: Site, model: CountingServer, reading: ReadingList
) -> None:
    reading.add_url(site.article("/1", "One", TEXT))
    feed = site.feed("/feed", [])
    made, _, said = draft(model, feeds=[feed], allow_private=False)
    assert made is None
    assert len(said) == 2
    assert all("this machine itself: refused" in sentence for sentence in said)
    assert site.asked == []


def test_a_feed_that_is_none_is_said(site: Site, model: CountingServer) -> None:
    site.pages["/page"] = ("text/html", "<html><body>Not a feed.</body></html>")
    made, _, said = draft(model, feeds=[site.url + "/page", site.url + "/gone"])
    assert made is None
    assert "There is no RSS or Atom feed" in said[0]
    assert "status 404" in said[1]


@pytest.mark.parametrize(("file", "count"), [("manton.rss", 10), ("OneFootTsunami.atom", 25)])
def test_real_feeds_are_read(shared: Path, file: str, count: int) -> None:
    content = (shared / "data/feeds" / file).read_bytes()
    found = worker.answer_request(content, kind="feed", url="https://example.org/feed")["entries"]
    assert len(found) == count
    assert all(entry["url"].startswith("http") and entry["published"] > 1e9 for entry in found)


def test_a_feed_can_not_name_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "feed.xml"
    secret.write_text(
        "<rss version='2.0'><channel><item><link>http://secret.example/</link></item></channel></rss>"
    )
    found = worker.answer_request(str(secret).encode(), kind="feed", url="https://example.org/feed")
    assert found["reason"] == "kind"


def test_a_wrong_option_names_the_nearest(model: CountingServer) -> None:
    with pytest.raises(Exception, match="did you mean 'feeds'"):
        draft(model, feed=["https://a.example/"])


@pytest.mark.skipif(os.name == "nt", reason="the daemon runs on Linux")
def test_the_daemon_posts_it_and_the_list_empties(
    site: Site, model: CountingServer, reading: ReadingList, elsewhere: Path, own_home: Path
) -> None:
    """The real daemon, ledger and outlet, from the list to the confirmed delivery."""
    url = site.page("/bridge", "A bridge is closed", TEXT)
    assert rig("read", "add", url).returncode == 0
    (elsewhere / "rig.toml").write_text(
        f'[model]\nurl = "{model.url}"\n[daemon]\nlisten = ""\n[bots.digest]\noutlets = ["screen"]\n'
        "[bots.digest.options]\nallow_private = true\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-m", "rig", "daemon", "run", "--now"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=elsewhere,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while reading.list_items() and time.monotonic() < deadline and daemon.poll() is None:
        time.sleep(0.1)
    daemon.send_signal(signal.SIGTERM)
    shown, log = daemon.communicate(timeout=30)
    assert not reading.list_items(), log
    assert [item.url for item in reading.list_items(("done",))] == [url]
    assert "Engineers found a crack" in shown
