"""What a handful of bytes is: told by the bytes first, by the name and the content type only in doubt."""

from __future__ import annotations

from pathlib import PurePath

from bots.documents.article import Unreadable

_SUFFIXES = {
    ".htm": "html", ".html": "html", ".xhtml": "html", ".shtml": "html", ".pdf": "pdf",
    ".epub": "epub", ".docx": "docx", ".md": "markdown", ".markdown": "markdown",
    ".txt": "text", ".text": "text", ".rst": "text",
}  # fmt: skip
_TYPES = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/epub+zip": "epub",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/plain": "text",
}
ACCEPTED_TYPES = (
    *_TYPES, "application/octet-stream", "binary/octet-stream", "application/force-download",
    "application/x-download", "application/zip", "application/xml", "text/xml", "",
)  # fmt: skip
"""Content types that a server may send; the bytes decide what they are."""

_MAGIC = (
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"RIFF", "a media file"),
    (b"\x00\x00\x00", "a media file"),
    (b"OggS", "a media file"),
    (b"ID3", "a media file"),
    (b"fLaC", "a media file"),
    (b"\x1a\x45\xdf\xa3", "a media file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"SQLite format 3", "a database"),
    (b"GGUF", "a model"),
    (b"\xd0\xcf\x11\xe0", "an old Office document: save it as .docx"),
    (b"{\\rtf", "an RTF document: save it as .docx"),
)


def kind_of(content: bytes, name: str = "", content_type: str = "") -> str:
    """Return `html`, `pdf`, `epub`, `docx`, `markdown` or `text`, or raise a sentence that says what this is.

    >>> kind_of(b"<!doctype html><p>Hi"), kind_of(b"# Hi", "notes.md"), kind_of(b"%PDF-1.7 ...")
    ('html', 'markdown', 'pdf')
    """
    where = name or "The input"
    head = content[:4096]
    if not content.strip():
        raise Unreadable("empty", f"{where} is empty.")
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _zipped(content, where)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _written(
            head.decode("utf-16", "ignore"), name, content_type
        )  # zeros are no sign here
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise Unreadable("kind", f"{where} is {what}, not a text that can be summarised.")
    if b"\0" in head or _mostly_control(head):
        raise Unreadable("kind", f"{where} is a binary file, not a text that can be summarised.")
    return _written(head.decode("utf-8", "ignore"), name, content_type)


def _zipped(content: bytes, where: str) -> str:
    if b"application/epub+zip" in content[:200] or b"META-INF/container.xml" in content:
        return "epub"
    if b"word/document.xml" in content:
        return "docx"
    raise Unreadable(
        "kind", f"{where} is a ZIP archive (or another Office format): unpack it and pass one file."
    )


def _written(head: str, name: str, content_type: str) -> str:
    start = head.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body", "<!--", "<?xml", "<article")):
        return "html"
    by_name = _SUFFIXES.get(PurePath(name.split("?")[0]).suffix.lower())
    told = _TYPES.get(content_type) if content_type != "text/plain" else None
    if by_type := told or by_name or _TYPES.get(content_type):
        return by_type if by_type not in ("pdf", "epub", "docx") else "text"
    tags = sum(start.count(tag) for tag in ("<p", "<div", "<br", "</", "<meta"))
    return "html" if start.startswith("<") and tags >= 2 else "text"


def _mostly_control(head: bytes) -> bool:
    odd = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in head)
    return odd > len(head) / 20
