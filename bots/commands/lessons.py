"""`rig bot lessons`: settings, ledger, cards and reading list become one file to train on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from bots import credentials, settings
from bots.daemon import process
from bots.ledger import decisions
from bots.lessons.cards import card_lessons
from bots.lessons.file import Lesson, write_lessons
from bots.lessons.limits import outlet_limits
from bots.lessons.notes import LessonNotes
from bots.lessons.private import PrivateWords
from bots.outlets.build import build_outlet
from bots.settings import BotSettings, Settings
from rig.errors import WrongUse
from rig.validation import validate_as

MONTH = timedelta(days=30)


def write_bot_lessons(name: str, out: str, context: int) -> dict[str, Any]:
    """Write the lessons of the bot `name` to `out`; what became of them as `--json` gives it."""
    everything = settings.read_settings()
    mine = settings.find_bot_settings(everything, name)
    kind = mine.run or name
    if kind not in ("cards", "digest"):
        raise WrongUse(
            f"The bot {name} is a function of your own, and only it knows what it asks: lessons are made of "
            "the bots `cards` and `digest`."
        )
    private = PrivateWords.collect(mine.blocked, _secrets(everything, mine))
    notes = LessonNotes()
    make = _card_lessons if kind == "cards" else partial(_article_lessons, context=context)
    count = write_lessons(Path(out), make(name, everything, mine, private, notes))
    if not count:
        Path(out).unlink()
        notes_said = " ".join(notes.to_sentences())
        raise WrongUse(f"The bot {name} has nothing to make lessons of. {notes_said}".strip())
    return {"bot": name, "file": out, "lessons": count, "notes": notes.to_sentences()}


def _card_lessons(
    name: str, everything: Settings, mine: BotSettings, private: PrivateWords, notes: LessonNotes
) -> Iterator[Lesson]:
    from bots.cards.bot import CardOptions
    from bots.cards.database import CardDatabase

    options = validate_as(CardOptions, mine.options, f"[bots.{name}.options] in rig.toml")
    outlets = [build_outlet(outlet, everything.outlets) for outlet in mine.outlets]
    ledger = process.open_ledger()
    opened = CardDatabase.open_samples if options.source == "samples" else CardDatabase.open_copy
    with opened() as database:
        yield from card_lessons(
            name,
            options,
            database,
            outlet_limits(outlets),
            decided=decisions.decided_posts(ledger, name),
            month=decisions.posts_since(ledger, name, datetime.now(UTC) - MONTH),
            private=private,
            notes=notes,
        )


def _article_lessons(
    name: str,
    everything: Settings,
    mine: BotSettings,
    private: PrivateWords,
    notes: LessonNotes,
    *,
    context: int,
) -> Iterator[Lesson]:
    from bots.articles import source
    from bots.articles.bot import DigestOptions
    from bots.articles.cache import ArticleCache
    from bots.articles.reading_list import ReadingList
    from bots.lessons.articles import article_lessons

    options = validate_as(DigestOptions, mine.options, f"[bots.{name}.options] in rig.toml")
    with ReadingList.at_home() as reading:
        items = reading.list_items(("waiting", "drafted", "done"))
    cache = ArticleCache.at_home()
    try:
        yield from article_lessons(
            name,
            options,
            [item.url for item in items],
            lambda url: source.read_article(
                url, cache, browser=options.browser, allow_private=options.allow_private
            ),
            context=context,
            decided=decisions.decided_posts(process.open_ledger(), name),
            private=private,
            notes=notes,
        )
    finally:
        cache.close()


def _secrets(everything: Settings, mine: BotSettings) -> list[str]:
    """Every credential that this user's rig knows, wherever it is kept."""
    found: list[str] = []
    kept = {path.stem for path in credentials.credentials_path("any").parent.glob("*.json")}
    for name in sorted({*kept, *everything.outlets, *mine.outlets}):
        fields = {}
        if name in everything.outlets or name in mine.outlets:
            fields = dict(build_outlet(name, everything.outlets).secrets)
        values, _ = credentials.find_credentials(name, fields)
        found += values.values()
    found += [
        str(value)
        for table in everything.outlets.values()
        for key, value in table.items()
        if key in ("url", "token", "password") and table.get("kind") == "webhook"
    ]
    return [*found, everything.daemon.database, everything.daemon.ping]
