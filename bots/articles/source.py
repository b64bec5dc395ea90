"""Where a text comes from: an address, a file, a pipe or the bundled sample; what was read is kept."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import IO

from bots.articles.cache import ArticleCache, cache_key
from bots.documents.article import Article, Unreadable
from bots.documents.sniff import kind_of
from rig.errors import WrongUse

MAX_BYTES = 100_000_000
"""Bytes of a file or a pipe."""
PAGE_AGE = 24 * 3600.0
"""Seconds for which a fetched page is not fetched again."""
SAMPLE = Path(__file__).parent / "samples" / "lighthouse.html"


def is_address(source: str) -> bool:
    """Whether `source` names something on the network rather than a file.

    >>> is_address("https://a.example/b"), is_address("notes.txt"), is_address("file:///etc/passwd")
    (True, False, True)
    """
    return "://" in source[:12]


def read_article(
    source: str,
    cache: ArticleCache,
    *,
    browser: bool = False,
    allow_private: bool = False,
) -> Article:
    """The text at `source` (`-` is stdin); raises `Unreadable` with the reason where there is none."""
    if is_address(source):
        return _page(source, cache, browser=browser, allow_private=allow_private)
    if browser:
        raise WrongUse("--browser renders addresses; a saved file is read as it is.")
    if source == "-":
        return _document(_all_of(sys.stdin.buffer, "stdin"), "", cache)
    path = Path(source)
    if source == "sample" and not path.exists():
        path = SAMPLE
    if path.is_dir():
        raise WrongUse(f"{path} is a folder: pass one file.")
    if not path.exists():
        hint = f"; for the page, pass https://{source}" if _like_an_address(source) else ""
        raise WrongUse(f"There is no file {source}{hint}.")
    with path.open("rb") as file:
        return _document(_all_of(file, path.name), path.name, cache)


def _page(url: str, cache: ArticleCache, *, browser: bool, allow_private: bool) -> Article:
    name = cache_key("page", url, browser, allow_private)
    if (kept := cache.get_value(name, max_age=PAGE_AGE)) is not None:
        return Article.from_dict(kept)
    if browser:
        import bots.web.browser as chromium

        html = chromium.render_page(url, allow_private=allow_private)
        found = _read(html.encode("utf-8"), "html", url, "utf-8", url=url)
    else:
        from bots.documents import paywall
        from bots.web import http

        got = http.fetch_page(url, allow_private=allow_private)
        if got.status >= 400:
            paywall.refuse_bot_check(got.content.decode("utf-8", "replace"))
            raise Unreadable("status", _status(got.status, got.url))
        kind = kind_of(got.content, got.url, got.type)
        found = _read(got.content, kind, got.url, got.charset, url=got.url)
    cache.put_value(name, found.as_dict())
    return found


def _document(content: bytes, file: str, cache: ArticleCache) -> Article:
    name = cache_key("document", hashlib.sha256(content).hexdigest(), Path(file).suffix.lower())
    if (kept := cache.get_value(name)) is not None:
        return Article.from_dict(kept)
    found = _read(content, kind_of(content, file), file or "The input", "")
    cache.put_value(name, found.as_dict())
    return found


def _read(content: bytes, kind: str, name: str, charset: str, url: str = "") -> Article:
    from bots.documents.sandbox import extract_article

    return extract_article(content, kind, url=url, name=name, charset=charset)


def _all_of(file: IO[bytes], name: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Unreadable(
            "size", f"{name} holds more than {MAX_BYTES // 1_000_000} MB: pass the part you want."
        )
    return content


def _like_an_address(source: str) -> bool:
    host = source.split("/")[0]
    return "." in host and not host.startswith(".") and os.sep not in host


def _status(status: int, url: str) -> str:
    what = {
        401: "wants a password",
        402: "wants to be paid",
        403: "refuses the page",
        404: "has no such page",
        410: "has removed the page",
        429: "is asked too often: try later",
        451: "may not show the page here",
    }.get(status, "is in trouble: try later" if status >= 500 else "refuses the page")
    return f"{url} {what} (status {status})."
