"""A DOCX becomes its paragraphs and tables; read straight from its XML, so no library is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bots.documents.article import Article, Unreadable
from bots.documents.zip import DocumentArchive

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
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
    for row in _shown(body, w, (f"{w}p", f"{w}tr")):
        if row.tag == f"{w}tr":
            if any(True for _ in row.iterancestors(f"{w}tc")):
                continue  # a table within a cell: read with the cell
            cells = [
                " ".join(_text(p, w) for p in _shown(cell, w, (f"{w}p",)))
                for cell in row.iter(f"{w}tc")
                if next(cell.iterancestors(f"{w}tr")) is row
            ]
            blocks.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
        elif not any(True for _ in row.iterancestors(f"{w}tc")):
            blocks.append(_text(row, w))
    for name in ("word/footnotes.xml", "word/endnotes.xml"):
        blocks += _notes(archive, name)
    told = _properties(archive)
    return Article(
        text="\n\n".join(filter(str.strip, blocks)),
        title=told.get("title", ""),
        author=told.get("creator", ""),
        date=(told.get("modified") or told.get("created", ""))[:10],
    )


def _shown(root: Any, w: str, tags: tuple[str, ...]) -> Iterator[Any]:
    """What a reader sees of `root`: no fallback beside its choice, nothing moved away or deleted."""
    gone = {f"{_MC}Fallback", f"{w}moveFrom", f"{w}del"}
    for element in root.iter(*tags):
        above = element.iterancestors()
        if not any(one.tag in gone for one in _until(above, root)) and not _hidden(element, w):
            yield element


def _until(above: Iterator[Any], root: Any) -> Iterator[Any]:
    for one in above:
        if one is root:
            return
        yield one


def _hidden(element: Any, w: str) -> bool:
    """Whether a row is deleted or a paragraph's mark moved away with all of it."""
    return element.find(f"{w}trPr/{w}del") is not None


def _text(paragraph: Any, w: str) -> str:
    """What the runs of one paragraph show; those of a text box in it are paragraphs of their own."""
    pieces: list[str] = []
    names = [f"{w}{name}" for name in ("t", "tab", "br", "cr", "noBreakHyphen")]
    for node in _shown(paragraph, w, tuple(names)):
        run = node.getparent()
        if next(node.iterancestors(f"{w}p")) is not paragraph or _vanishes(run, w):
            continue
        if run.tag == f"{w}tabs":  # where tabs stop, not one that was typed
            continue
        name = node.tag.removeprefix(w)
        pieces.append(
            {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}.get(name, node.text or "")
        )
    return "".join(pieces).strip()


def _vanishes(run: Any, w: str) -> bool:
    """Whether a run is hidden text; `<w:vanish w:val="0"/>` takes it back."""
    for name in ("vanish", "webHidden"):
        mark = run.find(f"{w}rPr/{w}{name}")
        if mark is not None and mark.get(f"{w}val", "1") not in ("0", "false", "off"):
            return True
    return False


def _notes(archive: DocumentArchive, name: str) -> list[str]:
    """Foot- or endnotes, without the lines that only part them from the text."""
    try:
        root = archive.read_xml(name)
    except Unreadable as error:
        if error.reason == "damaged":
            return []  # most documents have none
        raise
    w = _STRICT if root.tag.startswith(_STRICT) else _W
    notes = [one for one in root if isinstance(one.tag, str) and not one.get(f"{w}type")]
    return [" ".join(_text(p, w) for p in _shown(note, w, (f"{w}p",))) for note in notes]


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
