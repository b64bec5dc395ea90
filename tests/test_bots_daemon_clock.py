"""A clock that was wrong silences nothing: `pytest tests/test_bots_daemon_clock.py`."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import select, update

from bots.daemon.scheduler import Daemon
from bots.ledger import slots, switches
from bots.ledger.clock import LedgerClock
from bots.ledger.store import Ledger
from bots.ledger.tables import bots as bots_table
from bots.ledger.tables import outbox, runs
from bots.outlets import x as x_module
from bots.outlets.errors import Halt, NotSent
from support.daemons import by_hand, keep_x_secrets, memory_folder, settings, tick
from support.fake_x import Event, FakeX
from support.simulated import ByHand, WrongClock, simulated

START = datetime(2026, 3, 28, 23, 50, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Scene:
    """One daemon by hand, its bot on X and in a file, and a clock that can be wrong."""

    def __init__(
        self, home: Path, memory: Path, fake: FakeX, clock: WrongClock, heartbeat: str = "20m",
        **bot: Any,
    ) -> None:  # fmt: skip
        keep_x_secrets(home)
        self.home, self.fake, self.clock = home, fake, clock
        usual = {"run": tick(home), "schedule": "0 */2 * * *", "outlets": ["x", "file"]}
        where = {"x": {"api": fake.url}, "file": {"path": str(home / "p.jsonl")}}
        self.found = settings({"one": {**usual, **bot}}, where, heartbeat=heartbeat)
        self.ledger = Ledger.open(f"sqlite:///{memory}/l.sqlite")
        switches.set_enabled(self.ledger, "one", True, "0 */2 * * *", clock())
        self.start()

    def start(self) -> tuple[Daemon, ByHand]:
        self.daemon, self.scheduler = by_hand(self.found, self.ledger, self.clock)
        return self.daemon, self.scheduler

    def lives(self, time: timedelta) -> None:
        self.scheduler.until(self.clock.now + time)

    def off_by(self, error: timedelta) -> None:
        """The clock is set; the daemon notices that as a real one does."""
        self.clock.error = error
        self.daemon.schedule_jobs()
        self.scheduler.step()

    def filed(self) -> list[str]:
        path = self.home / "p.jsonl"
        return [json.loads(line)["slot"] for line in path.read_text().splitlines()]

    def states(self) -> Counter[str]:
        with self.ledger.read_transaction() as connection:
            return Counter(connection.scalars(select(runs.c.state)))

    def posts(self) -> list[Any]:
        with self.ledger.read_transaction() as connection:
            return list(connection.execute(select(outbox).order_by(outbox.c.id)).all())


@pytest.fixture
def clock() -> WrongClock:
    return WrongClock(START)


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a day has hundreds of commits."""
    with memory_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def fake(clock: WrongClock) -> Iterator[FakeX]:
    with FakeX(clock.true) as server, simulated(clock):
        yield server


@pytest.mark.parametrize("catch_up", ["skip", "latest"])
@pytest.mark.parametrize(
    ("error", "lasts"),
    [(0 * DAY, MINUTE), (DAY, 2 * MINUTE), (30 * DAY, 2 * MINUTE), (400 * DAY, 9 * MINUTE),
     (3 * HOUR, 2 * MINUTE), (-20 * DAY, 2 * MINUTE), (-3 * HOUR, 30 * MINUTE)],
    ids=str,
)  # fmt: skip
def test_after_a_wrong_time_each_slot_is_still_spoken_for(
    own_home: Path,
    quick: Path,
    fake: FakeX,
    clock: WrongClock,
    error: timedelta,
    lasts: timedelta,
    catch_up: str,
) -> None:
    scene = Scene(own_home, quick, fake, clock, catch_up=catch_up)
    scene.lives(25 * MINUTE)
    scene.off_by(error)
    scene.lives(lasts)
    scene.off_by(0 * DAY)
    scene.lives(24 * HOUR)
    said = [datetime.fromisoformat(slot) for slot in scene.filed()]
    expected = [datetime(2026, 3, 29, tzinfo=UTC) + 2 * HOUR * n for n in range(13)]
    assert set(expected) <= set(said)
    assert len(said) == len(set(said)) <= 13 + 1 + catch_up.count("latest")
    assert len(fake.texts()) == len(said)
    assert fake.duplicates == 0
    assert set(scene.states()) <= {"drafted", "missed"}
    scene.ledger.close()


