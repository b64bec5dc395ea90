"""`log.jsonl` and `samples.jsonl`: one line per step, appended at once, cut back to the checkpoint on resume.

A kill in the middle of a line leaves half of it; the reader stops there, and `truncate_log` removes it. Every
line has `step`. A line with `alarm` is an alarm, one with `held_out` a look at the held-out problems, the
others are the trainer's own figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.atomic import write_text

LOG = "log.jsonl"
SAMPLES = "samples.jsonl"

CLOCK = ("seconds", "step_time", "memory_gib", "watts")
"""Figures that depend on the machine's mood; all others are the same in a resumed run."""


class JsonlLog:
    """One such file, open for appending."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append_row(self, row: dict[str, Any]) -> None:
        """Append one line and hand it to the system, so that a killed process has written it."""
        self._file.write(format_row(row))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def format_row(row: dict[str, Any]) -> str:
    """One row as JSON, which has no word for what is no number: that is written as a string.

    >>> format_row({"step": 3, "loss": float("nan")})
    '{"step": 3, "loss": "nan"}\\n'
    """
    return json.dumps(_plain(row), ensure_ascii=False, default=str) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line; nothing where there is no file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                return  # a line that a kill cut in two is always the last
            yield row


def read_step_rows(path: Path) -> list[dict[str, Any]]:
    """The lines with the trainer's own figures."""
    return [row for row in read_rows(path) if "alarm" not in row and "held_out" not in row]


def truncate_log(path: Path, step: int) -> None:
    """Keep the lines up to `step`: what came after the checkpoint will be lived again."""
    kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
    if path.is_file():
        write_text(path, "".join(map(format_row, kept)))
