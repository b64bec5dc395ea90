"""What a person said of drafts: each approval, edit and rejection, with the model's text beside the edit.

The outbox knows only what is to be sent; what a model can learn from a person stands here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, select

from bots.ledger.store import Ledger
from bots.ledger.tables import decisions, drafts, outbox
from bots.redact import redact_secrets

Verdict = Literal["approved", "edited", "rejected"]


@dataclass(frozen=True)
class DecidedPost:
    """One draft, and what came of it in the end."""

    subject: str
    """As the draft has it: a card's number, the addresses of articles."""
    text: str
    """What the bot had written; empty where an older rig did not keep it."""
    author: str
    """Who wrote `text`: `model` or `template`."""
    verdict: Verdict
    wanted: str
    """What the person let go out; empty for a rejected one."""
    reason: str
    """Why it was rejected, in the person's words."""
    at: datetime
    data: Mapping[str, Any]


def note_decision(
    connection: Connection, row: Any, verdict: Verdict, now: datetime, **values: str
) -> None:
    """Keep what a person said of `row` of the outbox; `values` as the table has them."""
    values["reason"] = redact_secrets(values.get("reason", ""))[:2000]
    told = {"draft": row.draft, "post": row.id, "bot": row.bot, "at": now, "verdict": verdict}
    connection.execute(decisions.insert().values(**told, **values))


def decided_posts(ledger: Ledger, bot: str) -> list[DecidedPost]:
    """Every draft of `bot` that a person decided about, the oldest decision first.

    One draft may have gone to several outlets: it counts as rejected only where none of them may carry it.
    The last word on an outlet counts, and a text that was edited is edited, approved or not.
    """
    query = select(decisions).where(decisions.c.bot == bot).order_by(decisions.c.at, decisions.c.id)
    with ledger.read_transaction() as connection:
        said = connection.execute(query).all()
        numbers = {row.draft for row in said}
        known = select(drafts).where(drafts.c.bot == bot)
        made = {row.id: row for row in connection.execute(known) if row.id in numbers}
    of_draft: dict[int, list[Any]] = {}
    for row in said:
        of_draft.setdefault(row.draft, []).append(row)
    return [_decided(made[number], rows) for number, rows in of_draft.items() if number in made]


def posts_since(ledger: Ledger, bot: str, since: datetime) -> list[tuple[str, str]]:
    """What `bot` said or holds ready since a moment, the newest first, each text with its `own_words`."""
    live = outbox.c.state.in_(["draft", "approved", "claimed", "sent", "unknown"])
    query = select(outbox.c.text, drafts.c.own_words).join(drafts, drafts.c.id == outbox.c.draft)
    mine = query.where(outbox.c.bot == bot, live, outbox.c.slot >= since)
    with ledger.read_transaction() as connection:
        rows = connection.execute(mine.order_by(outbox.c.slot.desc())).all()
    return list({str(row.text): str(row.own_words) for row in rows}.items())


def _decided(draft: Any, rows: list[Any]) -> DecidedPost:
    edits = [row for row in rows if row.verdict == "edited"]
    last = {
        row.post: row for row in rows if row.verdict != "edited"
    }  # the last word on each outlet
    rejections = [row for row in last.values() if row.verdict == "rejected"]
    changed = bool(edits) and edits[-1].after != edits[0].before
    verdict: Verdict = "edited" if changed else "approved"
    if rejections and len(rejections) == len(last):
        verdict = "rejected"
    return DecidedPost(
        subject=draft.subject,
        text=edits[0].before if edits else draft.text,
        author=edits[0].author if edits else draft.source,
        verdict=verdict,
        wanted="" if verdict == "rejected" else edits[-1].after if edits else draft.text,
        reason=rejections[-1].reason if verdict == "rejected" else "",
        at=rows[-1].at,
        data=json.loads(draft.data),
    )
