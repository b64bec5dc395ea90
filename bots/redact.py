"""No secret leaves this process in a sentence: not in a log line, not in the ledger, not on the screen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

PATTERNS = (
    re.compile(r'(?i)(oauth_[a-z_]+=")[^"]*'),
    re.compile(r"(?i)(\b(?:bearer|basic|token|dpop)\s+)[A-Za-z0-9+/_.~=-]{8,}"),
    re.compile(r"(?i)((?:authorization|x-api-key|idempotency-key|cookie)['\"]?\s*[:=]\s*['\"]?)[^\s'\"]+"),
    re.compile(r"(\bbot)\d{5,}:[A-Za-z0-9_-]{10,}"),  # Telegram puts its token into the address
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),
    re.compile(
        r"(?i)((?:password|passwd|secret|api_?key|access_token|refresh_token|jwt)['\"]?\s*[:=]\s*['\"]?)"
        r"[^\s'\",;&}]+"
    ),
)  # fmt: skip

_known: set[str] = set()


def remember_secrets(secrets: Iterable[str]) -> None:
    """From now on these are taken out wherever they appear; short ones are no secrets."""
    for secret in secrets:
        if len(secret) >= 6:
            _known.update({secret, quote(secret, safe="")})


def redact_secrets(text: str) -> str:
    """`text` without secrets.

    >>> redact_secrets("Authorization: Bearer AAAAAAAAAAAA1234")
    'Authorization: *** ***'
    >>> redact_secrets("postgresql://rig:hunter2@host/db")
    'postgresql://rig:***@host/db'
    """
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern in PATTERNS:
        text = pattern.sub(r"\1***", text)
    return text
