"""The outbox: what goes to which outlet, how far it has come, and the rules by which it moves.

    draft -> approved -> claimed -> sent | unknown | failed | skipped

`claimed` is committed before the request goes out, so a row that was cut off says so. `unknown` is never
sent again before somebody has looked: it becomes `sent`, or `approved` once more, or stays for a person.
Every move names the state that it starts from; of two daemons that want the same move, one gets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, case, func, literal, select, update

from bots.bot import Draft
from bots.ledger.clock import NOT_APPROVED
from bots.ledger.slots import dead_daemons
from bots.ledger.store import Ledger, insert_new
from bots.ledger.tables import bots, drafts, outbox, runs, switches
from bots.redact import redact_secrets

SPENT = ("claimed", "sent", "unknown")
"""States that count against the caps."""

Verdict = Literal["go", "hold", "drop", "gone"]
"""Send it; look again later; leave it out; another daemon has it."""


@dataclass(frozen=True)
class DeliveryTarget:
    """One outlet that a draft is meant for."""

    outlet: str
    away: bool
    cost: int


def put_draft(
    ledger: Ledger, run: int, bot: str, slot: datetime, draft: Draft, targets: Sequence[DeliveryTarget],
    *, approved: bool, expires: datetime, now: datetime, model: str = "",
) -> None:  # fmt: skip
    """Keep a draft and a row for each outlet, and close its slot, in one transaction."""
    with ledger.write_transaction() as connection:
        row = {
            "bot": bot,
            "slot": slot,
            "made": now,
            "text": draft.text,
            "subject": draft.subject,
            "source": draft.source,
            "attempts": draft.attempts,
            "reasons": json.dumps(draft.reasons, ensure_ascii=False),
            "links": draft.links,
            "own_words": draft.own_words,
            "image": str(draft.image or ""),
            "alt": draft.alt,
            "data": json.dumps(dict(draft.data), ensure_ascii=False),
        }
        insert_new(connection, drafts, [row])
        query = select(drafts.c.id).where(drafts.c.bot == bot, drafts.c.slot == slot)
        number = connection.execute(query).scalar_one()
        state = "approved" if approved else "draft"
        rows = [
            {
                "draft": number,
                "bot": bot,
                "outlet": target.outlet,
                "slot": slot,
                "text": draft.text,
                "key": idempotency_key(bot, target.outlet, slot),
                "state": state,
                "not_before": now,
                "expires": expires,
                "cost": target.cost,
                "away": target.away,
            }
            for target in targets
        ]
        insert_new(connection, outbox, rows)
        done = update(runs).where(runs.c.id == run, runs.c.state == "running")
        connection.execute(done.values(state="drafted", ended=now, model=model))


def idempotency_key(bot: str, outlet: str, slot: datetime) -> str:
    """The idempotency key of one sending: the same for ever, and for nothing else."""
    return hashlib.sha256(f"{bot} {outlet} {slot.isoformat()}".encode()).hexdigest()[:40]


def due_rows(ledger: Ledger, names: Iterable[str], now: datetime) -> list[Row[Any]]:
    """Approved rows whose time has come, the oldest first."""
    ready = (outbox.c.state == "approved") & (outbox.c.not_before <= now)
    return _rows(ledger, ready & outbox.c.bot.in_(list(names)))


def claim_row(
    ledger: Ledger, row: Row[Any], me: str, now: datetime,
    gate: Callable[[Connection], str | None], media: str = "",
) -> tuple[Verdict, str]:  # fmt: skip
    """Commit that `row` is about to be sent, or say why it is not.

    The switches are read and the caps are counted in the same transaction, the last thing before the
    request, and under a lock on the bot, so that daemons can't step over a cap together.
    """
    with ledger.write_transaction() as connection:
        query = select(bots).where(bots.c.name == row.bot).with_for_update()
        mine = connection.execute(query).one()
        if row.away and not mine.enabled:
            return "drop", "the bot is not enabled"
        if stopped := stop_reason(connection, row.bot, row.outlet):
            return "hold", stopped
        if reason := gate(connection):
            return "drop", reason
        move = update(outbox).where(outbox.c.id == row.id, outbox.c.state == "approved")
        values = {"state": "claimed", "owner": me, "claimed": now, "settled": None, "reason": ""}
        more = {"attempt": outbox.c.attempt + 1, "media": media or outbox.c.media}
        return ("go" if connection.execute(move.values(**values, **more)).rowcount else "gone"), ""


def settle_row(
    ledger: Ledger, number: int, me: str, state: str, now: datetime, **values: Any
) -> bool:
    """Say what became of a row that `me` has claimed or looks after; False if it is no longer ours."""
    values["reason"] = redact_secrets(str(values.get("reason", "")))[:2000]
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(outbox.c.id == number, outbox.c.owner == me)
        mine = mine.where(outbox.c.state.in_(["claimed", "unknown"]))
        done = connection.execute(mine.values(state=state, settled=now, **values)).rowcount
        return bool(done)


def drop_row(
    ledger: Ledger, number: int, now: datetime, reason: str, state: str = "skipped"
) -> bool:
    """Leave out a row that was never claimed."""
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(outbox.c.id == number)
        mine = mine.where(outbox.c.state.in_(["draft", "approved"]))
        values = {"state": state, "reason": redact_secrets(reason)[:2000], "settled": now}
        return bool(connection.execute(mine.values(**values)).rowcount)


def expire_drafts(ledger: Ledger, names: Iterable[str], now: datetime) -> None:
    """Leave out drafts that nobody approved in time."""
    waited = (outbox.c.state == "draft") & (outbox.c.expires <= now)
    for row in _rows(ledger, waited & outbox.c.bot.in_(list(names))):
        drop_row(ledger, row.id, now, NOT_APPROVED)


def postpone_row(ledger: Ledger, number: int, until: datetime, reason: str) -> None:
    """Look at an approved row again at `until`."""
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(outbox.c.id == number, outbox.c.state == "approved")
        connection.execute(mine.values(not_before=until, reason=redact_secrets(reason)[:2000]))


def mark_cut_off(
    ledger: Ledger, me: str, busy: Iterable[int], now: datetime, lease: timedelta
) -> int:
    """Rows that a dead daemon had claimed, or this one and forgot: from now on they are `unknown`."""
    claimed = select(outbox.c.id).where(outbox.c.state == "claimed", outbox.c.id.not_in(list(busy)))
    with ledger.read_transaction() as connection:
        if connection.execute(claimed).first() is None:
            return 0
    with ledger.write_transaction() as connection:
        owners = [*dead_daemons(connection, me, now, lease), me]
        lost = update(outbox).where(outbox.c.state == "claimed", outbox.c.owner.in_(owners))
        lost = lost.where(outbox.c.id.not_in(list(busy)))
        values = {"state": "unknown", "reason": "cut off while it was being sent"}
        return connection.execute(lost.values(**values, not_before=now)).rowcount


def borrow_unclear(
    ledger: Ledger, names: Iterable[str], me: str, now: datetime, lease: timedelta
) -> list[Row[Any]]:
    """Unknown rows that it is time to look for, lent to this daemon for `lease`."""
    wanted = (outbox.c.state == "unknown") & (outbox.c.not_before <= now)
    mine = []
    for row in _rows(ledger, wanted & outbox.c.bot.in_(list(names))):
        with ledger.write_transaction() as connection:
            lend = update(outbox).where(outbox.c.id == row.id, outbox.c.state == "unknown")
            lend = lend.where(outbox.c.not_before == row.not_before)
            if connection.execute(lend.values(owner=me, not_before=now + lease)).rowcount:
                mine.append(row)
    return mine


def postpone_unclear(ledger: Ledger, number: int, me: str, until: datetime, reason: str) -> None:
    """An unclear row stays unclear: look for it again at `until`."""
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(outbox.c.id == number, outbox.c.owner == me)
        mine = mine.where(outbox.c.state == "unknown")
        connection.execute(mine.values(not_before=until, reason=redact_secrets(reason)[:2000]))


def is_another_post(ledger: Ledger, number: int, outlet: str, external_id: str) -> bool:
    """Whether `external_id` is already the name of another row's post at this outlet."""
    same = (outbox.c.outlet == outlet) & (outbox.c.external_id == external_id)
    with ledger.read_transaction() as connection:
        return connection.scalar(select(outbox.c.id).where(same, outbox.c.id != number)) is not None


