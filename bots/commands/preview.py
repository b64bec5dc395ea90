"""One draft to look at: made as the daemon would make it, kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bots import settings
from bots.bot import Skip, bots
from bots.context import SlotContext
from bots.outlets.build import build_outlet
from bots.outlets.x_length import weighted_length
from rig.server.connect import connect_model


def preview_draft(
    name: str, options: Mapping[str, Any], model: str | None, url: str | None, key: str | None
) -> dict[str, Any]:
    """Draft one post of the bot `name`, with `options` over its own; see `rig bot preview --json`."""
    everything = settings.read_settings()
    mine = settings.find_bot_settings(everything, name)
    now = datetime.now(UTC).replace(microsecond=0)
    context = SlotContext(
        name=name,
        settings=mine,
        slot=now,
        now=now,
        outlets=[build_outlet(outlet, everything.outlets) for outlet in mine.outlets],
        connect=lambda limit: connect_model(url, model, api_key=key, priority="bot", timeout=limit),
        time_limit=everything.daemon.draft_limit,
        preview=True,
        extra=options,
    )
    shown: dict[str, Any] = {
        "bot": name,
        "accepted": False,
        "post": "",
        "weighted_length": 0,
        "card": "",
        "subject": "",
        "source": "",
        "attempts": 0,
        "reasons": [],
    }
    try:
        made = bots.find_function(mine.run or name)(context)
    except Skip as skip:
        return shown | {"reasons": [str(skip)]}
    finally:
        context.close()
    if made is None:
        return shown | {"reasons": ["The bot has nothing to say."]}
    faults = context.find_faults(made.text, links=made.links, own_words=made.own_words)
    return shown | {
        "accepted": not faults,
        "post": made.text,
        "weighted_length": weighted_length(made.text),
        "card": str(made.data.get("card", "")),
        "subject": made.subject,
        "source": made.source,
        "attempts": made.attempts,
        "reasons": [*made.reasons, *faults],
    }
