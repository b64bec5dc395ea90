"""Where rig keeps things of its own: `RIG_HOME` when set (one folder for all), else the system's places."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path


def config_dir() -> Path:
    """The user's configuration: `rig.toml`, credentials in files that only the user reads."""
    return _place("config")


def data_dir() -> Path:
    """What is kept for good: pulled models, the card database, the ledger."""
    return _place("data")


def cache_dir() -> Path:
    """What may be deleted at any time: summaries, prefix caches, pages."""
    return _place("cache")


def state_dir() -> Path:
    """What a running process leaves for others to see: logs, locks, addresses of servers."""
    return _place("state")


def shell_word(name: object) -> str:
    """`name` as one word of a command line to copy: quoted where it holds a space or a sign of the shell."""
    text = str(name)
    if os.name == "nt":
        return f'"{text}"' if re.search(r"[^\w.:\\/~+=@-]", text) else text
    return shlex.quote(text) if re.search(r"[^\w.:/+=@,-]", text) else text


def _place(kind: str) -> Path:
    if home := os.environ.get("RIG_HOME"):
        return Path(home) / kind
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_dir")("rig", appauthor=False))
