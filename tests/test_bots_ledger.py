"""The ledger on SQLite and on PostgreSQL, and how it grows older: `pytest tests/test_bots_ledger.py`."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, select

from bots.bot import Draft
from bots.daemon.limits import cap_reason
from bots.ledger import migrations, outbox, slots, switches
from bots.ledger.deck import LedgerDeck
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox as table
from bots.ledger.tables import version
from bots.settings import BotSettings
from rig.errors import RigError, WrongUse

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NEXT = 2 + len(migrations.STEPS)
"""The version of a schema after the newest."""
LEASE = timedelta(minutes=2)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        opened = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    else:
        opened = Ledger.open(request.getfixturevalue("postgresql"))
    yield opened
    opened.close()


def ready(ledger: Ledger, me: str, count: int = 1, outlet: str = "x") -> None:
    """Rows that wait to be sent."""
    switches.set_enabled(ledger, "tick", True, "every 1h", NOW)
    for number in range(count):
        slot = NOW + number * timedelta(hours=1)
        run = slots.take_slot(ledger, "tick", slot, me, NOW)
        assert run
        target = [DeliveryTarget(outlet, True, 15_000)]
        outbox.put_draft(
            ledger, run, "tick", slot, Draft(f"Text {number}"), target,
            approved=True, expires=NOW + timedelta(days=1), now=NOW,
        )  # fmt: skip


def test_times_come_back_in_utc(ledger: Ledger) -> None:
    me = slots.register_daemon(ledger, "box", NOW)
    ready(ledger, me)
    (row,) = outbox.due_rows(ledger, ["tick"], NOW)
    assert row.slot == NOW
    assert row.slot.tzinfo is UTC
    with pytest.raises(Exception, match="time zone"), ledger.write_transaction() as connection:
        connection.execute(select(table).where(table.c.slot == NOW.replace(tzinfo=None)))


def test_of_twenty_who_want_a_slot_one_gets_it(ledger: Ledger) -> None:
    got = race(20, lambda number: slots.take_slot(ledger, "tick", NOW, f"daemon {number}", NOW))
    assert len([one for one in got if one]) == 1


def test_of_twenty_who_want_to_send_one_may(ledger: Ledger) -> None:
    me = slots.register_daemon(ledger, "box", NOW)
    ready(ledger, me)
    (row,) = outbox.due_rows(ledger, ["tick"], NOW)
    got = race(20, lambda n: outbox.claim_row(ledger, row, f"daemon {n}", NOW, lambda c: None)[0])
    assert sorted(got) == ["go"] + ["gone"] * 19


def test_twenty_daemons_together_do_not_step_over_a_cap(ledger: Ledger) -> None:
    me = slots.register_daemon(ledger, "box", NOW)
    ready(ledger, me, 20)
    rows, bot = outbox.due_rows(ledger, ["tick"], NOW), BotSettings(posts_per_day=7)

    def claim(number: int) -> str:
        def gate(connection: Connection) -> str | None:
            return cap_reason(connection, "tick", bot, "x", 15_000, NOW)

        return outbox.claim_row(ledger, rows[number], me, NOW, gate)[0]

    assert sorted(race(20, claim)) == ["drop"] * 13 + ["go"] * 7


def test_twenty_at_once_draw_twenty_cards(ledger: Ledger) -> None:
    switches.set_enabled(ledger, "tick", True, "every 1h", NOW)
    pool = [str(number) for number in range(20)]
    drawn = race(20, lambda n: LedgerDeck(ledger, "tick", NOW + n * timedelta(hours=1)).draw(pool))
    assert sorted(drawn) == sorted(pool)


def test_only_the_dead_are_taken_over(ledger: Ledger) -> None:
    alive, silent = (
        slots.register_daemon(ledger, "one", NOW),
        slots.register_daemon(ledger, "two", NOW),
    )
    me = slots.register_daemon(ledger, "three", NOW)
    for number, owner in enumerate((alive, silent)):
        slots.take_slot(ledger, "tick", NOW + number * timedelta(hours=1), owner, NOW)
    later = NOW + timedelta(minutes=3)
    slots.record_heartbeat(ledger, alive, later)
    slots.record_heartbeat(ledger, me, later)
    assert [row.owner for row in slots.adopt_orphans(ledger, "tick", me, later, LEASE)] == [silent]
    assert slots.adopt_orphans(ledger, "tick", me, later, LEASE) == []
    slots.release_daemon(ledger, alive, later)
    assert [row.owner for row in slots.adopt_orphans(ledger, "tick", me, later, LEASE)] == [alive]


def test_what_was_cut_off_while_sending_is_unknown(ledger: Ledger) -> None:
    gone, me = slots.register_daemon(ledger, "one", NOW), slots.register_daemon(ledger, "two", NOW)
    ready(ledger, gone)
    (row,) = outbox.due_rows(ledger, ["tick"], NOW)
    assert outbox.claim_row(ledger, row, gone, NOW, lambda c: None)[0] == "go"
    assert outbox.mark_cut_off(ledger, me, [], NOW, LEASE) == 0, "its daemon lives"
    later = NOW + timedelta(minutes=3)
    assert outbox.mark_cut_off(ledger, me, [], later, LEASE) == 1
    (lent,) = outbox.borrow_unclear(ledger, ["tick"], me, later, LEASE)
    assert outbox.borrow_unclear(ledger, ["tick"], "other", later, LEASE) == [], (
        "one looks at a time"
    )
    assert not outbox.settle_row(ledger, row.id, gone, "sent", later), (
        "the one that was away is too late"
    )
    assert outbox.settle_row(ledger, lent.id, me, "sent", later, external_id="1")


def race(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Do it in so many threads at the same moment."""
    start, results = threading.Barrier(count), list[Any]()

    def run(number: int) -> None:
        start.wait()
        results.append(act(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_an_older_ledger_is_led_up_and_kept_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.sqlite"
    old = Ledger.open(f"sqlite:///{path}")
    ready(old, slots.register_daemon(old, "box", NOW))
    old.close()

    def mood(connection: Connection) -> None:
        connection.exec_driver_sql(
            "ALTER TABLE drafts ADD COLUMN mood TEXT NOT NULL DEFAULT 'good'"
        )

    monkeypatch.setitem(migrations.STEPS, NEXT, mood)
    new = Ledger.open(f"sqlite:///{path}")
    with new.read_transaction() as connection:
        assert connection.execute(select(version.c.version)).scalar_one() == NEXT
        assert "mood" in {column["name"] for column in inspect(connection).get_columns("drafts")}
        assert len(connection.execute(select(table)).all()) == 1
    new.close()
    with closing(sqlite3.connect(f"file:{path}.v{NEXT - 1}?mode=ro", uri=True)) as copy:
        assert copy.execute("SELECT version FROM schema_version").fetchone() == (NEXT - 1,)
        assert copy.execute("SELECT count(*) FROM outbox").fetchone() == (1,)


def test_daemons_that_meet_an_older_ledger_take_its_step_once(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger.open(postgresql).close()

    def mood(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT pg_sleep(0.2)")
        connection.exec_driver_sql("ALTER TABLE drafts ADD COLUMN mood TEXT")

    monkeypatch.setitem(migrations.STEPS, NEXT, mood)
    for opened in race(4, lambda _: Ledger.open(postgresql)):
        with opened.read_transaction() as connection:
            assert list(connection.scalars(select(version.c.version))) == [NEXT]
        opened.close()


def test_daemons_that_start_in_the_same_second_make_one_schema(postgresql: str) -> None:
    for opened in race(6, lambda _: Ledger.open(postgresql)):
        with opened.read_transaction() as connection:
            assert list(connection.scalars(select(version.c.version))) == [
                1 + len(migrations.STEPS)
            ]
        opened.close()


def test_a_step_that_fails_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    Ledger.open(url).close()

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE drafts ADD COLUMN half TEXT")
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setitem(migrations.STEPS, NEXT, broken)
        with pytest.raises(RuntimeError):
            Ledger.open(url)
    again = Ledger.open(url)
    with again.read_transaction() as connection:
        assert "half" not in {
            column["name"] for column in inspect(connection).get_columns("drafts")
        }
    again.close()


def test_a_ledger_of_a_newer_rig_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    with monkeypatch.context() as patch:
        patch.setitem(migrations.STEPS, NEXT, lambda connection: None)
        Ledger.open(url).close()
    with pytest.raises(RigError, match="newer rig"):
        Ledger.open(url)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nonsense", WrongUse, "no address of a ledger"),
        ("mysql://host/db", WrongUse, "no address of a ledger"),
        ("postgresql://rig:hunter2@127.0.0.1:9/rig", RigError, "cannot be opened"),
        ("sqlite:////nowhere/at/all.sqlite", RigError, "unable to open"),
    ],
)
def test_a_ledger_that_cannot_be_opened_is_one_sentence(
    url: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as told:
        Ledger.open(url)
    assert said in str(told.value)
    assert "hunter2" not in str(told.value)
