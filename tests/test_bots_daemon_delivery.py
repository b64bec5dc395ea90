"""Several daemons that deliver from one ledger: `pytest tests/test_bots_daemon_delivery.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, select

from bots.bot import Draft
from bots.daemon.delivery import Deliverer
from bots.ledger import outbox, slots, switches
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox as table
from bots.outlets.base import Outlet, Post
from bots.settings import BotSettings, DaemonSettings

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LOAN = timedelta(minutes=2)


class Asked(Outlet):
    """Has every post, and keeps whom it was asked about."""

    kind = "asked"

    def __init__(self) -> None:
        super().__init__("asked", None)
        self.questions: list[str] = []

    def find_post(self, post: Post) -> str:
        """It is there."""
        self.questions.append(post.text)
        return "number-1"


class InStep(Ledger):
    """Writes when all have read, and goes on when all have written: the worst case of two with one wish."""

    def __init__(self, database: str, everybody: threading.Barrier) -> None:
        super().__init__(Ledger.open(database).engine)
        self.everybody, self.writes = everybody, 0

    @contextmanager
    def write_transaction(self) -> Iterator[Connection]:
        """Wait for the others before and after the first."""
        self.writes += 1
        first = self.writes == 1
        if first:
            self.everybody.wait(timeout=30)
        with super().write_transaction() as connection:
            yield connection
        if first:
            self.everybody.wait(timeout=30)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    """A ledger with one unclear post."""
    opened = Ledger.open(database)
    sender = slots.register_daemon(opened, "sender", NOW)
    switches.set_enabled(opened, "tick", True, "every 1h", NOW)
    run = slots.take_slot(opened, "tick", NOW, sender, NOW)
    assert run
    outbox.put_draft(
        opened, run, "tick", NOW, Draft("Is it there?"), [DeliveryTarget("asked", True, 0)],
        approved=True, expires=NOW + timedelta(days=1), now=NOW,
    )  # fmt: skip
    (row,) = outbox.due_rows(opened, ["tick"], NOW)
    assert outbox.claim_row(opened, row, sender, NOW, lambda _: None)[0] == "go"
    assert outbox.settle_row(opened, row.id, sender, "unknown", NOW, not_before=NOW)
    yield opened
    opened.close()


def the_row(ledger: Ledger) -> Row[Any]:
    with ledger.read_transaction() as connection:
        return connection.execute(select(table)).one()


def deliverer(ledger: Ledger, name: str, outlet: Outlet) -> Deliverer:
    return Deliverer(
        ledger=ledger,
        daemon_id=name,
        daemon=DaemonSettings(),
        bots={"tick": BotSettings()},
        outlets={"asked": outlet},
        functions={"tick": lambda context: None},
        clock=lambda: NOW,
    )


def test_of_two_daemons_one_asks_about_an_unclear_post(ledger: Ledger, database: str) -> None:
    outlet, both = Asked(), threading.Barrier(2)
    ledgers = [InStep(database, both) for _ in range(2)]
    daemons = [deliverer(one, f"daemon {n}", outlet) for n, one in enumerate(ledgers)]
    threads = [threading.Thread(target=daemon.clear_up) for daemon in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(one.writes for one in ledgers), "both had seen the row before either took it"
    assert outlet.questions == ["Is it there?"]
    row = the_row(ledger)
    assert (row.state, row.external_id) == ("sent", "number-1")
    for one in ledgers:
        one.close()


def test_an_unclear_post_is_lent_for_so_long_and_then_to_another(ledger: Ledger) -> None:
    names = ["tick"]
    (row,) = outbox.borrow_unclear(ledger, names, "first", NOW, LOAN)
    assert the_row(ledger).owner == "first"
    almost = NOW + LOAN - timedelta(microseconds=1)
    assert outbox.borrow_unclear(ledger, names, "second", almost, LOAN) == []
    assert [r.id for r in outbox.borrow_unclear(ledger, names, "second", NOW + LOAN, LOAN)] == [
        row.id
    ]
    assert not outbox.settle_row(ledger, row.id, "first", "approved", NOW), (
        "it is no longer its own"
    )
    assert the_row(ledger).state == "unknown"
    assert outbox.settle_row(ledger, row.id, "second", "sent", NOW)
