"""A DOCX becomes its paragraphs and tables; read straight from its XML, so no library is needed."""

from __future__ import annotations

from typing import Any

from bots.documents.article import Article, Unreadable
from bots.documents.zip import DocumentArchive

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_STRICT = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"


def read_docx(content: bytes) -> Article:
    """The text of the document's body as it stands after accepting all changes."""
    archive = DocumentArchive(content)
    root = archive.read_xml("word/document.xml")
    w = _STRICT if root.tag.startswith(_STRICT) else _W
    body = root.find(f"{w}body")
    if body is None:
        raise Unreadable("damaged", "The document has no body: it is damaged.")
    blocks: list[str] = []
    for row in body.iter(f"{w}p", f"{w}tr"):
        if row.tag == f"{w}tr":
            cells = [
                " ".join(_text(p, w) for p in cell.iter(f"{w}p")) for cell in row.iter(f"{w}tc")
            ]
            blocks.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
        elif not any(True for _ in row.iterancestors(f"{w}tc")):
            blocks.append(_text(row, w))
    told = _properties(archive)
    return Article(
        text="\n\n".join(filter(str.strip, blocks)),
        title=told.get("title", ""),
        author=told.get("creator", ""),
        date=(told.get("modified") or told.get("created", ""))[:10],
    )


def _text(paragraph: Any, w: str) -> str:
    pieces: list[str] = []
    for node in paragraph.iter(f"{w}t", f"{w}tab", f"{w}br", f"{w}cr", f"{w}noBreakHyphen"):
        name = node.tag.removeprefix(w)
        pieces.append(
            {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}.get(name, node.text or "")
        )
    return "".join(pieces).strip()


def _properties(archive: DocumentArchive) -> dict[str, str]:
    try:
        root = archive.read_xml("docProps/core.xml")
    except Unreadable:
        return {}  # many writers leave it out
    return {
        element.tag.rpartition("}")[2]: (element.text or "").strip()
        for element in root.iter()
        if isinstance(element.tag, str)
    }
