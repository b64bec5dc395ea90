"""RSS and Atom: fetched like any page, parsed in the child process, reduced to addresses and titles."""

from __future__ import annotations

import io
from calendar import timegm
from dataclasses import dataclass
from typing import Any

from bots.documents.article import Unreadable
from bots.documents.sanitise import clean_line

TYPES = (
    "application/rss+xml", "application/atom+xml", "application/rdf+xml", "application/xml", "text/xml",
    "text/html", "text/plain", "application/octet-stream", "",
)  # fmt: skip
"""Content types that feeds come in; many a server calls them HTML or plain text."""
MAX_ENTRIES = 100


@dataclass(frozen=True)
class FeedEntry:
    """One entry of a feed."""

    url: str
    title: str
    published: float
    """Unix time; 0 when the feed does not say."""


def fetch_entries(url: str, *, allow_private: bool = False) -> list[FeedEntry]:
    """What the feed at `url` holds now, in its order; raises `Unreadable` like a page."""
    from bots.documents.sandbox import run_worker
    from bots.web import http

    got = http.fetch_page(url, allow_private=allow_private, accept=TYPES)
    if got.status >= 400:
        raise Unreadable("status", f"The feed {url} answers with status {got.status}.")
    found = run_worker(got.content, "feed", url=got.url, name=f"The feed {url}")
    return [FeedEntry(**entry) for entry in found["entries"]]


def parse_feed(content: bytes, url: str) -> dict[str, Any]:
    """The entries of a feed's bytes, for the child process.

    The bytes go in as a file: feedparser would open bare bytes as the name of one.
    """
    import feedparser

    found = feedparser.parse(io.BytesIO(content), response_headers={"content-location": url})
    if not found.entries and not found.get("version"):
        raise Unreadable("kind", f"There is no RSS or Atom feed at {url}.")
    kept = []
    for entry in found.entries[:MAX_ENTRIES]:
        link = clean_line(entry.get("link"))
        if link.startswith(("http://", "https://")) and len(link) < 2000:
            moment = entry.get("published_parsed") or entry.get("updated_parsed")
            kept.append(
                {
                    "url": link,
                    "title": clean_line(entry.get("title"))[:300],
                    "published": float(timegm(moment)) if moment else 0.0,
                }
            )
    return {"entries": kept}
