"""All that can go wrong between here and X, slot after slot: `pytest tests/test_bots_daemon_failures.py`.

The network is real (loopback), the waits are short, and only the clock is moved by hand. The slow version
has a thousand slots: `pytest -m slow tests/test_bots_daemon_failures.py`.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from bots import timeout
from bots.daemon import logs
from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox, runs
from bots.outlets import network_errors
from bots.outlets import x as module
from bots.settings import Settings
from support.daemons import by_hand, keep_x_secrets, settings, tick
from support.fake_x import SECRETS, Event, FakeX
from support.simulated import Clock, simulated

BEGIN = datetime(2026, 5, 1, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)

FATES: dict[str, tuple[list[Event], str]] = {
    "well": ([], "sent"),
    "credits": ([Event("credits_depleted_v1")], "failed"),
    "unauthorized": ([Event("unauthorized")], "failed"),
    "permission": ([Event("forbidden_no_permission")], "failed"),
    "limited, short": ([Event("rate_limited", headers={"x-rate-limit-reset": "SHORT"})], "sent"),
    "limited, long": (
        [Event("rate_limited", headers={"x-user-limit-24hour-reset": "LONG"})],
        "skipped",
    ),
    "limited, silent": ([Event("rate_limited")], "sent"),
    "down": ([Event("service_unavailable")], "sent"),
    "down for long": ([Event("service_unavailable")] * 40, "skipped"),
    "broken, lost": ([Event("internal_error")], "sent"),
    "broken, kept": ([Event("internal_error", stored=True)], "sent"),
    "liar": ([Event("service_unavailable", stored=True)], "sent"),  # says it took nothing, and did
    "dropped, lost": ([Event("drop")], "sent"),
    "dropped, kept": ([Event("drop", stored=True)], "sent"),
    "silent, lost": ([Event("hang", seconds=0.8)], "sent"),
    "silent, kept": ([Event("hang", stored=True, seconds=0.8)], "sent"),
    "dripping": ([Event("drip", stored=True)], "sent"),
    "garbage": ([Event("garbage", stored=True)], "sent"),
    "garbage, lost": ([Event("garbage")], "sent"),
    "too long": ([Event("text_too_long_400")], "failed"),
    "nobody there": ([], "sent"),
}
"""What happens to the posts of one slot, and what has to become of it."""


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every line that the daemon logs, at the most talkative level, as it would be written."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    handler, root = Keep(), logging.getLogger()
    handler.setFormatter(logs.LogFormatter(journal=False))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield said
    root.removeHandler(handler)
    root.setLevel(before)


def hourly(folder: Path, fake: FakeX) -> Settings:
    return settings(
        {
            "tick": {
                "run": tick(folder),
                "schedule": "0 * * * *",
                "outlets": ["x"],
                "posts_per_month": 10_000,
                "dollars_per_month": 1000,
                "dollars_per_day": 100,
            }
        },
        {"x": {"api": fake.url, "settle": 60}},
        heartbeat="5m",
        call_limit="1.5s",
    )


@pytest.mark.parametrize(
    "count", [21, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_every_failure_ends_as_it_should(
    tmp_path: Path, own_home: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(module, "READ", 0.4)
    monkeypatch.setattr(network_errors, "READ", 0.4)
    rng = random.Random(11)
    names = [
        name for _ in range(count // len(FATES) + 1) for name in rng.sample(list(FATES), len(FATES))
    ]
    clock = Clock(BEGIN)
    keep_x_secrets(own_home)
    longest = 0.0
    with FakeX(clock) as fake, simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        daemon, scheduler = by_hand(hourly(tmp_path, fake), ledger, clock)
        switches.set_enabled(ledger, "tick", True, "0 * * * *", BEGIN)
        wanted: dict[datetime, str] = {}
        for number in range(count):
            slot = BEGIN + timedelta(minutes=30) + number * HOUR
            name = names[number]
            events, wanted[slot] = FATES[name]
            fake.queue.clear()
            fake.will(*(timed(event, slot) for event in events))
            if name == "nobody there":
                daemon.deliverer.outlets["x"].options.__dict__["api"] = "http://127.0.0.1:9"
            began = time.monotonic()
            scheduler.until(slot + timedelta(minutes=10))
            daemon.deliverer.outlets["x"].options.__dict__["api"] = fake.url
            scheduler.until(slot + timedelta(minutes=59))
            longest = max(longest, time.monotonic() - began)
            switches.resume_scope(
                ledger, "outlet:x"
            )  # a person has bought credits, mended the keys
        with ledger.read_transaction() as connection:
            rows = {row.slot: row for row in connection.execute(select(outbox))}
            slots = list(connection.scalars(select(runs.c.state)))
    wrong = {
        f"{names[i]} {slot:%d %H}": (rows[slot].state, rows[slot].reason)
        for i, slot in enumerate(wanted)
        if rows[slot].state != wanted[slot]
    }
    assert not wrong
    assert slots == ["drafted"] * count
    sent = {row.external_id: row.text for row in rows.values() if row.state == "sent"}
    assert sent == {post["id"]: post["text"] for post in fake.stored}, (
        "each once, and known by its number"
    )
    repeats = names[:count].count("liar")
    assert fake.duplicates == repeats, "only the liar's posts were sent twice, and X refused them"
    assert not fake.refused
    assert longest < 60, "a slot waited without bound"
    money = sum(row.cost for row in rows.values())
    assert money == 15_000 * len(sent)
    outcome = Counter(row.state for row in rows.values())
    attempts = Counter(row.attempt for row in rows.values())
    print(f"{count} slots: {dict(outcome)}; attempts {dict(attempts)}")
    print(f"slowest slot {longest:.1f} s; {len(lines)} log lines")
    tell_no_secret(lines, tmp_path / "ledger.sqlite")
    ledger.close()
    end = time.monotonic() + 30
    while timeout.count_left_behind() and time.monotonic() < end:
        time.sleep(0.1)
    assert timeout.count_left_behind() == 0, "calls that were left behind went away"


def timed(event: Event, slot: datetime) -> Event:
    """Put moments of this slot into an event's headers."""
    moments = {"SHORT": slot + timedelta(minutes=10), "LONG": slot + 5 * HOUR}
    headers = {
        name: str(int(moments[value].timestamp())) if value in moments else value
        for name, value in event.headers.items()
    }
    return Event(event.name, event.stored, headers, event.seconds)


