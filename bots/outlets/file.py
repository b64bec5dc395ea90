"""A file of JSON lines, one a post: for a person to read later, or for another program to take further."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.errors import NotSent
from rig.validation import FrozenModel


class FileSettings(FrozenModel):
    """The table of an outlet of kind `file`."""

    path: str = "posts.jsonl"
    """Where the lines go, seen from the daemon's folder."""
    limit: int = 10_000
    """Characters."""


class File(Outlet):
    """Appends a line for each post and makes sure that it is on the disk."""

    kind = "file"
    away = False
    settings = FileSettings
    settle = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = self.options.limit

    def send_post(self, post: Post) -> str:
        """Append it."""
        path = Path(self.options.path)
        line = {"key": post.key, "bot": post.bot, "slot": post.slot.isoformat(), "text": post.text}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if file.tell() and not _ends_with_newline(path):
                    file.write(
                        b"\n"
                    )  # what a power cut left of the last line stays a line of its own
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise NotSent(f"{path}: {error.strerror}") from error
        return post.key

    def find_post(self, post: Post) -> str:
        """Look for its line."""
        path = Path(self.options.path)
        if not path.exists():
            return LOST
        with path.open(encoding="utf-8", errors="replace") as lines:
            start = f'{{"key": "{post.key}", '
            return next(
                (post.key for line in lines if line.startswith(start) and line[-1] == "\n"), LOST
            )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
