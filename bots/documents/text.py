"""Plain text and Markdown as they are; only the bytes have to become characters."""

from __future__ import annotations

import codecs
import re

from bots.documents.article import Article, Unreadable


def read_text_file(content: bytes, kind: str, *, charset: str = "") -> Article:
    """A text file; a Markdown one gives its front matter's or first heading as the title."""
    text = decode_text(content, charset)
    if kind != "markdown":
        return Article(text=text)
    front: dict[str, str] = {}
    if found := re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL):
        for name, value in re.findall(r"^(\w+):[ \t]*(.+)$", found[1], re.MULTILINE):
            front[name.lower()] = value.strip().strip("\"'")
        text = text[found.end() :]
    heading = re.search(r"^#[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE)
    return Article(
        text=text,
        title=front.get("title") or (heading[1] if heading else ""),
        author=front.get("author", ""),
        date=front.get("date", ""),
    )


def decode_text(content: bytes, charset: str = "") -> str:
    r"""Bytes as text: the byte order mark, the charset named, UTF-8, then the likeliest of all.

    >>> decode_text("naïve".encode("latin-1")), decode_text("\ufeffnaïve".encode("utf-16"))
    ('naïve', 'naïve')
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    for mark, encoding in marks.items():
        if content.startswith(mark):
            return content.decode(encoding, "replace").lstrip("\ufeff")
    for encoding in ("utf-8", _known(charset)):
        try:
            return content.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    text = content.decode("utf-8", "replace")
    lost, others = text.count("\ufffd"), sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if others > 4 * lost:  # UTF-8 with a few broken places, not another encoding
        return text
    if len(content) < 256:  # too little to guess from
        return content.decode("cp1252", "replace")
    from charset_normalizer import from_bytes

    best = from_bytes(content[:50_000]).best()
    if best is None:
        raise Unreadable("kind", "The input is in no known character encoding: save it as UTF-8.")
    return content.decode(best.encoding, "replace")


def _known(charset: str) -> str:
    """The codec called `charset`, if it is one of text in files; some of Python's are not, and slow."""
    try:
        name = codecs.lookup(charset).name if charset else ""
    except (LookupError, ValueError):
        return ""
    return (
        ""
        if name in ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape")
        else name
    )