def tell_no_secret(lines: list[str], ledger: Path) -> None:
    """No secret, whole or in part, in what was logged or written down."""
    assert lines
    kept = b"".join(path.read_bytes() for path in ledger.parent.glob("ledger.sqlite*"))
    for secret in SECRETS.values():
        assert not [line for line in lines if secret in line]
        assert secret.encode() not in kept
    assert not [line for line in lines if 'oauth_signature="' in line and "***" not in line]


def test_the_kill_switch_holds_what_was_about_to_go(tmp_path: Path, own_home: Path) -> None:
    clock = Clock(BEGIN)
    keep_x_secrets(own_home)
    with FakeX(clock) as fake, simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        daemon, scheduler = by_hand(hourly(tmp_path, fake), ledger, clock)
        switches.set_enabled(ledger, "tick", True, "0 * * * *", BEGIN)
        clock.now += timedelta(minutes=31)
        assert daemon.drafter.draft_due("tick")  # drafted and ready
        switches.stop_scope(ledger, "bot:tick", "look at this first", clock.now)
        daemon.deliverer.deliver_due()
        assert not fake.attempts
        switches.resume_scope(ledger, "bot:tick")
        clock.now += timedelta(minutes=2)
        daemon.deliverer.deliver_due()
        assert len(fake.stored) == 1
        ledger.close()
    assert scheduler.running


@pytest.mark.parametrize(
    ("caps", "sent"),
    [
        ({"posts_per_day": 3}, 3),
        ({"dollars_per_day": 0.05}, 3),
        ({"posts_per_day": 0}, 0),
        ({"dollars_per_month": 0.075}, 5),
    ],
)
def test_a_cap_is_never_passed(
    tmp_path: Path, own_home: Path, caps: dict[str, float], sent: int
) -> None:
    clock = Clock(BEGIN)
    keep_x_secrets(own_home)
    with FakeX(clock) as fake, simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        bot = {"run": tick(tmp_path), "schedule": "0 * * * *", "outlets": ["x"], **caps}
        _, scheduler = by_hand(
            settings({"tick": bot}, {"x": {"api": fake.url}}, heartbeat="1h"), ledger, clock
        )
        switches.set_enabled(ledger, "tick", True, "0 * * * *", BEGIN)
        scheduler.until(BEGIN + timedelta(hours=10))
        assert len(fake.stored) == sent
        with ledger.read_transaction() as connection:
            skipped = [r.reason for r in connection.execute(select(runs)) if r.state == "skipped"]
        assert len(skipped) == 10 - sent
        assert all("cap" in reason for reason in skipped)
        ledger.close()


def test_a_day_later_the_cap_is_a_new_one(tmp_path: Path, own_home: Path) -> None:
    clock = Clock(BEGIN)
    keep_x_secrets(own_home)
    with FakeX(clock) as fake, simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        bot = {
            "run": tick(tmp_path),
            "schedule": "0 */3 * * *",
            "outlets": ["x"],
            "posts_per_day": 2,
        }
        _, scheduler = by_hand(
            settings({"tick": bot}, {"x": {"api": fake.url}}, heartbeat="1h"), ledger, clock
        )
        switches.set_enabled(ledger, "tick", True, "0 */3 * * *", BEGIN)
        scheduler.until(BEGIN + timedelta(days=2, hours=23))
        assert len(fake.stored) == 6
        ledger.close()
