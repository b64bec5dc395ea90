"""An HTML page becomes its article: trafilatura finds it, `paywall` says when what it found is none."""

from __future__ import annotations

import re

from bots.documents import paywall
from bots.documents.article import Article, Unreadable
from bots.documents.text import decode_text

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REFERENCE = re.compile(r"&#(?:x([\da-f]{1,8})|(\d{1,9}))(?![\da-f]);?", re.IGNORECASE)


def read_html(content: bytes, *, url: str = "", charset: str = "") -> Article:
    """The main text of a page, without comments, menus and banners, and what the page says of it."""
    import trafilatura

    html = decode_text(content, charset or declared_charset(content))
    html = remove_unparsable(html)
    found = trafilatura.bare_extraction(
        html, url=url or None, include_comments=False, favor_precision=True, with_metadata=True
    )
    text = (found.text or "") if found is not None else ""
    notes = paywall.check_for_wall(html, text)
    if found is None or not text.strip():
        raise Unreadable("empty", "The page holds no article: it may be a list or a front page.")
    return Article(
        text=separate_paragraphs(text),
        title=found.title or "",
        author=found.author or "",
        date=found.date or "",
        site=found.sitename or found.hostname or "",
        url=found.url or url,
        notes=notes,
    )


def remove_unparsable(html: str) -> str:
    r"""`html` without control characters: one of them, and the parser gives nothing at all.

    References to them go too; those from 128 to 159 mean Windows-1252, as in every browser.

    >>> remove_unparsable("a\x1b &#x1b;&#150; &#228;")
    'a – &#228;'
    """

    def mended(found: re.Match[str]) -> str:
        code = int(found[1], 16) if found[1] else int(found[2])
        if 127 < code < 160:
            return bytes([code]).decode("cp1252", "ignore")
        return found[0] if (code > 31 and code != 127) or code in (9, 10, 13) else ""

    return _CONTROL.sub("", _REFERENCE.sub(mended, html))


def separate_paragraphs(text: str) -> str:
    r"""Put a blank line between the paragraphs, which trafilatura ends with one newline each.

    >>> separate_paragraphs("First.\n- a\n- b\nLast.")
    'First.\n\n- a\n- b\n\nLast.'
    """
    lines = [line for line in text.split("\n") if line.strip()]
    joined = ""
    for at, one in enumerate(lines):
        inside = at and one[:2] in ("- ", "| ") and lines[at - 1][:2] == one[:2]
        joined += ("\n" if inside else "\n\n" if at else "") + one
    return joined


def declared_charset(content: bytes) -> str:
    """The charset a page names in its first kilobytes; empty when it names none.

    >>> declared_charset(b'<meta charset="iso-8859-1">')
    'iso-8859-1'
    """
    found = re.search(rb"charset\s*=\s*[\"']?\s*([\w:-]+)", content[:4096], re.IGNORECASE)
    return found[1].decode("ascii") if found else ""
