"""An EPUB becomes its chapters in reading order; the wrapping is XML in a ZIP, so no library is needed."""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import unquote

from bots.documents.article import Article, Unreadable
from bots.documents.zip import DocumentArchive

_BLOCKS = frozenset(
    ("p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "blockquote", "pre", "td", "th", "dt", "dd", "figcaption",
     "div", "section")
)  # fmt: skip
_SKIPPED = frozenset(("script", "style", "head", "nav", "svg", "math"))
_LOCKED = "META-INF/encryption.xml"
_PLAIN_LOCKS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways to scramble fonts; everything else means that the chapters themselves are locked."""


def read_epub(content: bytes) -> Article:
    """All chapters of the spine, with what the package says of title, author, date and publisher."""
    archive = DocumentArchive(content)
    _refuse_locked(archive)
    container = archive.read_xml("META-INF/container.xml")
    package = next(
        (e.get("full-path") for e in _all(container, "rootfile") if e.get("full-path")), None
    )
    if package is None:
        raise Unreadable("damaged", "The EPUB names no package: it is damaged.")
    root = archive.read_xml(package)
    files = {item.get("id"): item for item in _all(root, "item")}
    chapters, lost = [], 0
    for entry in _all(root, "itemref"):
        item = files.get(entry.get("idref"))
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        path = posixpath.normpath(
            posixpath.join(posixpath.dirname(package), unquote(item.get("href") or ""))
        )
        try:
            chapters.append(chapter_text(archive.read_member(path)))
        except Unreadable as error:
            if error.reason != "damaged":
                raise
            lost += 1
    if lost and not any(chapters):
        raise Unreadable("damaged", "No chapter of the EPUB can be read: it is damaged.")
    return Article(
        text="\n\n".join(filter(None, chapters)),
        title=_told(root, "title"),
        author=_told(root, "creator"),
        date=_told(root, "date")[:10],
        site=_told(root, "publisher"),
        notes=(f"{lost} chapters are damaged and missing.",) if lost else (),
    )


def chapter_text(content: bytes) -> str:
    """The text of one XHTML file, a paragraph for each block."""
    import lxml.html
    from lxml import etree

    try:
        tree = lxml.html.document_fromstring(content)
    except (etree.LxmlError, ValueError):  # an empty page, such as a cover that is only a picture
        return ""
    blocks: list[str] = []
    _walk(tree, blocks)
    return "\n\n".join(found for block in blocks if (found := " ".join(block.split())))


def _walk(tree: Any, blocks: list[str]) -> None:
    """Collect text in document order; a block element opens a new paragraph. Deep trees don't recurse."""
    from lxml import etree

    blocks.append("")
    skipped = 0
    for event, node in etree.iterwalk(tree, events=("start", "end")):
        name = node.tag if isinstance(node.tag, str) else "script"
        if event == "start":
            skipped += name in _SKIPPED
            if name in _BLOCKS:
                blocks.append("")
            elif name == "br":
                blocks[-1] += " "
            if not skipped:
                blocks[-1] += node.text or ""
        else:
            skipped -= name in _SKIPPED
            if name in _BLOCKS:
                blocks.append("")
            if not skipped:
                blocks[-1] += node.tail or ""


def _refuse_locked(archive: DocumentArchive) -> None:
    try:
        locks = archive.read_xml(_LOCKED)
    except Unreadable as error:
        if error.reason == "damaged":
            return  # there is none
        raise
    ways = [element.get("Algorithm") or "" for element in _all(locks, "EncryptionMethod")]
    if any(way not in _PLAIN_LOCKS for way in ways):
        raise Unreadable("password", "The EPUB is locked (DRM): its text can't be read.")


def _all(root: Any, name: str) -> list[Any]:
    return list(root.iter("{*}" + name))


def _told(root: Any, name: str) -> str:
    return next((e.text for e in _all(root, name) if e.text and e.text.strip()), "").strip()
