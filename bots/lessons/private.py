"""What never enters a lesson: blocked words, credentials, other people's handles and addresses.

A person's or a model's own text that holds such a thing is left out whole: with a hole in it, it would teach
the hole. An article's text and a person's reason are kept, and the thing is taken out. What a card's facts
say is public and no secret: a card may be called `@Ignister`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from bots.moderation import PAYMENT, PHONE, normalise_text

HANDLE = re.compile(
    r"(?<!\w)@\w(?:[\w.-]*\w)?(?:@[\w-]+(?:\.[\w-]+)+)?"  # @ada, @ada@mastodon.example
    r"|[\w.+-]*\w@\w[\w-]*(?:\.[\w-]+)+"  # ada@example.org
    r"|(?<=://)(?:www\.)?(?:x|twitter|instagram|tiktok|threads|t|bsky)\.(?:com|net|me|app)/[^\s)\]>\"']+",
    re.IGNORECASE,
)
"""A handle, a mail address, or the address of somebody's account."""
KEY = re.compile(
    r"\b(?:sk|pk|ghp|gho|xox[abp]|hf|glpat)[-_][A-Za-z0-9_-]{10,}"
    r"|\b\d{6,}:[A-Za-z0-9_-]{20,}"  # Telegram's
    r"|\bAKIA[0-9A-Z]{12,}|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)?"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+@"
    r"|(?<![\w/.-])(?=[A-Za-z_-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9_-]{40,}(?![\w/.])"
    r"|\b(?:password|passwd|secret|api_?key|access_token|refresh_token)['\"]?\s*[:=]\s*[^\s'\",;&}]+",
    re.IGNORECASE,
)
"""What looks like a credential, whoever's."""
SHORTEST_SECRET = 6
"""A credential of fewer characters is no secret: its letters stand in any text."""
INSIDE = 5
"""From so many letters on, a blocked word is found inside of other words too."""
GONE = "(…)"
"""What stands where something was taken out."""


@dataclass(frozen=True)
class PrivateWords:
    """What one person keeps to himself."""

    blocked: tuple[str, ...] = ()
    secrets: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def collect(cls, blocked: Iterable[str], secrets: Iterable[str]) -> PrivateWords:
        """Of all words and values those that count."""
        return cls(
            tuple(word for word in blocked if normalise_text(word)),
            frozenset(value for value in secrets if len(value) >= SHORTEST_SECRET),
        )

    def find_private(self, text: str, public: str = "") -> str | None:
        """What kind of private thing `text` holds that `public` does not; None where it holds none.

        >>> words = PrivateWords.collect(["Acme"], ["hunter2hunter2"])
        >>> words.find_private("Thanks, @ada!"), words.find_private("ACME again"), words.find_private("Fine.")
        ('a handle or an address', 'a blocked word', None)
        """
        kinds = (
            ("a credential", self._secret_spans),
            ("a blocked word", self._blocked_spans),
            ("a handle or an address", _address_spans),
        )
        for kind, find in kinds:
            said = {text[start:end].casefold() for start, end in find(text)}
            if any(one not in public.casefold() for one in said):
                return kind
        return None

    def remove_private(self, text: str) -> str:
        """`text` with every private thing taken out.

        >>> PrivateWords.collect(["Acme"], ()).remove_private("Acme's @ada said: mail bob@acme.example")
        "(…)'s (…) said: mail (…)"
        """
        for find in (self._secret_spans, _address_spans, self._blocked_spans):
            for start, end in sorted(find(text), reverse=True):
                text = text[:start] + GONE + text[end:]
        return text

    def _secret_spans(self, text: str) -> list[tuple[int, int]]:
        known = (re.escape(value) for value in sorted(self.secrets, key=len, reverse=True))
        pattern = re.compile("|".join(known), re.IGNORECASE) if self.secrets else None
        return _apart([*(pattern.finditer(text) if pattern else ()), *KEY.finditer(text)])

    def _blocked_spans(self, text: str) -> list[tuple[int, int]]:
        found: list[re.Match[str]] = []
        for word in self.blocked:
            letters = r"\W+".join(map(re.escape, normalise_text(word).split()))
            edge = r"\b" if len(letters) < INSIDE else ""
            found += re.finditer(rf"{edge}{letters}(?:s\b)?{edge}", text, re.IGNORECASE)
        return _apart(found)


def _address_spans(text: str) -> list[tuple[int, int]]:
    return _apart([m for rule in (HANDLE, PHONE, PAYMENT) for m in rule.finditer(text)])


def _apart(found: Iterable[re.Match[str]]) -> list[tuple[int, int]]:
    """The spans of matches, those that overlap made one."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(match.span() for match in found):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        elif end > start:
            spans.append((start, end))
    return spans
