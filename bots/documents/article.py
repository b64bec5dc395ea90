"""What is known of one text, and the one way in which a text can fail to be there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rig.errors import RigError

Reason = Literal[
    "address", "bot-check", "cookies", "damaged", "empty", "kind", "network", "password",
    "paywall", "redirects", "scanned", "shell", "size", "status", "time",
]  # fmt: skip
"""Why there is no text, for programs; the sentence is for people."""


class Unreadable(RigError):
    """There is no text to summarise, and the sentence says why and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Article:
    """One text with what its source says of it; what the source does not say is empty."""

    text: str
    """Paragraphs between blank lines, free of control characters."""
    kind: str = "text"
    """`html`, `pdf`, `epub`, `docx`, `markdown` or `text`."""
    title: str = ""
    author: str = ""
    date: str = ""
    """As ISO 8601 where the source is clear about it, such as 2026-11-22."""
    site: str = ""
    url: str = ""
    """The canonical address the page names, else the one it was read from."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out or looked odd, for stderr."""

    def as_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Article:
        """Take back what `as_dict` gave."""
        return cls(**{**found, "notes": tuple(found["notes"])})
