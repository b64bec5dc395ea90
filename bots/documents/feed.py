"""RSS and Atom taken apart: an entry is reduced to its address, its title and when it came out."""

from __future__ import annotations

import io
from calendar import timegm
from typing import Any

from bots.documents.article import Unreadable
from bots.documents.sanitise import clean_line

MAX_ENTRIES = 100


def parse_feed(content: bytes, url: str) -> dict[str, Any]:
    """The entries of a feed's bytes; raises `Unreadable`.

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
