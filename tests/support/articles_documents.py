"""Small documents of every kind, made on the spot, and ways to damage them."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

SAMPLE = Path(__file__).parents[2] / "bots" / "articles" / "samples" / "lighthouse.html"
PARAGRAPHS = [
    "The keeper counted forty ships before the fog came in from the north.",
    "By midnight the lamp could not be seen from the rocks below the tower.",
    "In the morning every one of the forty ships lay safe in the harbour.",
]

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/>'
    "</rootfiles></container>"
)
PACKAGE = (
    '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
    "<dc:title>The Fog</dc:title><dc:creator>A. Keeper</dc:creator><dc:date>2024-05-06</dc:date>"
    "<dc:publisher>Tower Press</dc:publisher></metadata><manifest>"
    '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>{items}</manifest>'
    '<spine><itemref idref="nav"/>{refs}</spine></package>'
)


def zipped(members: dict[str, str | bytes]) -> bytes:
    """A ZIP archive in memory; the first member is stored, as EPUB wants its mimetype."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for at, (name, content) in enumerate(members.items()):
            archive.writestr(name, content, zipfile.ZIP_STORED if at == 0 else None)
    return out.getvalue()


def epub(*chapters: str, **more: str | bytes) -> bytes:
    """An EPUB with these chapters; `more` adds or replaces members (`__` stands for a slash)."""
    chapters = chapters or tuple(f"<h1>{at}</h1><p>{p}</p>" for at, p in enumerate(PARAGRAPHS))
    names = [f"chapter{at}.xhtml" for at in range(len(chapters))]
    items = "".join(
        f'<item id="c{n}" href="{n}" media-type="application/xhtml+xml"/>' for n in names
    )
    refs = "".join(f'<itemref idref="c{n}"/>' for n in names)
    members: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/content.opf": PACKAGE.format(items=items, refs=refs),
        "OEBPS/nav.xhtml": "<html><body><nav><p>Contents of the book</p></nav></body></html>",
    }
    for name, chapter in zip(names, chapters, strict=True):
        members[f"OEBPS/{name}"] = (
            f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title>'
            f"<style>p {{}}</style></head><body>{chapter}</body></html>"
        )
    members |= {name.replace("__", "/"): content for name, content in more.items()}
    return zipped(members)


def docx(body: str = "", **more: str | bytes) -> bytes:
    """A DOCX with the paragraphs, or with `body` as its XML."""
    w = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = body or "".join(f"<w:p><w:r><w:t>{p}</w:t></w:r></w:p>" for p in PARAGRAPHS)
    core = (
        '<p xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/">'
        "<dc:title>The Fog</dc:title><dc:creator>A. Keeper</dc:creator>"
        "<dcterms:modified>2024-05-06T07:08:09Z</dcterms:modified></p>"
    )
    members: dict[str, str | bytes] = {
        "[Content_Types].xml": "<Types/>",
        "word/document.xml": f'<w:document xmlns:w="{w}"><w:body>{body}</w:body></w:document>',
        "docProps/core.xml": core,
    }
    return zipped(members | {name.replace("__", "/"): content for name, content in more.items()})


def pdf(
    pages: list[list[str]] | None = None, info: str = "/Title (The Fog) /Author (A. Keeper)"
) -> bytes:
    """A PDF with a text layer, one list of lines for each page; an empty list is a page of pictures."""
    pages = pages if pages is not None else [[p] for p in PARAGRAPHS]
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"",
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
               f"<< {info} /CreationDate (D:20240506070809Z) >>".encode()]  # fmt: skip
    kids = []
    for lines in pages:
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        stream = f"BT /F1 12 Tf 72 720 Td {shown}ET".encode("latin-1")
        number = len(objects) + 1
        kids.append(f"{number} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\n" % (len(objects) + 1)
    return out + b"startxref\n%d\n%%%%EOF\n" % start


def locked_pdf(password: str) -> bytes:
    """A PDF that opens with `password` only."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf()))
    writer.encrypt(password, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def damaged(rng: random.Random, kind: str) -> bytes:
    """One document of `kind` (html, pdf, epub) with one to twenty wounds."""
    if kind == "epub":
        return _damaged_epub(rng)
    whole = pdf() if kind == "pdf" else SAMPLE.read_bytes()
    return wounded(rng, whole)


def _damaged_epub(rng: random.Random) -> bytes:
    """Half of the time the ZIP itself is hurt, else one of its members, and the ZIP is sound."""
    if rng.random() < 0.4:
        return wounded(rng, epub())
    with zipfile.ZipFile(io.BytesIO(epub())) as archive:
        members: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    victim = rng.choice(list(members)[1:])
    content = members[victim]
    assert isinstance(content, bytes)
    if rng.random() < 0.2:
        del members[victim]
    else:
        members[victim] = wounded(rng, content)
    return zipped(members)


def wounded(rng: random.Random, whole: bytes) -> bytes:
    """Flip, cut, double, drop, stuff: what disks, networks and enemies do to bytes."""
    hurt = bytearray(whole)
    nasty = (
        b"<div>" * 30_000, b"<!--", b"<![CDATA[", b"</", b"<p " + b"a" * 100_000, b"&#x1b;[2J", b"\x00" * 50,
        b"&lol;" * 1000, b"<!DOCTYPE x [<!ENTITY lol 'lol'>]>", b"\xff\xfe", b"<table>" * 5_000, b"\xf0\x9f",
        b"<script>" * 2_000, b"9999999999", b"-1", b"1 0 R", b"endobj", b"stream\n", b"/Kids [2 0 R]",
        b"(((((" * 9_000, b"<</A" * 9_000, b"[" * 9_000, b"</html>", b"<svg><math>" * 3_000,
    )  # fmt: skip
    for _ in range(rng.choice((1, 1, 2, 3, 5, 20))):
        if not hurt:
            break
        at, size = rng.randrange(len(hurt)), rng.choice((1, 4, 40, 400, 4000))
        how = rng.randrange(6)
        if how == 0:
            hurt[at] = rng.randrange(256)
        elif how == 1:
            del hurt[at:]
        elif how == 2:
            del hurt[at : at + size]
        elif how == 3:
            hurt[at:at] = hurt[at : at + size]
        elif how == 4:
            hurt[at:at] = rng.choice(nasty)
        else:
            hurt[at : at + size] = rng.randbytes(size)
    return bytes(hurt)


def prose(sentences: int, seed: int = 1) -> str:
    """Sentences that are all different, in paragraphs."""
    rng = random.Random(seed)
    names = ["Ada", "Ben", "Carla", "Dan", "Ella", "Finn", "Grace", "Hugo", "Ida", "Jack"]
    things = [
        "lamp",
        "bridge",
        "letter",
        "harbour",
        "engine",
        "garden",
        "clock",
        "mirror",
        "tower",
        "ladder",
    ]
    paragraphs, made = [], 0
    while made < sentences:
        some = []
        for _ in range(rng.randint(2, 6)):
            made += 1
            some.append(
                f"{rng.choice(names)} saw the {rng.choice(things)} number {made} on the way home."
            )
        paragraphs.append(" ".join(some))
    return "\n\n".join(paragraphs)
