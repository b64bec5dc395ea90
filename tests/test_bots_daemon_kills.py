"""The daemon killed again and again while it posts: `pytest tests/test_bots_daemon_kills.py`.

Processes, signals, network and databases are real. The slow versions kill two hundred times, on SQLite and
with three daemons on one PostgreSQL: `pytest -m slow tests/test_bots_daemon_kills.py`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox, runs
from bots.schedule import Schedule
from support.daemons import Process, keep_x_secrets, tick
from support.fake_x import Event, FakeX

RIG = """
[daemon]
listen = ""
heartbeat = "1s"
lease = "4s"
call_limit = "3s"
database = "{database}"

[outlets.x]
api = "{url}"
settle = 1.0

[bots.tick]
run = "{run}"
schedule = "{schedule}"
outlets = ["x"]
catch_up = "latest"
posts_per_day = 1000000
posts_per_month = 1000000
dollars_per_day = 1000000
dollars_per_month = 1000000
"""
SCHEDULE = "every 1s"


class Scene:
    """A folder with rig.toml, homes for daemons, an X that is slow and moody, and a ledger to look into."""

    def __init__(self, folder: Path, database: str, daemons: int) -> None:
        self.folder, self.rng = folder, random.Random(3)
        self.fake = FakeX()
        self.fake.noise = self.mood
        self.fake.on = self.seen
        self.stage = threading.Semaphore(0)
        self.homes = [folder / f"home{number}" for number in range(daemons)]
        for home in self.homes:
            keep_x_secrets(home)
        run = tick(folder)
        text = RIG.format(database=database, url=self.fake.url, run=run, schedule=SCHEDULE)
        (folder / "rig.toml").write_text(text)
        self.ledger = Ledger.open(database)
        self.begin = datetime.now(UTC)
        switches.set_enabled(self.ledger, "tick", True, SCHEDULE, self.begin)

    def mood(self) -> Event:
        """X as it is on a bad day: slow before and after it keeps a post, now and then broken."""
        luck, wait = self.rng.random(), self.rng.random() * 0.3
        if luck < 0.08:
            return Event("drop", stored=self.rng.random() < 0.5, seconds=wait)
        if luck < 0.12:
            return Event("internal_error", stored=self.rng.random() < 0.5, seconds=wait)
        if luck < 0.14:
            return Event("service_unavailable", seconds=wait)
        return Event("ok", seconds=wait)

    def seen(self, stage: str) -> None:
        """A post has come to some stage: a good moment to pull the plug."""
        self.stage.release()

    def moment(self) -> None:
        """Wait for a random moment around posting."""
        while self.stage.acquire(blocking=False):
            pass
        for _ in range(self.rng.randint(0, 4)):
            self.stage.acquire(timeout=5)
        time.sleep(self.rng.random() * self.rng.choice((0.01, 0.1, 0.6)))

    def clear_up(self, timeout: float = 90.0) -> None:
        """Let one daemon run undisturbed until nothing is open any more."""
        self.fake.noise = lambda: None
        home = self.homes[0]
        daemon = Process(self.folder, home)
        daemon.ready(home)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            time.sleep(1)
            with self.ledger.read_transaction() as connection:
                old = datetime.now(UTC) - timedelta(seconds=20)
                busy = outbox.c.state.in_(["approved", "claimed", "unknown"]) & (
                    outbox.c.slot < old
                )
                running = (runs.c.state == "running") & (runs.c.slot < old)
                if not connection.scalar(select(outbox.c.id).where(busy)) and not connection.scalar(
                    select(runs.c.id).where(running)
                ):
                    break
        assert daemon.stop() == 0

    def check(self) -> tuple[Counter[str], Counter[str]]:
        """No duplicate, and no slot without a final state."""
        with self.ledger.read_transaction() as connection:
            slots = {row.slot: row.state for row in connection.execute(select(runs))}
            posts = connection.execute(select(outbox)).all()
        expected = set(Schedule.from_text(SCHEDULE).slots_between(self.begin, max(slots)))
        assert expected <= slots.keys(), f"{len(expected - slots.keys())} slots are unaccounted for"
        texts = self.fake.texts()
        assert len(texts) == len(set(texts)), "posted twice"
        assert self.fake.duplicates == 0, "X was asked to post twice"
        assert not self.fake.refused
        recent = max(slots) - timedelta(seconds=30)
        open_ones = [
            row for row in posts if row.state in ("draft", "approved", "claimed", "unknown")
        ]
        assert not [row for row in open_ones if row.slot < recent]
        known = {row.external_id: row.text for row in posts if row.state == "sent"}
        stored = {post["id"]: post["text"] for post in self.fake.stored}
        assert known.items() <= stored.items()
        assert {t for t in stored.values() if t not in known.values()} <= {
            row.text for row in open_ones
        }
        return Counter(slots.values()), Counter(row.state for row in posts)

    def close(self) -> None:
        """Tidy up."""
        self.fake.close()
        self.ledger.close()


@pytest.mark.parametrize(
    "kills", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_killed_at_random_moments_nothing_is_posted_twice_or_lost(
    tmp_path: Path, kills: int
) -> None:
    scene = Scene(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite", 1)
    home = scene.homes[0]
    for _ in range(kills):
        daemon = Process(tmp_path, home)
        daemon.ready(home)
        scene.moment()
        daemon.kill()
        (home / "state" / "daemon.json").unlink(missing_ok=True)
    scene.clear_up()
    slots, posts = scene.check()
    print(f"{kills} kills: slots {dict(slots)}, posts {dict(posts)}, on X {len(scene.fake.stored)}")
    assert posts["sent"] >= kills // 3
    scene.close()


@pytest.mark.parametrize(
    "kills", [3, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_three_daemons_on_one_postgresql_share_the_slots(
    tmp_path: Path, postgresql: str, kills: int
) -> None:
    scene = Scene(tmp_path, postgresql, 3)
    running = [Process(tmp_path, home) for home in scene.homes]
    for daemon, home in zip(running, scene.homes, strict=True):
        daemon.ready(home)
    for _ in range(kills):
        number = scene.rng.randrange(3)
        scene.moment()
        running[number].kill()
        (scene.homes[number] / "state" / "daemon.json").unlink(missing_ok=True)
        running[number] = Process(tmp_path, scene.homes[number])
    time.sleep(2)
    for daemon, home in zip(running, scene.homes, strict=True):
        daemon.ready(home)
        assert daemon.stop() == 0
    scene.clear_up()
    slots, posts = scene.check()
    with scene.ledger.read_transaction() as connection:
        owners = set(connection.scalars(select(runs.c.owner)))
    print(f"{kills} kills, {len(owners)} daemons: slots {dict(slots)}, posts {dict(posts)}")
    assert len(owners) >= 2
    scene.close()