def test_restarted_in_the_false_future_and_after_it(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rig.bots")
    scene = Scene(own_home, quick, fake, clock)
    scene.lives(25 * MINUTE)
    clock.error = 30 * DAY
    scene.start()
    scene.lives(2 * MINUTE)
    clock.error = 0 * DAY
    scene.start()
    scene.lives(10 * HOUR)
    assert len(scene.filed()) == 1 + 5
    assert re.search(r"ahead until now: 3[56]\d slots were booked as missed too early", caplog.text)
    scene.ledger.close()


def test_a_slot_missed_in_the_false_future_and_slept_over_is_missed_once(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock
) -> None:
    scene = Scene(own_home, quick, fake, clock)
    scene.off_by(2 * DAY)
    scene.lives(2 * MINUTE)
    scene.off_by(0 * DAY)
    clock.now += 9 * HOUR  # asleep
    scene.daemon.schedule_jobs()
    scene.lives(4 * HOUR)
    with scene.ledger.read_transaction() as connection:
        rows = connection.execute(select(runs).order_by(runs.c.slot)).all()
    passed = [row.state for row in rows if row.slot <= clock.now]
    assert passed == ["missed"] * 5 + ["drafted"] * 2
    assert all(row.started <= clock.now for row in rows if row.slot <= clock.now)
    scene.ledger.close()


@pytest.mark.parametrize("since", ["1970-01-01", "2031-05-05"])
def test_a_bot_that_was_enabled_by_a_wrong_clock_speaks(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock, since: str
) -> None:
    scene = Scene(own_home, quick, fake, clock)
    with scene.ledger.write_transaction() as connection:
        moment = datetime.fromisoformat(since).replace(tzinfo=UTC)
        connection.execute(update(bots_table).values(since=moment))
    scene.start()
    scene.lives(5 * HOUR)
    assert scene.states() == {"drafted": 3}
    scene.ledger.close()


@pytest.mark.parametrize("year", [1970, 2000, 2019])
def test_without_a_clock_nothing_is_done_until_it_is_set(
    own_home: Path,
    quick: Path,
    fake: FakeX,
    clock: WrongClock,
    year: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(own_home, quick, fake, clock)
    scene.off_by(datetime(year, 1, 1, tzinfo=UTC) - clock.now)
    scene.lives(5 * HOUR)
    assert not scene.states()
    assert caplog.text.count("nothing is done until it is set") == 1
    assert not scene.daemon.health_problems(), "a restart would not help"
    scene.off_by(0 * DAY)
    scene.lives(4 * HOUR)
    assert scene.states() == {"missed": 3, "drafted": 2}
    scene.ledger.close()


def test_years_that_nobody_slept_over_are_not_entered_one_by_one(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock
) -> None:
    scene = Scene(own_home, quick, fake, clock, schedule="every 1m", posts_per_day=10_000)
    with scene.ledger.write_transaction() as connection:
        moment = datetime(2020, 6, 1, tzinfo=UTC)
        connection.execute(update(bots_table).values(since=moment, schedule="every 1m"))
    began = time.monotonic()
    scene.daemon.drafter.draft_due("one")
    assert time.monotonic() - began < 60
    states = scene.states()
    assert states["drafted"] == 1
    assert 4_000 < states["missed"] <= 10_000
    scene.ledger.close()


def test_a_draft_that_waits_for_a_person_survives_the_false_future(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock
) -> None:
    scene = Scene(own_home, quick, fake, clock, approval="person", approve_within="12h")
    scene.lives(25 * MINUTE)
    scene.off_by(2 * DAY)
    scene.lives(2 * MINUTE)
    assert {row.state for row in scene.posts()} == {"skipped"}
    scene.off_by(0 * DAY)
    assert {row.state for row in scene.posts()} == {"draft"}
    scene.lives(13 * HOUR)
    assert {row.state for row in scene.posts()[:2]} == {"skipped"}, "its own time is over by now"
    scene.ledger.close()


def test_a_post_that_waits_to_be_tried_again_survives_it_too(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock
) -> None:
    scene = Scene(own_home, quick, fake, clock, "2m")
    fake.will("service_unavailable", "service_unavailable", "service_unavailable")
    scene.lives(11 * MINUTE)
    scene.off_by(2 * DAY)
    scene.lives(2 * MINUTE)
    scene.off_by(0 * DAY)
    scene.lives(10 * MINUTE)
    first = next(row for row in scene.posts() if row.outlet == "x")
    assert first.state == "sent"
    scene.ledger.close()


@pytest.mark.parametrize("stored", [True, False])
def test_a_post_that_became_unclear_in_the_false_future_is_cleared_up(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock, stored: bool
) -> None:
    scene = Scene(own_home, quick, fake, clock, "2m", catch_up="latest")
    scene.clock.error = 9 * DAY
    scene.daemon.schedule_jobs()
    fake.will(Event("drop", stored=stored))
    scene.lives(11 * MINUTE)
    assert "unknown" in {row.state for row in scene.posts()}
    scene.off_by(0 * DAY)
    scene.lives(10 * MINUTE)
    first = next(row for row in scene.posts() if row.outlet == "x")
    assert first.state == "sent"
    assert fake.duplicates == 0
    assert len(fake.texts()) == len(set(fake.texts()))
    scene.ledger.close()


def test_a_post_of_the_false_future_uses_up_no_cap_of_today(
    own_home: Path, quick: Path, fake: FakeX, clock: WrongClock
) -> None:
    scene = Scene(own_home, quick, fake, clock, posts_per_day=1, posts_per_month=3)
    scene.off_by(40 * DAY)
    scene.lives(15 * MINUTE)
    scene.off_by(0 * DAY)
    scene.lives(2 * DAY)
    assert [row.state for row in scene.posts() if row.outlet == "x"].count("sent") == 1 + 3
    scene.ledger.close()


def test_a_signature_that_a_wrong_clock_made_stops_no_outlet() -> None:
    answer = requests.Response()
    answer.status_code, answer._content = 401, b'{"title": "Unauthorized", "status": 401}'
    answer.headers["date"] = format_datetime(datetime.now(UTC), usegmt=True)
    with pytest.raises(Halt):
        x_module.raise_x_error(answer)
    answer.headers["date"] = format_datetime(datetime.now(UTC) - 2 * DAY, usegmt=True)
    with pytest.raises(NotSent, match="clock is off by"):
        x_module.raise_x_error(answer)
    answer.headers["date"] = "some day"
    with pytest.raises(Halt):
        x_module.raise_x_error(answer)


def test_daemons_on_one_database_go_by_its_clock(postgresql: str) -> None:
    ledger, error = Ledger.open(postgresql), [3 * HOUR]
    clock = LedgerClock(ledger, lambda: datetime.now(UTC) + error[0])
    for ahead in (3 * HOUR, -50 * DAY, 0 * DAY):
        error[0] = ahead
        assert abs(clock() - datetime.now(UTC)) < timedelta(seconds=5)
        assert abs(clock.compare() - ahead) < timedelta(seconds=5)
    assert clock.compare() == timedelta(0)
    ledger.close()


def test_a_database_that_is_away_leaves_the_last_answer(tmp_path: Path) -> None:
    ledger = Ledger.open(
        f"sqlite:///{tmp_path}/l.sqlite"
    )  # has no such function: it fails each time
    clock = LedgerClock(ledger, lambda: START)
    assert abs(clock() - START) < timedelta(seconds=5)
    assert clock.compare() == timedelta(0)
    ledger.close()


def test_a_slot_taken_in_truth_is_taken_once(own_home: Path, clock: WrongClock) -> None:
    ledger = Ledger.open(f"sqlite:///{own_home}/l.sqlite")
    slot = START + 10 * MINUTE
    assert slots.record_missed(ledger, "one", [slot], "me", slot + 9 * DAY, "asleep") == 1
    assert slots.record_missed(ledger, "one", [slot], "me", slot + 9 * DAY, "asleep") == 0
    assert slots.take_slot(ledger, "one", slot, "me", slot) is not None
    assert slots.take_slot(ledger, "one", slot, "me", slot) is None
    ledger.close()
