"""How an older ledger becomes the newest: numbered steps, each in one transaction, never edited afterwards.

An SQLite ledger is copied beside itself before it is changed (`ledger.sqlite.v1`). A ledger that a newer rig
has written is refused rather than guessed at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select

from bots.ledger.tables import metadata, version
from rig.errors import RigError

STEPS: dict[int, Callable[[Connection], None]] = {}
"""Version number and the step that leads up to it, from 2 on; version 1 is what `tables` first was."""


def upgrade_schema(engine: Engine) -> None:
    """Create the tables of an empty database, or lead an old one up to the newest schema."""
    newest = 1 + len(STEPS)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # two daemons may start in the same second
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(727367)")
        if not inspect(connection).has_table(version.name):
            metadata.create_all(connection)
            connection.execute(version.insert().values(version=newest))
            return
        have = connection.execute(select(version.c.version)).scalar_one()
        if have > newest:
            raise RigError(
                f"The ledger was written by a newer rig (its schema is {have}, this rig knows {newest}): "
                "upgrade rig on this box."
            )
    if have < newest:
        _lead_up(engine, have, newest)


def _lead_up(engine: Engine, have: int, newest: int) -> None:
    if engine.dialect.name == "sqlite" and engine.url.database not in (None, "", ":memory:"):
        copy = Path(f"{engine.url.database}.v{have}")
        copy.unlink(missing_ok=True)
        with closing(sqlite3.connect(str(engine.url.database))) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(727367)")
        have = connection.execute(
            select(version.c.version)
        ).scalar_one()  # another may have been first
        for number in range(have + 1, newest + 1):
            STEPS[number](connection)
            connection.execute(version.update().values(version=number))
