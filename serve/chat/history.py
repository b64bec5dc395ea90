"""What was asked and answered at this shell, in one SQLite file for its owner alone; `--no-log` keeps out.

A call that cannot be logged was still answered: the log warns and never fails a command.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from rig import paths

TABLE = """
create table if not exists calls (
    id integer primary key,
    at text not null,
    command text not null,
    conversation text not null,
    model text not null,
    url text not null,
    messages text not null,
    thought text not null,
    answer text not null,
    finish text,
    options text not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    seconds real not null
)
"""


@dataclass(frozen=True)
class LoggedCall:
    """One question and its answer."""

    command: str
    """`ask` or `chat`."""
    conversation: str
    """The same for all turns of one chat."""
    model: str
    url: str
    messages: list[dict[str, str]]
    """What was sent in this turn: the system prompt on the first one, and the question."""
    thought: str
    answer: str
    finish: str | None
    options: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    id: int | None = None


def log_path() -> Path:
    """Where the log lies."""
    return paths.state_dir() / "calls.db"


def record_call(call: LoggedCall) -> None:
    """Keep one call."""
    row = asdict(call) | {
        name: json.dumps(getattr(call, name), ensure_ascii=False)
        for name in ("messages", "options")
    }
    names = ", ".join(row)
    marks = ", ".join(f":{name}" for name in row)
    try:
        with _database() as database:
            database.execute(f"insert into calls ({names}) values ({marks})", row)
    except (sqlite3.Error, OSError) as error:
        click.echo(
            f"This call was not logged: {log_path()}: {error}. (--no-log keeps quiet.)", err=True
        )


def last_calls(number: int, search: str = "") -> list[LoggedCall]:
    """The last calls whose question, thought or answer contains `search`; the oldest of them first."""
    if not log_path().exists():
        return []
    like = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    where = " or ".join(
        f"{name} like :like escape '\\'" for name in ("messages", "thought", "answer")
    )
    query = f"select * from calls where {where} order by id desc limit :number"
    with _database() as database:
        rows = database.execute(query, {"like": like, "number": number}).fetchall()
    loaded = (
        dict(row) | {name: json.loads(row[name]) for name in ("messages", "options")}
        for row in rows
    )
    return [LoggedCall(**row) for row in reversed(list(loaded))]


def clear_calls() -> int:
    """Forget every call, also on the disk; returns how many there were."""
    if not log_path().exists():
        return 0
    with _database() as database:
        number = database.execute("delete from calls").rowcount
    with contextlib.closing(sqlite3.connect(log_path())) as database:
        database.execute("vacuum")
    return int(number)


def format_calls(calls: list[LoggedCall]) -> Iterator[str]:
    """The calls as text for a person."""
    for call in calls:
        figures = f"{call.prompt_tokens} + {call.completion_tokens} tokens, {call.seconds:.1f} s"
        yield click.style(f"{call.at}  rig {call.command}  {call.model}  {figures}", dim=True)
        for message in call.messages:
            if message["role"] == "system":
                yield click.style(f"({' '.join(message['content'].split())[:90]} ...)", dim=True)
            else:
                yield click.style(f"> {message['content']}", bold=True)
        if call.thought:
            yield click.style(call.thought.strip(), dim=True, italic=True)
        yield call.answer.strip() + (
            "" if call.finish == "stop" else f" [{call.finish or 'broken off'}]"
        )
        yield ""


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    log_path().parent.mkdir(parents=True, exist_ok=True)
    if not log_path().exists():  # nobody but its owner, from the first byte on
        os.close(os.open(log_path(), os.O_CREAT | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(log_path(), timeout=5)) as database:
        database.row_factory = sqlite3.Row
        with database:
            database.execute(TABLE)
            yield database
