"""The local copy of the cards: one SQLite file that works without a network for as long as need be.

One row for each card, by name and not by printing, so that reprints don't weigh. A copy is filled beside
the old one and takes its place whole (`rig.atomic.atomic_file`): readers never see half of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

from bots.cards.card import Card
from rig import paths
from rig.atomic import atomic_file
from rig.errors import RigError, WrongUse, suggest_name
from rig.validation import FrozenModel

TABLES = """
CREATE TABLE cards (id INTEGER PRIMARY KEY, name TEXT NOT NULL, lower TEXT NOT NULL, frame TEXT NOT NULL,
                    kind TEXT NOT NULL, race TEXT NOT NULL, archetype TEXT NOT NULL, date TEXT NOT NULL,
                    card TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX by_name ON cards (lower);
CREATE TABLE labels (label TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (label, id)) STRICT, WITHOUT ROWID;
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class CardPool(FrozenModel):
    """The table `pool` of the card bot's options: which cards are in the deck; empty means all."""

    format: str = ""
    """A format that the card is in, such as "goat" or "speed duel"."""
    after: date | None = None
    before: date | None = None
    """First printed in the TCG from `after` on, and until `before`."""
    sets: tuple[str, ...] = ()
    """Printed in one of these, by their full names."""
    types: tuple[str, ...] = ()
    """Words of the kind ("Spell", "Fusion") or monster types ("Dragon"); one of them is enough."""
    archetypes: tuple[str, ...] = ()


class CardDatabase:
    """An open copy; made by `open_copy` or `open_samples`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextmanager
    def open_copy(cls, path: Path | None = None) -> Iterator[CardDatabase]:
        """Open the local copy for reading."""
        path = path or database_path()
        if not path.is_file():
            raise RigError(
                f"There is no copy of the cards at {path}: fetch one with `rig bot refresh`."
            )
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            yield cls(connection)

    @classmethod
    @contextmanager
    def open_samples(cls) -> Iterator[CardDatabase]:
        """The invented cards that come with rig."""
        text = resources.files("bots.samples").joinpath("cards.json").read_text("utf-8")
        with closing(sqlite3.connect(":memory:")) as connection:
            fill_database(connection, json.loads(text)["data"], {"source": "samples"})
            yield cls(connection)

    def copy_info(self) -> dict[str, str]:
        """Where the copy is from: `source`, `version`, `fetched` (UTC)."""
        return dict(self._db.execute("SELECT key, value FROM about"))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM cards").fetchone()[0])

    def card_by_id(self, number: int | str) -> Card:
        """The card of this number."""
        row = self._db.execute("SELECT card FROM cards WHERE id = ?", (int(number),)).fetchone()
        if row is None:
            raise RigError(f"The copy of the cards has no number {number}.")
        return Card.from_json(row[0])

    def card_by_name(self, name: str) -> Card:
        """The card of this name, in any case; a miss names the nearest."""
        row = self._db.execute("SELECT card FROM cards WHERE lower = ?", (name.lower(),)).fetchone()
        if row is None:
            names = [n for (n,) in self._db.execute("SELECT name FROM cards ORDER BY name")]
            near = (
                suggest_name(name, names)
                if len(names) < 50
                else suggest_name(name, _likely(name, names))
            )
            raise WrongUse(f"There is no card {name!r} in the copy; {near}")
        return Card.from_json(row[0])

    def known_names(self, phrases: Iterable[str]) -> list[str]:
        """Those of `phrases` (lower case) that are names of cards."""
        wanted = list(phrases)
        found: list[str] = []
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            found += [
                n
                for (n,) in self._db.execute(
                    f"SELECT name FROM cards WHERE lower IN ({marks})", part
                )
            ]
        return found

    def pool_ids(self, pool: CardPool) -> list[str]:
        """The numbers of all cards in `pool`, as text, in order."""
        where, values = ["1"], list[Any]()
        for label, wanted in (("set", pool.sets), ("format", [pool.format] if pool.format else [])):
            if wanted:
                marks = ",".join("?" * len(wanted))
                where.append(f"id IN (SELECT id FROM labels WHERE label IN ({marks}))")
                values += [f"{label}:{one.lower()}" for one in wanted]
        if pool.types:
            where.append(
                "(" + " OR ".join("(kind || ' ' || race) LIKE ?" for _ in pool.types) + ")"
            )
            values += [f"%{word}%" for word in pool.types]
        if pool.archetypes:
            where.append(f"lower(archetype) IN ({','.join('?' * len(pool.archetypes))})")
            values += [name.lower() for name in pool.archetypes]
        if pool.after:
            where.append("date >= ?")
            values.append(pool.after.isoformat())
        if pool.before:
            where.append("date != '' AND date <= ?")
            values.append(pool.before.isoformat())
        query = f"SELECT id FROM cards WHERE {' AND '.join(where)} ORDER BY id"
        found = [str(number) for (number,) in self._db.execute(query, values)]
        if not found:
            raise WrongUse(self._empty(pool))
        return found

    def _empty(self, pool: CardPool) -> str:
        dated = self._db.execute("SELECT 1 FROM cards WHERE date != ''").fetchone()
        if (pool.after or pool.before or pool.format) and not dated:
            return "This copy of the cards has neither dates nor formats: fetch another (`rig bot refresh`)."
        if pool.sets:
            names = [
                str(n)[4:]
                for (n,) in self._db.execute(
                    "SELECT DISTINCT label FROM labels WHERE label LIKE 'set:%'"
                )
            ]
            if unknown := [one for one in pool.sets if one.lower() not in names]:
                near = suggest_name(unknown[0].lower(), _likely(unknown[0], names))
                return f"No card is in a set {unknown[0]!r}; {near}"
        return "No card is in this pool: widen [bots.NAME.options.pool] in rig.toml."


def database_path() -> Path:
    """Where the local copy lies."""
    return paths.data_dir() / "cards" / "cards.sqlite"


def replace_copy(
    entries: Iterable[Mapping[str, Any]], about: Mapping[str, str], path: Path | None = None
) -> int:
    """Replace the local copy by `entries` of the API; return how many cards it has now."""
    with (
        atomic_file(path or database_path()) as temporary,
        closing(sqlite3.connect(temporary)) as connection,
    ):
        return fill_database(connection, entries, about)


def fill_database(
    connection: sqlite3.Connection, entries: Iterable[Mapping[str, Any]], about: Mapping[str, str]
) -> int:
    """Write `entries` into an empty database; a second entry of a name (another picture) is left out."""
    connection.executescript(TABLES)
    with connection:
        for entry in entries:
            card = Card.from_api(entry)
            done = connection.execute(
                "INSERT OR IGNORE INTO cards VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (card.id, card.name, card.name.lower(), card.frame, card.kind, card.race, card.archetype,
                 card.date, card.to_json()),
            )  # fmt: skip
            if done.rowcount:
                labels = [f"set:{name.lower()}" for name in card.sets] + [
                    f"format:{name}" for name in card.formats
                ]
                connection.executemany(
                    "INSERT OR IGNORE INTO labels VALUES (?, ?)", [(x, card.id) for x in labels]
                )
        connection.executemany("INSERT INTO about VALUES (?, ?)", list(about.items()))
    return int(connection.execute("SELECT count(*) FROM cards").fetchone()[0])


def _likely(name: str, names: list[str]) -> list[str]:
    """Those of many names that share their first letters or a word with `name`."""
    words = set(name.lower().split())
    near = [n for n in names if n.lower()[:3] == name.lower()[:3] or words & set(n.lower().split())]
    return near[:200] or names[:5]
