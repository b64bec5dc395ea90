"""The account of slots: who took which, what came of it, which were missed. One row each, for ever."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, or_, select, update

import rig
from bots.ledger.clock import booked_ahead
from bots.ledger.store import Ledger, insert_new
from bots.ledger.tables import bots, daemons, runs
from bots.redact import redact_secrets


def register_daemon(ledger: Ledger, box: str, now: datetime) -> str:
    """Enter a daemon and return its id; others of the same box are gone, for it holds the box's lock."""
    me = f"{socket.gethostname()[:20]}-{uuid.uuid4().hex[:8]}"
    with ledger.write_transaction() as connection:
        gone = (daemons.c.box == box) & daemons.c.ended.is_(None)
        connection.execute(update(daemons).where(gone).values(ended=now))
        row = {"id": me, "box": box, "pid": os.getpid(), "rig": rig.__version__}
        connection.execute(daemons.insert().values(**row, started=now, beat=now))
    return me


def record_heartbeat(ledger: Ledger, me: str, now: datetime) -> None:
    """Say that this daemon lives; it fails when the ledger can't be written."""
    with ledger.write_transaction() as connection:
        connection.execute(update(daemons).where(daemons.c.id == me).values(beat=now, ended=None))


def release_daemon(ledger: Ledger, me: str, now: datetime) -> None:
    """Say that this daemon has stopped, so that its work is free at once."""
    with ledger.write_transaction() as connection:
        connection.execute(update(daemons).where(daemons.c.id == me).values(ended=now))


def dead_daemons(connection: Connection, me: str, now: datetime, lease: timedelta) -> list[str]:
    """The daemons whose begun work is free: those that left, and those not heard of for `lease`."""
    gone = or_(daemons.c.ended.is_not(None), daemons.c.beat < now - lease)
    return list(connection.scalars(select(daemons.c.id).where(gone, daemons.c.id != me)))


def accounted_until(ledger: Ledger, bot: str, schedule: str, now: datetime) -> datetime:
    """The moment up to which `bot`'s slots are accounted for.

    A new bot or a new schedule begins now. A clock that was ahead and was set back doesn't silence the
    bot: later slots stand in the ledger and stay unique, whatever the clock says, and those that were
    only booked as missed by it are not accounted for.
    """
    with ledger.read_transaction() as connection:
        row = connection.execute(select(bots).where(bots.c.name == bot)).one_or_none()
        last = select(func.max(runs.c.slot)).where(runs.c.bot == bot, runs.c.slot <= now)
        last = last.where(~booked_ahead(now))
        accounted = connection.scalar(last)
    if row is not None and row.schedule == schedule:
        begin: datetime = max(row.since, accounted) if accounted else row.since
        return min(begin, now)
    with ledger.write_transaction() as connection:
        values = {"name": bot, "enabled": False, "schedule": schedule, "since": now}
        if not insert_new(connection, bots, [values]):
            mine = update(bots).where(bots.c.name == bot, bots.c.schedule != schedule)
            connection.execute(mine.values(schedule=schedule, since=now))
    return now


def record_missed(
    ledger: Ledger, bot: str, slots: Iterable[datetime], me: str, now: datetime, reason: str
) -> int:
    """Account for slots that nobody took."""
    values = {"state": "missed", "reason": reason, "owner": me, "started": now, "ended": now}
    with ledger.write_transaction() as connection:
        count = 0
        for slot in slots:
            new = insert_new(connection, runs, [{**values, "bot": bot, "slot": slot}])
            count += new or _take_over(connection, bot, slot, now, values)
        return count


def _take_over(
    connection: Connection, bot: str, slot: datetime, now: datetime, values: dict[str, Any]
) -> bool:
    """Use the row of a slot that was booked as missed before it came; False when it stands."""
    mine = update(runs).where(runs.c.bot == bot, runs.c.slot == slot, booked_ahead(now))
    return bool(connection.execute(mine.values(**values)).rowcount)


def take_slot(ledger: Ledger, bot: str, slot: datetime, me: str, now: datetime) -> int | None:
    """Take a slot; None when another daemon, or this one earlier, has it already."""
    row = {"bot": bot, "slot": slot, "state": "running", "owner": me, "started": now}
    with ledger.write_transaction() as connection:
        again = {**row, "reason": "", "ended": None}
        if not insert_new(connection, runs, [row]) and not _take_over(
            connection, bot, slot, now, again
        ):
            return None
        query = select(runs.c.id).where(runs.c.bot == bot, runs.c.slot == slot)
        return int(connection.execute(query).scalar_one())


def adopt_orphans(ledger: Ledger, bot: str, me: str, now: datetime, lease: timedelta) -> list[Any]:
    """Slots that a dead daemon had begun and not finished, now this daemon's."""
    taken = []
    query = select(runs).where(runs.c.state == "running", runs.c.bot == bot)
    with ledger.read_transaction() as connection:
        if connection.execute(query).first() is None:
            return []
    with ledger.write_transaction() as connection:
        owners = dead_daemons(connection, me, now, lease)
        for row in connection.execute(query.order_by(runs.c.slot)).all():
            if row.owner not in owners:
                continue
            mine = update(runs).where(runs.c.id == row.id, runs.c.owner == row.owner)
            mine = mine.where(runs.c.state == "running")
            if connection.execute(mine.values(owner=me, attempt=row.attempt + 1)).rowcount:
                taken.append(row)
    return taken


def close_slot(
    ledger: Ledger, run: int, state: str, reason: str, now: datetime, model: str = ""
) -> None:
    """Close a slot without a draft: `nothing`, `skipped`, `missed` or `failed`."""
    with ledger.write_transaction() as connection:
        values = {
            "state": state,
            "reason": redact_secrets(reason)[:2000],
            "ended": now,
            "model": model,
        }
        mine = update(runs).where(runs.c.id == run, runs.c.state == "running")
        connection.execute(mine.values(**values))


def bot_overview(ledger: Ledger, bot: str) -> dict[str, Any]:
    """For `rig jobs`: whether it is enabled, its last slots, how many of each outcome."""
    with ledger.read_transaction() as connection:
        row = connection.execute(select(bots).where(bots.c.name == bot)).one_or_none()
        query = select(runs).where(runs.c.bot == bot).order_by(runs.c.slot.desc()).limit(1)
        last = connection.execute(query).one_or_none()
        counts = select(runs.c.state, func.count()).where(runs.c.bot == bot).group_by(runs.c.state)
        return {
            "enabled": bool(row and row.enabled),
            "last": last,
            "counts": dict(connection.execute(counts).all()),
        }
