"""Open the ledger: SQLite in one file by default, PostgreSQL by its address; nobody else sees a difference.

SQLite runs in WAL with synchronous=FULL: what is committed survives a power cut. A writing transaction takes
the lock when it begins, so that it never has to give up half-way. PostgreSQL has limits on waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from bots.ledger import migrations
from rig import paths
from rig.errors import RigError, WrongUse

READING = {"rig_reading": True}


class Ledger:
    """An open ledger; `write_transaction` and `read_transaction` give transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str = "") -> Ledger:
        """Open the ledger at `url` (empty: rig's own file) and bring its schema up to date."""
        engine = _engine(url)
        try:
            migrations.upgrade_schema(engine)
        except DBAPIError as error:
            shown = engine.url.render_as_string(hide_password=True)
            raise RigError(
                f"The ledger at {shown} cannot be opened: {_first_line(error)}"
            ) from None
        return cls(engine)

    def renew_login(self, read: Callable[[], str]) -> None:
        """Log in with the name and password of the address that `read` gives by then: they may change."""

        def connecting(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> None:
            url = make_url(read())
            options.update({"user": url.username, "password": url.password} if url.password else {})

        if self.is_shared:
            event.listen(self.engine, "do_connect", connecting)

    @contextmanager
    def write_transaction(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or not at all."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read_transaction(self) -> Iterator[Connection]:
        """A view that does not change while it is looked at."""
        with self.engine.connect().execution_options(**READING) as connection:
            yield connection

    @property
    def is_shared(self) -> bool:
        """Whether daemons on other boxes may work with it."""
        return self.engine.dialect.name != "sqlite"

    def close(self) -> None:
        """Let the connections go."""
        self.engine.dispose()


def insert_new(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert what is not there yet; return how many rows were. The database decides, not the caller."""
    build = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    first, count = next(iter(table.primary_key.columns)), 0
    for row in rows:  # what comes back was inserted; psycopg's row count does not say so
        insert = build(table).values(**row).on_conflict_do_nothing().returning(first)
        count += len(connection.execute(insert).all())
    return count


def ledger_path() -> Path:
    """Where the ledger lies unless [daemon] database says otherwise."""
    return paths.data_dir() / "ledger.sqlite"


def _engine(url: str) -> Engine:
    if not url:
        ledger_path().parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{ledger_path()}"
    try:
        found = make_url(url)
        if found.drivername in ("postgresql", "postgres"):
            found = found.set(drivername="postgresql+psycopg")
        if found.get_backend_name() == "sqlite":
            return _sqlite(create_engine(found, connect_args={"timeout": 15}))
        if found.get_backend_name() == "postgresql":
            return _postgresql(found)
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise WrongUse(
        "[daemon] database is no address of a ledger: write sqlite:////path/ledger.sqlite or "
        "postgresql://user@host/name, or leave it out."
    )


def _sqlite(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        reading = connection.get_execution_options().get("rig_reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: Any) -> Engine:
    waits = "-c statement_timeout=20000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=30000"
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=4,
        connect_args={"connect_timeout": 5, "tcp_user_timeout": 20000, "options": waits},
    )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else repr(error.orig)
