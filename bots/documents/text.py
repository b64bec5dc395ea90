"""Plain text and Markdown as they are; only the bytes have to become characters."""

from __future__ import annotations

import codecs
import re

from bots.documents.article import Article


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
    r"""Bytes as text: the byte order mark, UTF-8, the charset named as browsers read it, then the likeliest.

    Browsers take `iso-8859-1` for windows-1252 and `gb2312` for gb18030: w3lib knows the list. What is named
    by nobody is guessed by chardetng, Firefox's own detector, over all of the bytes.

    >>> decode_text("naïve".encode("latin-1")), decode_text("\ufeffnaïve".encode("utf-16"))
    ('naïve', 'naïve')
    >>> decode_text(b"\x93caf\xe9\x94", "iso-8859-1")
    '“café”'
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    for mark, encoding in marks.items():
        if content.startswith(mark):
            return content.decode(encoding, "replace").lstrip("\ufeff")
    named = _known(charset)
    sevenbit = "iso-2022-jp" if _JIS.search(content) else named if named in _SEVEN_BIT else ""
    for encoding in (sevenbit, "utf-8", named):
        try:
            return content.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    text = content.decode("utf-8", "replace")
    lost, others = text.count("\ufffd"), sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if others > 4 * lost:  # UTF-8 with a few broken places, not another encoding
        return text
    if named and named not in ("utf-8", "ascii"):
        told = content.decode(named, "replace")
        if told.count("\ufffd") <= len(content) / 200:  # as named, with a few broken places
            return told
    if sum(byte > 127 for byte in content) < 3:  # too little to guess from
        return content.decode("cp1252", "replace")
    from chardetng_py import EncodingDetector  # type: ignore[import-untyped]

    detector = EncodingDetector()
    detector.feed(content, last=True)
    return content.decode(_known(detector.guess(tld=None, allow_utf8=False)) or "cp1252", "replace")


_JIS = re.compile(rb"\x1b(?:\$[@B]|\([BJI])")
"""The escapes by which ISO-2022-JP changes its set; all its bytes are ASCII, so UTF-8 would take it too."""
_SEVEN_BIT = ("iso2022_jp", "iso2022_kr", "hz")


def _known(charset: str) -> str:
    """The codec that browsers mean by `charset`, if it is one of text in files; some of Python's are not."""
    from w3lib.encoding import resolve_encoding

    try:
        name = resolve_encoding(charset) if charset else None
        name = resolve_encoding(codecs.lookup(name).name) if name else None
        b"a".decode(name or "")  # some of Python's codecs are none of text
    except (LookupError, ValueError):
        return ""
    return "" if not name or name in _STRANGE else codecs.lookup(name).name


_STRANGE = ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined")
