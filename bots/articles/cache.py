"""What was read once is kept by content: texts by address, notes and summaries by what they were made of.

One SQLite file in the cache folder that may be deleted at any time. A key is a hash over everything that
shaped the value, so nothing ever has to be declared stale except a page, which has an age.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from rig import paths

VERSION = 1
"""Raised when extraction, prompts or the form of values change: old entries are then never found."""
MAX_BYTES = 200_000_000
"""Values kept; the least recently used go first."""


def cache_key(*parts: object) -> str:
    """One key for all the parts that shape a value."""
    told = json.dumps([VERSION, *parts], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


class ArticleCache:
    """Values by key; with `path` None nothing is kept and nothing is found."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._base: sqlite3.Connection | None = None

    @classmethod
    def at_home(cls) -> ArticleCache:
        """The cache in the user's cache folder."""
        return cls(paths.cache_dir() / "articles.sqlite3")

    def get_value(self, name: str, max_age: float | None = None) -> Any:
        """The value kept under `name`, or None; `max_age` in seconds."""
        base = self._open()
        if base is None:
            return None
        try:
            row = base.execute("SELECT value, kept FROM kept WHERE name = ?", (name,)).fetchone()
            if row is None or (max_age is not None and time.time() - row[1] > max_age):
                return None
            base.execute("UPDATE kept SET used = ? WHERE name = ?", (time.time(), name))
            return json.loads(row[0])
        except (sqlite3.DatabaseError, ValueError) as error:
            self._do_without(error)
            return None

    def put_value(self, name: str, value: Any) -> None:
        """Keep `value` (anything JSON can hold) at once, also if the process is killed after."""
        base = self._open()
        if base is None:
            return
        now = time.time()
        told = json.dumps(value, ensure_ascii=False)
        try:
            base.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", (name, told, now, now))
        except sqlite3.DatabaseError as error:
            self._do_without(error)

    def close(self) -> None:
        """Close the file."""
        if self._base is not None:
            self._base.close()
            self._base = None

    def _open(self) -> sqlite3.Connection | None:
        if self._base is not None or self._path is None:
            return self._base
        self._path.parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        self._base = base
        try:
            self._path.chmod(0o600)  # it holds what its owner reads
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value TEXT NOT NULL, "
                "kept REAL NOT NULL, used REAL NOT NULL)"
            )
            self._prune(base)
        except sqlite3.DatabaseError as error:
            self._do_without(error)
        return self._base

    def _do_without(self, error: Exception) -> None:
        """Go on without a cache: a locked or full one may be well tomorrow, a damaged one is removed."""
        self.close()
        path, self._path = self._path, None
        if path is not None and not isinstance(error, sqlite3.OperationalError):
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)

    def _prune(self, base: sqlite3.Connection) -> None:
        """Once for each opening: a file that has grown too large loses its least used quarter."""
        if self._path is not None and self._path.stat().st_size > MAX_BYTES:
            base.execute(
                "DELETE FROM kept WHERE name IN "
                "(SELECT name FROM kept ORDER BY used LIMIT max(1, (SELECT count(*) FROM kept) / 4))"
            )
            base.execute("VACUUM")
