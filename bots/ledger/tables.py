"""The ledger's tables, as the newest schema has them; `migrations` says how older ones become this.

A slot of a bot is one row of `runs`, what goes to one outlet in one slot one row of `outbox`: both are
unique, and that is what keeps any number of daemons from posting twice. Money is in millionths of a dollar.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; a naive one is refused, so that no local time slips in."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Into the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment in the ledger carries its time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Out of it; SQLite forgets the zone."""
        if value is None:
            return None
        found: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value
        return found.astimezone(UTC)


Key = BigInteger().with_variant(Integer, "sqlite")

version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

bots = Table(
    "bots",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("enabled", Boolean, nullable=False, default=False),
    Column("schedule", Text, nullable=False),
    Column("since", UtcDateTime, nullable=False),  # slots before this are none of ours
)

switches = Table(  # a row means: stopped; scope is "all", "bot:NAME" or "outlet:NAME"
    "switches",
    metadata,
    Column("scope", String(60), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

daemons = Table(
    "daemons",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("box", Text, nullable=False),  # host and folder
    Column("pid", Integer, nullable=False),
    Column("rig", String(20), nullable=False),
    Column("started", UtcDateTime, nullable=False),
    Column("beat", UtcDateTime, nullable=False),
    Column("ended", UtcDateTime),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("bot", String(40), nullable=False),
    Column("slot", UtcDateTime, nullable=False),
    Column("state", String(10), nullable=False),  # running drafted nothing skipped missed failed
    Column("reason", Text, nullable=False, default=""),
    Column("owner", String(40), nullable=False),
    Column("attempt", Integer, nullable=False, default=1),
    Column("started", UtcDateTime, nullable=False),
    Column("ended", UtcDateTime),
    Column("model", Text, nullable=False, default=""),
    UniqueConstraint("bot", "slot"),
    Index("runs_state", "state", "bot"),
)

drafts = Table(
    "drafts",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("bot", String(40), nullable=False),
    Column("slot", UtcDateTime, nullable=False),
    Column("made", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),
    Column("subject", Text, nullable=False, default=""),
    Column("source", String(10), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reasons", Text, nullable=False),  # JSON list
    Column("links", Boolean, nullable=False),
    Column("own_words", Text, nullable=False, default=""),
    Column("image", Text, nullable=False, default=""),
    Column("alt", Text, nullable=False, default=""),
    Column("data", Text, nullable=False),  # JSON object
    UniqueConstraint("bot", "slot"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("draft", Key, nullable=False),
    Column("bot", String(40), nullable=False),
    Column("outlet", String(40), nullable=False),
    Column("slot", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),
    Column("key", String(64), nullable=False, unique=True),
    Column(
        "state", String(10), nullable=False
    ),  # draft approved claimed sent unknown failed skipped
    Column("reason", Text, nullable=False, default=""),
    Column("not_before", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("owner", String(40), nullable=False, default=""),
    Column("claimed", UtcDateTime),
    Column("settled", UtcDateTime),
    Column("external_id", Text, nullable=False, default=""),
    Column("cost", BigInteger, nullable=False, default=0),
    Column("away", Boolean, nullable=False),
    Column("told", Boolean, nullable=False, default=False),
    Column("media", Text, nullable=False, default=""),
    UniqueConstraint("bot", "outlet", "slot"),
    Index("outbox_state", "state", "not_before"),
    Index("outbox_claimed", "bot", "claimed"),
    Index("outbox_slot", "bot", "slot"),
    Index("outbox_told", "told", "state"),
)

shown = Table(
    "shown",
    metadata,
    Column("bot", String(40), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("card", String(80), primary_key=True),
    Column("slot", UtcDateTime, nullable=False),
    UniqueConstraint("bot", "slot"),
)

decisions = Table(  # what a person said of a draft; since version 2
    "decisions",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("draft", Key, nullable=False),
    Column("post", Key, nullable=False),  # the row of the outbox whose number was named
    Column("bot", String(40), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("verdict", String(10), nullable=False),  # approved edited rejected
    Column(
        "before", Text, nullable=False, default=""
    ),  # an edit: the text that it took the place of
    Column("after", Text, nullable=False, default=""),  # an edit: the person's text
    Column("author", String(10), nullable=False, default=""),  # an edit: who wrote `before`
    Column("reason", Text, nullable=False, default=""),
    Index("decisions_bot", "bot", "at"),
)
