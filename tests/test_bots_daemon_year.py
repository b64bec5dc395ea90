"""A year in a minute or two, every slot of it accounted for: `pytest tests/test_bots_daemon_year.py`.

The scheduler, its triggers, the ledger and the outlets are the real ones; only the clock is moved by hand.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from bots.daemon.scheduler import Daemon
from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox, runs
from support.daemons import by_hand, keep_x_secrets, memory_folder, settings, tick
from support.fake_x import FakeX
from support.simulated import WrongClock, simulated

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LONDON = ZoneInfo("Europe/London")


class PowerCut(BaseException):
    """Nothing after this happens."""


@pytest.fixture
def london(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A box that stands in London: its local time is not UTC, and jumps twice a year."""
    monkeypatch.setenv("TZ", "Europe/London")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a year has forty thousand commits."""
    with memory_folder(tmp_path) as folder:
        yield folder


class Box:
    """A box whose power can fail between any two steps of the ledger."""

    def __init__(self, found: Any, clock: WrongClock, path: Path) -> None:
        self.found, self.clock, self.path = found, clock, path
        self.rng = random.Random(7)
        self.forgotten: set[str] = set()
        """Posts that X has from a time that the box no longer knows of."""
        self.start()

    def start(self) -> None:
        """Power on."""
        self.on = True
        self.cut_at: int | None = None
        self.ledger = Ledger.open(f"sqlite:///{self.path}")
        begin, self.steps = self.ledger.engine.begin, 0

        def counted() -> Any:
            self.steps += 1
            if not self.on or (self.cut_at is not None and self.steps >= self.cut_at):
                self.on = False
                raise PowerCut
            return begin()

        self.ledger.engine.begin = counted  # type: ignore[method-assign]
        self.daemon, self.scheduler = by_hand(self.found, self.ledger, self.clock)

    def until(self, end: datetime) -> None:
        """Let the daemon live until `end`."""
        self.scheduler.until(end, lambda: self.on)

    def power_cut(self, dark: timedelta) -> None:
        """Cut the power some steps from now, in the middle of whatever is going on; back after `dark`."""
        self.cut_at = self.steps + self.rng.randint(2, 30)
        self.until(self.clock.now + DAY)
        assert not self.on
        self.ledger.close()
        self.clock.now += dark
        self.start()

    def wrong_clock(self, error: timedelta, lasts: timedelta) -> None:
        """The clock is off for a while, and then right again; each time the daemon notices the step."""
        for now in (error, timedelta(0)):
            self.clock.error = now
            self.daemon.schedule_jobs()
            self.until(self.clock.now + lasts)

    def restored(self, fake: FakeX, lived: timedelta, stale: timedelta) -> None:
        """A virtual machine put back to what it was `lived` ago; its clock is right after `stale`."""
        self.ledger.engine.dispose()
        files = [self.path, self.path.with_name("posts.jsonl")]
        kept, there = [file.read_bytes() for file in files], len(fake.stored)
        assert not self.path.with_name(f"{self.path.name}-wal").exists()
        self.until(self.clock.now + lived)
        self.ledger.close()
        self.forgotten |= {post["id"] for post in fake.stored[there:]}
        for file, content in zip(files, kept, strict=True):
            file.write_bytes(content)
        self.clock.error = -lived
        self.start()
        self.until(self.clock.now + stale)
        self.clock.error = timedelta(0)
        self.daemon.schedule_jobs()


def year(
    tmp_path: Path, quick: Path, home: Path, fake: FakeX, clock: WrongClock, days: int
) -> tuple[Box, int]:
    """Live for `days` days with everything that goes wrong in a year; return the box and its slots."""
    begin = clock.now
    found = settings(
        {
            "tick": {
                "run": tick(tmp_path),
                "schedule": "0 */2 * * *",
                "jitter": "10m",
                "outlets": ["x", "file"],
                "catch_up": "latest",
                "quiet": "01:30-05:30",
                "timezone": "Europe/London",
            },
            "daily": {"run": tick(tmp_path), "schedule": "30 1 * * *", "outlets": ["file"]},
        },
        {"x": {"api": fake.url, "settle": 60}, "file": {"path": str(quick / "posts.jsonl")}},
        heartbeat="3h",
        lease="4h",
    )
    keep_x_secrets(home)
    box = Box(found, clock, quick / "ledger.sqlite")
    switches.set_enabled(box.ledger, "tick", True, "0 */2 * * *", clock.now)
    cut_days = [days // 10, days // 3, days * 3 // 4]
    asleep, set_back = days // 2, days * 6 // 10
    no_clock, behind, ahead, flapping, restored = (days * n // 20 for n in (4, 8, 14, 16, 18))
    for day in range(1, days + 1):
        if day in cut_days:
            box.power_cut(timedelta(minutes=[3, 95, 1500][cut_days.index(day)]))
        if day == asleep:
            clock.now += timedelta(days=7)  # suspended: no step is taken
            box.daemon.schedule_jobs()
        if day == set_back:
            clock.now -= timedelta(hours=5)  # somebody set the clock
            box.daemon.schedule_jobs()
        if day == no_clock:  # no battery: after the power cut it is 1970, until the network answers
            box.wrong_clock(datetime(1970, 1, 1, tzinfo=UTC) - clock.now, timedelta(minutes=10))
        if day == behind:
            box.wrong_clock(-2 * DAY, timedelta(minutes=30))
        if day == ahead:
            box.wrong_clock(30 * DAY, timedelta(minutes=2))
        if day == flapping:  # two servers of time that disagree
            for minutes in (4, -4, 90, -90, 4):
                box.wrong_clock(timedelta(minutes=minutes), timedelta(minutes=7))
        if day == restored:
            box.restored(fake, 5 * HOUR, timedelta(minutes=40))
        box.until(max(begin + day * DAY, clock.now))
    box.until(clock.now + 3 * HOUR)  # whatever was unclear is cleared up
    return box, days


def check(
    box: Box, fake: FakeX, daemon: Daemon, begin: datetime, end: datetime, tmp_path: Path
) -> Counter[str]:
    """Every slot has one row and a final state, and what is called sent is there once."""
    with box.ledger.read_transaction() as connection:
        rows = connection.execute(select(runs).order_by(runs.c.slot)).all()
        posts = connection.execute(select(outbox)).all()
    for name, schedule in daemon.drafter.schedules.items():
        mine = {row.slot: row.state for row in rows if row.bot == name}
        expected = set(schedule.slots_between(begin, end))
        assert expected <= mine.keys(), (
            f"{name}: {sorted(expected - mine.keys())[:5]} are unaccounted for"
        )
        assert not [slot for slot, state in mine.items() if state == "running"]
    assert not [row for row in posts if row.state in ("draft", "approved", "claimed", "unknown")]
    assert fake.duplicates <= len(box.forgotten), "only what a restored box forgot is sent again"
    assert not fake.refused
    sent = {row.external_id: row.text for row in posts if row.outlet == "x" and row.state == "sent"}
    stored = {post["id"]: post["text"] for post in fake.stored}
    assert sent.items() <= stored.items()
    assert stored.keys() - sent.keys() <= box.forgotten
    assert len(set(stored.values())) == len(stored), "said twice"
    lines = [json.loads(line) for line in (tmp_path / "posts.jsonl").read_text().splitlines()]
    keys = [line["key"] for line in lines]
    assert len(keys) == len(set(keys))
    filed = {row.external_id for row in posts if row.outlet == "file" and row.state == "sent"}
    assert filed == set(keys)
    return Counter(row.state for row in rows)


@pytest.mark.parametrize(
    ("begin", "days"),
    [
        (datetime(2026, 10, 20, 0, 30, tzinfo=UTC), 12),  # British summer time ends on the 25th
        pytest.param(datetime(2026, 3, 1, 0, 30, tzinfo=UTC), 365, marks=pytest.mark.slow),
    ],
)
def test_a_year_of_slots_is_accounted_for(
    tmp_path: Path, quick: Path, own_home: Path, london: None, begin: datetime, days: int
) -> None:
    clock = WrongClock(begin)
    began = time.monotonic()
    with FakeX(clock.true) as fake, simulated(clock):
        box, _ = year(tmp_path, quick, own_home, fake, clock, days)
        states = check(box, fake, box.daemon, begin, clock.now - HOUR, quick)
        quiet = [post for post in fake.stored if 2 <= local(post).hour < 5]
    assert not quiet, "it spoke at night, by London's clock"
    print(
        f"{days} days in {time.monotonic() - began:.0f} s: {dict(states)}, {len(fake.stored)} posts"
    )
    assert states["drafted"] > (days - 8) * 9
    assert states["missed"] > 6 * 12
    box.ledger.close()


def local(post: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(post["created_at"]).astimezone(LONDON)
