"""A PDF becomes the text of its text layer; one without a layer is a pile of pictures, and said to be."""

from __future__ import annotations

import io
import re
from typing import Any

from bots.documents.article import Article, Unreadable
from bots.documents.sanitise import count_words

MAX_PAGES = 2_000


def read_pdf(content: bytes) -> Article:
    """The text of all pages, lines joined into paragraphs, with title, author and date where told."""
    import pypdf
    from pypdf.errors import PdfReadError

    try:
        document = pypdf.PdfReader(io.BytesIO(content))
        if document.is_encrypted and not document.decrypt(""):
            raise Unreadable("password", "The PDF asks for a password: save a copy without one.")
        count = len(document.pages)
    except PdfReadError as error:
        raise Unreadable("damaged", f"The PDF is damaged and can't be read ({error}).") from error
    if count > MAX_PAGES:
        raise Unreadable(
            "size", f"The PDF has {count:,} pages; at most {MAX_PAGES:,} are read: split it."
        )
    pages, lost = [], []
    for number, page in enumerate(document.pages, 1):
        try:
            pages.append(page.extract_text())
        except (MemoryError, RecursionError):
            raise
        except Exception:  # one damaged page says nothing of the others
            lost.append(number)
    text = join_lines(pages)
    if lost and not text:
        raise Unreadable("damaged", "No page of the PDF can be read: it is damaged.")
    if count_words(text) < max(1, count // 2) * 5:
        raise Unreadable(
            "scanned",
            "The PDF has no text layer, its pages are pictures: run OCR over it first (such as ocrmypdf).",
        )
    notes = (
        [f"Pages that can't be read and are missing: {', '.join(map(str, lost))}."] if lost else []
    )
    told: dict[str, Any] = dict(document.metadata or {})
    date = re.match(r"D:(\d{4})(\d\d)(\d\d)", str(told.get("/CreationDate", "")))
    return Article(
        text=text,
        title=str(told.get("/Title") or "") or _first_line(pages),
        author=str(told.get("/Author") or ""),
        date="-".join(date.groups()) if date else "",
        notes=tuple(notes),
    )


def join_lines(pages: list[str]) -> str:
    r"""Join the lines of a page layout to paragraphs, and what a page break tore apart.

    >>> join_lines(["A long line that is hyphen-\nated and goes on\nuntil here.", "Next page."])
    'A long line that is hyphenated and goes on until here.\n\nNext page.'
    """
    paragraphs: list[list[str]] = []
    for page in pages:
        lines = [" ".join(line.split()) for line in page.splitlines()]
        if lines and re.fullmatch(r"\W*(?:page )?\d{1,4}\W*", lines[-1], re.IGNORECASE):
            lines.pop()  # the page number
        widest = max(map(len, lines), default=0)
        before = widest
        fresh = not (paragraphs and re.search(r"[\w,;-]$", paragraphs[-1][-1][-2:]))
        for line in lines:
            if not line:
                fresh = True
                continue
            end = paragraphs[-1][-1][-2:] if paragraphs else ""
            if fresh or not end or (before < 0.7 * widest and re.search(r"[.!?:”\"]$", end)):
                paragraphs.append([line])
            elif re.search(r"[^\W\d_]-$", end) and line[0].islower():
                paragraphs[-1][-1] = paragraphs[-1][-1][:-1]
                paragraphs[-1].append(line)
            else:
                paragraphs[-1].append(f" {line}")
            fresh, before = False, len(line)
    return "\n\n".join("".join(lines) for lines in paragraphs)


def _first_line(pages: list[str]) -> str:
    """The first line of all where it may be a title."""
    first = (
        next((line.strip() for line in pages[0].splitlines() if line.strip()), "") if pages else ""
    )
    return first if 3 < len(first) <= 120 and not first[0].isdigit() else ""
