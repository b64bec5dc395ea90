"""The outlet that a table of rig.toml describes; its module is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from bots.outlets.base import Outlet
from rig.errors import WrongUse, suggest_name
from rig.validation import validate_as

KINDS = {
    "bluesky": "Bluesky",
    "file": "File",
    "mastodon": "Mastodon",
    "screen": "Screen",
    "telegram": "Telegram",
    "webhook": "Webhook",
    "x": "X",
}
"""Kind and class: `x` is the class X of the module `bots.outlets.x`."""


def build_outlet(
    name: str, tables: Mapping[str, Mapping[str, Any]], secrets: Mapping[str, str] | None = None
) -> Outlet:
    """The outlet called `name` as `[outlets.NAME]` describes it; `kind` is the name unless given."""
    table = dict(tables.get(name, {}))
    kind = str(table.pop("kind", name))
    if kind not in KINDS:
        if name not in tables:
            known = {*KINDS, *tables}
            raise WrongUse(f"There is no outlet {name!r}; {suggest_name(name, known)}")
        raise WrongUse(f"[outlets.{name}] in rig.toml: kind: {kind!r}; {suggest_name(kind, KINDS)}")
    found: type[Outlet] = getattr(importlib.import_module(f"bots.outlets.{kind}"), KINDS[kind])
    return found(name, validate_as(found.settings, table, f"[outlets.{name}] in rig.toml"), secrets)
