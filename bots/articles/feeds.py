"""RSS and Atom: fetched like any page, taken apart by `bots.documents.feed` in the child process."""

from __future__ import annotations

from dataclasses import dataclass

from bots.documents.article import Unreadable

TYPES = (
    "application/rss+xml", "application/x-rss+xml",
    "application/atom+xml", "application/rdf+xml", "application/xml", "text/xml",
    "text/html", "text/plain", "application/octet-stream", "",
)  # fmt: skip
"""Content types that feeds come in; many a server calls them HTML or plain text."""


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
