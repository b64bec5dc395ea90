"""What a person looks at and decides: drafts that wait, posts that are unclear, what went out."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select, update

from bots.ledger.decisions import Verdict, note_decision
from bots.ledger.store import Ledger
from bots.ledger.tables import drafts, outbox
from rig.errors import WrongUse

OPEN = ("draft", "approved", "claimed", "unknown")


def open_posts(ledger: Ledger, bot: str | None = None) -> list[Row[Any]]:
    """Everything that is not final, the oldest first."""
    where = outbox.c.state.in_(OPEN)
    return _rows(ledger, where if bot is None else where & (outbox.c.bot == bot), newest=False)


def latest_posts(ledger: Ledger, bot: str | None, limit: int) -> list[Row[Any]]:
    """What came of the latest drafts, the newest first."""
    where = outbox.c.bot == bot if bot else outbox.c.id > 0
    return _rows(ledger, where, newest=True, limit=limit)


def find_post(ledger: Ledger, number: int) -> Row[Any]:
    """One row of the outbox by its number."""
    found = _rows(ledger, outbox.c.id == number, newest=False)
    if not found:
        raise WrongUse(f"There is no post {number}: `rig bot queue` lists them with their numbers.")
    return found[0]


def approve_draft(ledger: Ledger, number: int, now: datetime) -> None:
    """Let a waiting draft go out."""
    row = find_post(ledger, number)
    if row.state == "draft" and now > row.expires:
        raise WrongUse(
            f"Post {number} waited for too long ({row.expires:%Y-%m-%d %H:%M} UTC was the end)."
        )
    _move(ledger, row, ("draft",), "approved", now, said="approved", not_before=now)


def reject_draft(ledger: Ledger, number: int, reason: str, now: datetime) -> None:
    """Leave a draft out for good."""
    _move(
        ledger,
        find_post(ledger, number),
        ("draft", "approved"),
        "skipped",
        now,
        said="rejected",
        reason=reason,
        settled=now,
    )


def edit_draft(ledger: Ledger, number: int, text: str, now: datetime) -> None:
    """Give a waiting draft another text, for all its outlets that have not sent it."""
    row = find_post(ledger, number)
    if row.state not in ("draft", "approved"):
        raise WrongUse(f"Post {number} is {row.state}: only what waits can be changed.")
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(
            outbox.c.draft == row.draft, outbox.c.state.in_(["draft", "approved"])
        )
        connection.execute(mine.values(text=text))
        mine = update(drafts).where(drafts.c.id == row.draft)
        connection.execute(mine.values(text=text, source="person"))
        told = {"before": row.text, "after": text, "author": row.source}
        note_decision(connection, row, "edited", now, **told)


def settle_unclear(ledger: Ledger, number: int, arrived: bool, now: datetime) -> None:
    """A person has looked: the unclear post arrived, or it did not and is left out."""
    state, reason = (
        ("sent", "a person saw it") if arrived else ("skipped", "a person looked: it is not there")
    )
    row = find_post(ledger, number)
    cost = row.cost if arrived else 0
    _move(ledger, row, ("unknown",), state, now, reason=reason, settled=now, cost=cost)


def post_object(row: Row[Any]) -> dict[str, Any]:
    """One row as `--json` gives it."""
    return {
        "id": row.id,
        "bot": row.bot,
        "outlet": row.outlet,
        "slot": row.slot.isoformat(timespec="seconds"),
        "state": row.state,
        "text": row.text,
        "subject": row.subject,
        "source": row.source,
        "attempts": row.attempts,
        "refused": json.loads(row.reasons),
        "reason": row.reason,
        "external_id": row.external_id,
        "dollars": row.cost / 1_000_000 if row.state in ("claimed", "sent", "unknown") else 0.0,
        "expires": row.expires.isoformat(timespec="seconds"),
    }


def _move(
    ledger: Ledger, row: Row[Any], begin: tuple[str, ...], end: str, now: datetime,
    said: Verdict | None = None, **values: Any,
) -> None:  # fmt: skip
    """Move a row on; `said` is what a person meant by it, where a bot can learn from that."""
    with ledger.write_transaction() as connection:
        mine = update(outbox).where(outbox.c.id == row.id, outbox.c.state.in_(begin))
        if not connection.execute(mine.values(state=end, **values)).rowcount:
            raise WrongUse(
                f"Post {row.id} is {row.state}: this can be said only of {' or '.join(begin)}."
            )
        if said is not None:
            note_decision(connection, row, said, now, reason=str(values.get("reason", "")))


def _rows(ledger: Ledger, where: Any, *, newest: bool, limit: int | None = None) -> list[Row[Any]]:
    names = ("subject", "source", "attempts", "reasons", "links", "own_words")
    query = select(outbox, *(drafts.c[name] for name in names)).join(
        drafts, drafts.c.id == outbox.c.draft
    )
    order = (outbox.c.slot.desc(), outbox.c.id.desc()) if newest else (outbox.c.slot, outbox.c.id)
    with ledger.read_transaction() as connection:
        return list(connection.execute(query.where(where).order_by(*order).limit(limit)).all())
