"""The child process that takes documents apart: damaged or hostile bytes hurt only this process.

`python -P -m bots.documents.worker` reads one JSON line (`kind`, `url`, `name`, `charset`, `status`) and the
bytes from stdin, and writes one JSON object to stdout. Started by `bots.documents.sandbox`, which sets
the limits.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from bots.documents.article import Article, Unreadable
from bots.documents.sanitise import clean_line, clean_paragraphs

MAX_CHARACTERS = 5_000_000
"""Longer texts (some ten novels) are refused rather than cut."""


def read_document(
    content: bytes, kind: str, *, url: str = "", name: str = "", charset: str = ""
) -> Article:
    """Take one document apart in this process; raises `Unreadable`."""
    if kind == "html":
        from bots.documents.html import read_html

        found = read_html(content, url=url, charset=charset)
    elif kind == "pdf":
        from bots.documents.pdf import read_pdf

        found = read_pdf(content)
    elif kind == "epub":
        from bots.documents.epub import read_epub

        found = read_epub(content)
    elif kind == "docx":
        from bots.documents.docx import read_docx

        found = read_docx(content)
    else:
        from bots.documents.text import read_text_file

        found = read_text_file(content, kind, charset=charset)
    text = clean_paragraphs(found.text)
    if not any(character.isalnum() for character in text):
        raise Unreadable("empty", f"{name or 'The input'} holds no text.")
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(
            "size",
            f"{name or 'The input'} holds {len(text):,} characters, more than the "
            f"{MAX_CHARACTERS:,} that are read: split it.",
        )
    lost = text.count("\ufffd")
    notes = (f"Characters that can't be read and stand as \ufffd: {lost:,}.",) if lost else ()
    return Article(
        text=text,
        kind=kind,
        title=clean_line(found.title)[:500],
        author=clean_line(found.author)[:500],
        date=clean_line(found.date)[:40],
        site=clean_line(found.site)[:200],
        url=clean_line(found.url or url)[:2000],
        notes=(*found.notes, *notes),
    )


def answer_request(content: bytes, **asked: str) -> dict[str, Any]:
    """An article (or a feed's entries), or a reason and a sentence: whatever goes wrong stays inside."""
    name = asked.get("name") or "The input"
    try:
        if asked["kind"] == "feed":
            from bots.documents.feed import parse_feed

            return parse_feed(content, asked["url"])
        return read_document(content, **asked).as_dict()
    except Unreadable as error:
        return {"reason": error.reason, "message": error.message}
    except (MemoryError, RecursionError):
        return {"reason": "size", "message": f"{name} needs too much memory to be read."}
    except Exception as error:  # a damaged document breaks its library in any way it likes
        what = f"{type(error).__name__}: {clean_line(error)[:200]}".rstrip(": ")
        return {"reason": "damaged", "message": f"{name} is damaged and can't be read ({what})."}


def main() -> None:
    """Serve one request."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not end up in the answer
    asked = json.loads(sys.stdin.buffer.readline())
    _limit(asked.pop("memory"))
    out.write(json.dumps(answer_request(sys.stdin.buffer.read(), **asked)).encode("ascii"))
    out.close()


def _limit(memory: int) -> None:
    if os.name == "nt":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
