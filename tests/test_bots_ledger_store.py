"""How the databases are opened: what must hold after a power cut and beside others.

pytest tests/test_bots_ledger_store.py
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from bots.ledger import store
from bots.ledger.store import Ledger
from bots.ledger.tables import shown


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")


@pytest.mark.parametrize(
    ("name", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 15_000)],
)
def test_sqlite_keeps_what_it_confirmed_and_waits_for_others(
    ledger: Ledger, name: str, value: object
) -> None:
    with ledger.read_transaction() as connection:
        assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value


def test_readers_do_not_wait_for_a_writer_and_writers_wait_for_each_other(ledger: Ledger) -> None:
    entered = threading.Event()

    def write() -> None:
        with ledger.write_transaction():
            entered.set()

    other = threading.Thread(target=write)
    with ledger.write_transaction():
        with ledger.read_transaction() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        other.start()
        assert not entered.wait(0.3), "BEGIN IMMEDIATE takes the lock before the first statement"
    assert entered.wait(20)
    other.join()


@pytest.mark.parametrize("name", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_name_of_postgresql_means_psycopg(name: str) -> None:
    assert store._engine(f"{name}://rig@127.0.0.1:9/rig").url.drivername == "postgresql+psycopg"


def test_postgresql_never_waits_for_ever(postgresql: str) -> None:
    ledger = Ledger.open(postgresql)
    with ledger.read_transaction() as connection:
        found = [
            connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    ledger.close()
    assert found == ["20s", "10s", "30s"]


def test_a_connection_that_postgresql_dropped_is_made_again(postgresql: str) -> None:
    ledger, other = Ledger.open(postgresql), Ledger.open(postgresql)
    with ledger.read_transaction() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    with other.write_transaction() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({backend}, 5000)")
    with ledger.read_transaction() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != backend
    ledger.close()
    other.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("disk\nsecond line"), "disk"),
        (OSError("  first  \n"), "first"),
        (OSError(), "OSError()"),
    ],
)
def test_an_error_of_the_database_is_its_first_line(error: Exception, said: str) -> None:
    assert store._first_line(DBAPIError("SELECT", {}, error)) == said


def test_how_many_rows_were_new_is_counted(ledger: Ledger) -> None:
    def row(card: str) -> dict[str, object]:
        return {
            "bot": "tick",
            "round": 1,
            "card": card,
            "slot": datetime(2026, 5, ord(card) - 96, tzinfo=UTC),
        }

    with ledger.write_transaction() as connection:
        assert store.insert_new(connection, shown, [row("a"), row("b"), row("a"), row("c")]) == 3
        assert store.insert_new(connection, shown, [row("c"), row("d")]) == 1


def test_only_a_file_is_this_boxs_own(ledger: Ledger, postgresql: str) -> None:
    other = Ledger.open(postgresql)
    assert (ledger.is_shared, other.is_shared) == (False, True)
    other.close()
