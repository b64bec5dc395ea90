"""The words in which a post about a card is asked for; the toy model was trained on the same.

The instruction comes first, so that a server computes it once for all cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from rig.model.chat_template import Message

CARD_SYSTEM = (
    "You write one short post about a trading card for its fans. Use only the facts given. "
    "Write the card's name exactly as given. No links, hashtags or mentions. "
    'Answer with JSON: {"post": "..."}'
)

CARD_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"post": {"type": "string"}},
    "required": ["post"],
    "additionalProperties": False,
}


def card_messages(facts: Mapping[str, object]) -> list[Message]:
    """Ask for a post about one card; `facts` are shown in their order, one `Key: value` line each.

    >>> card_messages({"Name": "Moss Golem", "ATK": 900})[1]["content"]
    'Name: Moss Golem\\nATK: 900'
    """
    lines = [f"{key}: {' '.join(str(value).split())}" for key, value in facts.items()]
    return [
        {"role": "system", "content": CARD_SYSTEM},
        {"role": "user", "content": "\n".join(lines)},
    ]


def card_retry(post: str, reason: str) -> list[Message]:
    """Go on after a refused post: what was written, and why it was refused."""
    return [
        {"role": "assistant", "content": json.dumps({"post": post}, ensure_ascii=False)},
        {"role": "user", "content": f"Refused: {reason} Write it again."},
    ]