def untold_rows(ledger: Ledger, names: Iterable[str]) -> list[Row[Any]]:
    """Confirmed rows whose bot has not been told."""
    wanted = (outbox.c.state == "sent") & outbox.c.told.is_(False)
    return _rows(ledger, wanted & outbox.c.bot.in_(list(names)))


def mark_told(ledger: Ledger, number: int) -> None:
    """The bot has been told."""
    with ledger.write_transaction() as connection:
        connection.execute(update(outbox).where(outbox.c.id == number).values(told=True))


def count_spent(
    connection: Connection,
    bot: str,
    since: datetime,
    outlet: str | None = None,
    before: datetime | None = None,
) -> tuple[int, int]:
    """How many posts of `bot` left this box since a moment (at one outlet), and what all cost."""
    mine = (outbox.c.bot == bot) & (outbox.c.claimed >= since) & outbox.c.state.in_(SPENT)
    if before is not None:
        mine &= outbox.c.claimed < before
    here = case((outbox.c.outlet == outlet, 1), else_=0) if outlet else literal(1)
    query = select(func.sum(here), func.sum(outbox.c.cost)).where(mine & outbox.c.away)
    posts, money = connection.execute(query).one()
    return int(posts or 0), int(money or 0)


def stop_reason(connection: Connection, bot: str, outlet: str = "") -> str | None:
    """Why nothing of this bot, or to this outlet, may go out just now."""
    scopes = ["all", f"bot:{bot}", f"outlet:{outlet}"]
    query = select(switches).where(switches.c.scope.in_(scopes)).order_by(switches.c.scope)
    row = connection.execute(query).first()
    return None if row is None else f"{row.scope} is paused: {row.reason}"


def earlier_texts(ledger: Ledger, bot: str, limit: int) -> list[str]:
    """What the bot posted or holds ready, the newest first."""
    said: dict[str, None] = {}  # one draft goes to several outlets
    with ledger.read_transaction() as connection:
        live = outbox.c.state.in_(["draft", "approved", "claimed", "sent", "unknown"])
        query = (
            select(outbox.c.text).where(outbox.c.bot == bot, live).order_by(outbox.c.slot.desc())
        )
        for text in connection.scalars(query, execution_options={"yield_per": limit}):
            said[str(text)] = None
            if len(said) == limit:  # years may lie behind them
                break
    return list(said)


def _rows(ledger: Ledger, where: Any) -> list[Row[Any]]:
    columns = [
        drafts.c[n] for n in ("subject", "source", "data", "image", "alt", "links", "own_words")
    ]
    query = select(outbox, *columns).join(drafts, drafts.c.id == outbox.c.draft).where(where)
    with ledger.read_transaction() as connection:
        return list(connection.execute(query.order_by(outbox.c.slot, outbox.c.id)).all())
