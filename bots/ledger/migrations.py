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

from bots.ledger.tables import decisions, drafts, metadata, outbox, version
from rig.errors import RigError


def keep_decisions(connection: Connection) -> None:
    """Version 2: a table of what a person decided, and what the old tables still tell of it.

    An edit had taken the place of the model's text, which is gone; of an approval nothing was kept.
    """
    decisions.create(connection)
    rejected = (outbox.c.state == "skipped") & (outbox.c.reason == "rejected by a person")
    for row in connection.execute(select(outbox).where(rejected)).all():
        told = {"verdict": "rejected", "at": row.settled or row.slot, "reason": row.reason}
        values = {"draft": row.draft, "post": row.id, "bot": row.bot, **told}
        connection.execute(decisions.insert().values(**values))
    for row in connection.execute(select(drafts).where(drafts.c.source == "person")).all():
        values = {"draft": row.id, "post": 0, "bot": row.bot, "at": row.made}
        told = {"verdict": "edited", "after": row.text}
        connection.execute(decisions.insert().values(**values, **told))


STEPS: dict[int, Callable[[Connection], None]] = {2: keep_decisions}
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
