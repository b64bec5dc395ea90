"""The switches that a person holds: a bot enabled or not; the stop for everything, one bot, one outlet."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from bots.ledger.store import Ledger, insert_new
from bots.ledger.tables import bots, switches
from bots.redact import redact_secrets

AFTERWARDS = "; afterwards: `rig bot resume"
"""Stands in the reason of a stop that no person asked for."""


def stop_scope(ledger: Ledger, scope: str, reason: str, now: datetime) -> None:
    """Stop `all`, `bot:NAME` or `outlet:NAME`; the first reason stays."""
    with ledger.write_transaction() as connection:
        insert_new(
            connection,
            switches,
            [{"scope": scope, "reason": redact_secrets(reason)[:2000], "at": now}],
        )


def resume_scope(ledger: Ledger, scope: str) -> bool:
    """Let it go on; False when it was not stopped."""
    with ledger.write_transaction() as connection:
        done = connection.execute(switches.delete().where(switches.c.scope == scope))
        return bool(done.rowcount)


def stopped_scopes(ledger: Ledger) -> dict[str, str]:
    """Everything that is stopped, with the reason."""
    with ledger.read_transaction() as connection:
        rows = connection.execute(select(switches).order_by(switches.c.scope))
        return {row.scope: row.reason for row in rows}


def set_enabled(ledger: Ledger, bot: str, enabled: bool, schedule: str, now: datetime) -> None:
    """Let a bot speak to the world, or take that from it."""
    with ledger.write_transaction() as connection:
        row: dict[str, Any] = {"name": bot, "enabled": enabled, "schedule": schedule, "since": now}
        if not insert_new(connection, bots, [row]):
            mine = update(bots).where(bots.c.name == bot)
            connection.execute(mine.values(enabled=enabled))


def is_enabled(ledger: Ledger, bot: str) -> bool:
    """Whether a person has let the bot speak to the world."""
    with ledger.read_transaction() as connection:
        return bool(connection.scalar(select(bots.c.enabled).where(bots.c.name == bot)))
