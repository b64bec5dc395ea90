"""What is to be read: addresses that a person added and entries of feeds, in one SQLite file.

An item is waiting, drafted (a bot holds it for one slot), done (a delivery was confirmed) or failed (there
was no text, and the reason is kept). Nothing is ever forgotten because a program stopped.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rig import paths

TRIES = 3
"""How often an item is tried whose trouble may pass (network, time, status)."""
FORGET = 365 * 24 * 3600.0
"""Seconds after which done and failed entries of feeds are removed."""


@dataclass(frozen=True)
class ReadingItem:
    """One thing to read."""

    url: str
    title: str = ""
    feed: str = ""
    """The feed it came from; empty when a person added it."""
    added: float = 0.0
    """Unix time."""
    state: str = "waiting"
    slot: str = ""
    """Bot and slot that hold it, while it is drafted."""
    tries: int = 0
    reason: str = ""
    """Why it failed."""


_TABLE = """
CREATE TABLE IF NOT EXISTS items (
    url TEXT PRIMARY KEY, title TEXT NOT NULL, feed TEXT NOT NULL, added REAL NOT NULL, state TEXT NOT NULL,
    slot TEXT NOT NULL, tries INTEGER NOT NULL, reason TEXT NOT NULL, changed REAL NOT NULL
)
"""
_COLUMNS = "url, title, feed, added, state, slot, tries, reason"


class ReadingList:
    """The list at `path`; each call is one transaction, so any number of programs may share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.execute(_TABLE)

    @classmethod
    def at_home(cls) -> ReadingList:
        """The list in the user's data folder."""
        return cls(paths.data_dir() / "reading.sqlite3")

    def __enter__(self) -> ReadingList:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def add_url(self, url: str, title: str = "", feed: str = "", now: float | None = None) -> bool:
        """Put `url` on the list; False when it waits there already.

        What a person adds again waits again; an entry that a feed still shows does not.
        """
        now = time.time() if now is None else now
        again = (
            "NOTHING"
            if feed
            else "UPDATE SET state = 'waiting', feed = '', slot = '', tries = 0, reason = '', "
            "added = excluded.added, changed = excluded.changed "
            "WHERE state IN ('done', 'failed') OR feed != ''"
        )
        done = self._base.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, 'waiting', '', 0, '', ?) "
            f"ON CONFLICT (url) DO {again}",
            (url, title, feed, now, now),
        )
        return done.rowcount > 0

    def remove_url(self, url: str) -> bool:
        """Take `url` off the list; an entry of a feed is marked done, so that it does not come back."""
        found = self._base.execute(
            "UPDATE items SET state = 'done', slot = '', changed = ? WHERE url = ? AND state != 'done'",
            (time.time(), url),
        )
        return found.rowcount > 0

    def list_items(
        self, states: Iterable[str] = ("waiting", "drafted", "failed")
    ) -> list[ReadingItem]:
        """The items in these states: a person's first, the oldest first; then feeds, the newest first."""
        wanted = tuple(states)
        rows = self._base.execute(
            f"SELECT {_COLUMNS} FROM items WHERE state IN ({', '.join('?' * len(wanted))}) "
            "ORDER BY feed != '', CASE feed WHEN '' THEN added ELSE -added END, url",
            wanted,
        )
        return [ReadingItem(*row) for row in rows]

    def held_items(self, slot: str) -> list[ReadingItem]:
        """What `slot` drafted before: asked again, it gets the same."""
        return [item for item in self.list_items(("drafted",)) if item.slot == slot]

    def hold_item(self, url: str, slot: str) -> bool:
        """Reserve a waiting item for `slot`; False when another was faster."""
        found = self._base.execute(
            "UPDATE items SET state = 'drafted', slot = ?, changed = ? WHERE url = ? AND state = 'waiting'",
            (slot, time.time(), url),
        )
        return found.rowcount > 0

    def release_expired(self, after: float, now: float | None = None) -> None:
        """What was drafted `after` seconds ago and never delivered waits again; old feed entries go."""
        now = time.time() if now is None else now
        self._base.execute(
            "UPDATE items SET state = 'waiting', slot = '', changed = ? "
            "WHERE state = 'drafted' AND changed < ?",
            (now, now - after),
        )
        self._base.execute(
            "DELETE FROM items WHERE feed != '' AND state IN ('done', 'failed') AND changed < ?",
            (now - FORGET,),
        )

    def mark_failed(self, url: str, reason: str, *, passing: bool) -> None:
        """Note why there was no text; trouble that may pass leaves the item waiting, a few times."""
        self._base.execute(
            "UPDATE items SET tries = tries + 1, reason = ?, slot = '', changed = ?, "
            "state = CASE WHEN ? AND tries + 1 < ? THEN 'waiting' ELSE 'failed' END WHERE url = ?",
            (reason, time.time(), passing, TRIES, url),
        )

    def count_drafted_since(self, bot: str, moment: float) -> int:
        """Items that `bot` drafted or delivered since `moment` (Unix time)."""
        found = self._base.execute(
            "SELECT count(*) FROM items WHERE substr(slot, 1, ?) = ? "
            "AND state IN ('drafted', 'done') AND changed >= ?",
            (len(bot) + 1, f"{bot} ", moment),
        )
        return int(found.fetchone()[0])

    def mark_done(self, url: str) -> None:
        """The delivery is confirmed; hearing of it twice changes nothing. The slot stays, to be counted."""
        self._base.execute(
            "UPDATE items SET state = 'done', changed = ? WHERE url = ? AND state != 'done'",
            (time.time(), url),
        )
