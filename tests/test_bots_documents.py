"""Documents of every kind, whole, odd, hostile and damaged: pytest tests/test_bots_documents.py"""

from __future__ import annotations

import gzip
import json
import random
import re
import statistics
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from bots.documents import sandbox, worker
from bots.documents.article import Article, Unreadable
from bots.documents.sniff import kind_of
from support.articles_command import rig, rig_apart
from support.articles_documents import (
    PARAGRAPHS,
    SAMPLE,
    damaged,
    docx,
    epub,
    locked_pdf,
    pdf,
    zipped,
)


def read(content: bytes, name: str) -> Article:
    """Sniffed and taken apart in this process."""
    return worker.read_document(content, kind_of(content, name), name=name)


def reason(content: bytes, name: str) -> str:
    """Why there is no text."""
    with pytest.raises(Unreadable) as caught:
        read(content, name)
    assert caught.value.message.endswith(".")
    return caught.value.reason


@pytest.mark.parametrize(("make", "kind"), [(pdf, "pdf"), (epub, "epub"), (docx, "docx")])
def test_a_document_gives_its_paragraphs_and_what_it_says_of_itself(
    make: object, kind: str
) -> None:
    assert callable(make)
    found = read(make(), f"fog.{kind}")
    assert found.kind == kind
    assert [p for p in found.text.split("\n\n") if len(p) > 2] == PARAGRAPHS
    assert (found.title, found.author, found.date) == ("The Fog", "A. Keeper", "2024-05-06")


def test_the_bytes_decide_what_a_file_is_whatever_its_name() -> None:
    assert kind_of(pdf(), "page.html") == "pdf"
    assert kind_of(epub(), "x.zip", "application/zip") == "epub"
    assert kind_of(docx(), "", "application/octet-stream") == "docx"
    assert kind_of(b"<!DOCTYPE html><p>Hi", "notes.txt", "text/plain") == "html"
    assert kind_of(b"Just words.", "page.pdf", "application/pdf") == "text"
    assert kind_of("Just words.".encode("utf-16"), "a.txt") == "text"


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b"", "a.txt", "empty"),
        (b" \n\t ", "a.html", "empty"),
        (b"<html><body></body></html>", "a.html", "empty"),
        (b"\x7fELF\x02\x01\x01", "a", "kind"),
        (b"\x89PNG\r\n\x1a\n", "a.html", "kind"),
        (b"GGUF\x03\x00", "a.gguf", "kind"),
        (b"\x1f\x8b\x08", "a.txt", "kind"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "a.doc", "kind"),
        (bytes(range(256)) * 10, "a", "kind"),
        (zipped({"a.txt": "x", "b.txt": "y"}), "a.zip", "kind"),
        (locked_pdf("secret"), "a.pdf", "password"),
        (pdf([[], [], []]), "a.pdf", "scanned"),
        (pdf([["3"], ["4"], ["5"]]), "a.pdf", "scanned"),  # only page numbers have letters
        (pdf()[:400], "a.pdf", "damaged"),
        (epub(META_INF__encryption_xml="x"), "a.epub", "ok"),  # another file name: no lock
        (b"--- --- ---\n***\n", "a.md", "empty"),
    ],
)
def test_what_can_not_be_read_is_said(content: bytes, name: str, expected: str) -> None:
    if expected == "ok":
        assert read(content, name).text
    else:
        assert reason(content, name) == expected


def test_a_pdf_with_an_empty_password_opens() -> None:
    assert "forty ships" in read(locked_pdf(""), "a.pdf").text


def test_a_locked_book_is_said_to_be_locked_and_scrambled_fonts_are_not() -> None:
    lock = '<a xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="{}"/></a>'
    drm = lock.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")
    fonts = lock.format("http://www.idpf.org/2008/embedding")
    assert reason(epub(**{"META-INF__encryption.xml": drm}), "a.epub") == "password"
    assert read(epub(**{"META-INF__encryption.xml": fonts}), "a.epub").text


def test_a_missing_chapter_is_said_and_the_others_are_read() -> None:
    with zipfile.ZipFile(__import__("io").BytesIO(epub())) as archive:
        members: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    del members["OEBPS/chapter1.xhtml"]
    found = read(zipped(members), "a.epub")
    assert found.notes == ("1 chapters are damaged and missing.",)
    assert PARAGRAPHS[0] in found.text
    assert PARAGRAPHS[2] in found.text


def test_a_zip_bomb_does_not_unfold() -> None:
    bomb = epub(f"<p>{'a' * 30_000_000}</p>")
    assert len(bomb) < 100_000
    assert reason(bomb, "bomb.epub") == "size"
    many = epub(*[f"<p>{'a' * 9_000_000}</p>"] * 8)
    assert reason(many, "bombs.epub") == "size"


def test_entities_in_a_book_neither_unfold_nor_fetch(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    package = (
        '<!DOCTYPE p [<!ENTITY l0 "lol">{}<!ENTITY s SYSTEM "file://{}">]><package><metadata><title>{}'
        '</title></metadata><manifest><item id="a" href="chapter0.xhtml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    curious = package.format("", secret, "&s;")
    found = read(epub(**{"OEBPS__content.opf": curious}), "a.epub")
    assert (found.title, PARAGRAPHS[0] in found.text) == ("", True)
    swollen = package.format(laughs, secret, "&l9;" * 9)
    start = time.monotonic()
    assert reason(epub(**{"OEBPS__content.opf": swollen}), "a.epub") in ("damaged", "empty")
    assert time.monotonic() - start < 5


def test_deep_nesting_is_survived() -> None:
    page = b"<html><body>" + b"<div>" * 100_000 + b"<p>Some words.</p>" * 40
    assert worker.answer_request(page, kind="html").get("reason", "ok") in (
        "ok",
        "empty",
        "size",
        "damaged",
    )


def test_a_document_table_and_its_tabs_become_text() -> None:
    cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    row = f"<w:tr>{cell.format('Lamp')}{cell.format('24 candles')}</w:tr>"
    body = (
        "<w:p><w:r><w:t>Before</w:t><w:tab/><w:t>after</w:t></w:r></w:p><w:p><w:del><w:r><w:delText>gone"
        f"</w:delText></w:r></w:del></w:p><w:tbl>{row}</w:tbl>"
    )
    assert read(docx(body), "a.docx").text == "Before\tafter\n\n| Lamp | 24 candles |"


def test_markdown_keeps_its_text_and_gives_its_front_matter() -> None:
    found = read(
        b'---\ntitle: "The Fog"\nauthor: A. Keeper\n---\n# Other\n\nSome *words*.\n', "a.md"
    )
    assert (found.title, found.author, found.text) == (
        "The Fog",
        "A. Keeper",
        "# Other\n\nSome *words*.",
    )
    assert read(b"# Only a heading\n\nWords.", "a.md").title == "Only a heading"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_recognised(encoding: str) -> None:
    text = "Ein Leuchtturm für Schiffe, die über die Klippen fürchten: häufig gefährlich. " * 8
    assert read(text.encode(encoding), "a.txt").text == text.strip()


def test_a_few_broken_bytes_do_not_change_the_encoding_of_all() -> None:
    text = "Über die Klippen fürchten. " * 50
    assert read(text.encode() + b"\xc3", "a.txt").text.startswith("Über die Klippen")


def test_terminal_escapes_never_come_through() -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\x08 &#x1b;[31m &#155;5n "
    page = f"<html><head><title>A{nasty}title</title></head><body><article>"
    page += f"<p>{'Some words to read. ' * 30}{nasty}</p>"
    for content, name in (
        (page.encode(), "a.html"),
        ((nasty + "Words.").encode(), "a.txt"),
        (epub(f"<p>{nasty}Words.</p>"), "a.epub"),
    ):
        found = read(content, name)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", found.text + found.title), name


ODD = {
    "bot_check_cloudflare.html": "bot-check",
    "cookie_wall.html": "cookies",
    "js_shell_angular_real.html": "shell",
    "js_shell_built_react.html": "shell",
    "paywall_members_only.html": "paywall",
}


@pytest.mark.parametrize(("file", "expected"), ODD.items())
def test_walls_are_said_not_summarised(shared: Path, file: str, expected: str) -> None:
    assert reason((shared / "data/articles/odd" / file).read_bytes(), file) == expected


LONG = "The committee met again on Tuesday and decided very little. " * 60


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (f"<article><p>{LONG}</p></article><div>Accept all cookies to continue reading.</div>", "ok"),
        (f"<article><p>{LONG} Subscribe to continue reading.</p></article>", "ok"),
        (f"<article><p>{LONG}</p></article><script src='/cdn-cgi/challenge-platform/x.js'></script>", "ok"),
        (f"<noscript>Please enable JavaScript.</noscript><article><p>{LONG}</p></article>", "ok"),
        ("<article><p>A short note. It has two sentences.</p></article>", "ok"),
        ('<script type="application/ld+json">{"isAccessibleForFree": false}</script>'
         "<article><p>The beginning of the story, and then nothing more of it.</p></article>", "paywall"),
        ("<title>Just a moment...</title><p>Verify you are human by doing this.</p>", "bot-check"),
        ("<div id='app'></div><script src=/app.js></script>", "shell"),
        ("<app-root></app-root><noscript>This site requires JavaScript.</noscript>", "shell"),
        ("<p>Already a subscriber? Log in.</p><p>Subscribe to continue reading.</p>", "paywall"),
    ],
)  # fmt: skip
def test_a_wall_needs_two_signs(page: str, expected: str) -> None:
    found = worker.answer_request(
        f"<!doctype html><html><body>{page}</body></html>".encode(), kind="html"
    )
    assert found.get("reason", "ok") == expected, found


def test_a_paid_article_that_is_all_there_is_read_with_a_remark() -> None:
    told = '<script type="application/ld+json">{"isAccessibleForFree": "False"}</script>'
    found = read(
        f"<html><body>{told}<article><p>{LONG}</p></article></body></html>".encode(), "a.html"
    )
    assert found.notes == (
        "The page says that parts of it are for subscribers: the text may not be whole.",
    )


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[at : at + 4]) for at in range(max(1, len(words) - 3)) if words)


def test_articles_are_found_as_well_as_the_benchmark_asks(shared: Path) -> None:
    """The measure of the article extraction benchmark: F1 of mean precision and mean recall over shingles."""
    folder = shared / "data/articles"
    truth = json.loads((folder / "ground_truth.json").read_text())
    precisions, recalls = [], []
    for name, told in truth.items():
        content = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())
        found = shingles(
            worker.answer_request(content, kind="html", url=told["url"]).get("text", "")
        )
        wanted = shingles(told["articleBody"])
        both = (found & wanted).total()
        if found:
            precisions.append(both / found.total())
        if wanted:
            recalls.append(both / wanted.total())
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    assert len(truth) == 60
    assert 2 * precision * recall / (precision + recall) >= 0.965


def test_the_reader_is_killed_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreadable, match="takes longer than 0 s") as late:
        sandbox.extract_article(SAMPLE.read_bytes(), "html", name="a.html", seconds=0.01)
    assert late.value.reason == "time"
    monkeypatch.setattr(sandbox, "MEMORY", 45_000_000)
    with pytest.raises(Unreadable) as hungry:
        sandbox.extract_article(SAMPLE.read_bytes(), "html", name="a.html")
    assert hungry.value.reason in ("size", "damaged")


@pytest.mark.filterwarnings("ignore")
def test_damaged_documents_give_a_result_or_a_reason() -> None:
    """The full count runs with `-m slow`, each in the whole command."""
    for seed in range(120):
        kind = ("html", "pdf", "epub")[seed % 3]
        content = damaged(random.Random(seed), kind)
        try:
            found = worker.answer_request(
                content, kind=kind_of(content, f"a.{kind}"), name=f"a.{kind}"
            )
        except Unreadable as error:
            found = {"reason": error.reason, "message": error.message}
        assert found.get("text") or found["message"].endswith("."), seed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_damaged_documents_give_a_sentence_or_a_result(tmp_path: Path) -> None:
    outcomes: Counter[tuple[str, int]] = Counter()
    slowest = 0.0
    for seed in range(500):
        kind = ("html", "pdf", "epub")[seed % 3]
        file = tmp_path / f"{seed}.{kind}"
        file.write_bytes(damaged(random.Random(1000 + seed), kind))
        start = time.monotonic()
        done = rig_apart("summarise", str(file), "--extract", "--no-cache", seconds=100)
        slowest = max(slowest, time.monotonic() - start)
        assert done.returncode in (0, 1), (seed, done)
        assert "Traceback" not in done.stderr, (seed, done.stderr)
        assert bool(done.stdout.strip()) == (done.returncode == 0), (seed, done)
        if done.returncode:
            assert done.stderr.startswith("Error: "), (seed, done.stderr)
            assert done.stderr.strip().endswith("."), (seed, done.stderr)
        outcomes[kind, done.returncode] += 1
    print(dict(outcomes), f"slowest {slowest:.1f} s")


def test_a_damaged_file_through_the_whole_command(tmp_path: Path) -> None:
    file = tmp_path / "half.pdf"
    file.write_bytes(pdf()[:600])
    done = rig("summarise", str(file), "--extract")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: The PDF is damaged")


MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'


def p(text: str, run: str = "") -> str:
    return f"<w:p><w:r>{run}<w:t>{text}</w:t></w:r></w:p>"


def box(text: str) -> str:
    """A text box as Word writes it: once for itself, once for readers that know no shapes."""
    inside = f"<w:txbxContent>{p(text)}</w:txbxContent>"
    return (
        f"<w:p><w:r><w:t>Anchor.</w:t></w:r><w:r><mc:AlternateContent {MC}><mc:Choice>{inside}</mc:Choice>"
        f"<mc:Fallback><w:pict>{inside}</w:pict></mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )


def moved(name: str, text: str) -> str:
    return f"<w:p><w:{name}><w:r><w:t>{text}</w:t></w:r></w:{name}></w:p>"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (box("In a box."), "Anchor.\n\nIn a box."),
        (f"<w:tbl><w:tr><w:tc>{box('In a box.')}</w:tc></w:tr></w:tbl>", "| Anchor. In a box. |"),
        (f"<w:tbl><w:tr><w:tc>{p('Outer')}<w:tbl><w:tr><w:tc>{p('Inner')}</w:tc></w:tr></w:tbl></w:tc></w:tr>"
         "</w:tbl>", "| Outer Inner |"),
        (moved("moveFrom", "Moved.") + p("Kept.") + moved("moveTo", "Moved."), "Kept.\n\nMoved."),
        (p("Kept.") + moved("del", "Deleted.") + moved("ins", "New."), "Kept.\n\nNew."),
        (p("Seen.") + p("Hidden.", "<w:rPr><w:vanish/></w:rPr>"), "Seen."),
        (p("Seen after all.", '<w:rPr><w:vanish w:val="0"/></w:rPr>'), "Seen after all."),
        ("<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>No tab.</w:t></w:r></w:p>", "No tab."),
        (f"<w:tbl><w:tr><w:trPr><w:del/></w:trPr><w:tc>{p('Gone')}</w:tc></w:tr></w:tbl>"
         + p("Kept."), "Kept."),
        (f"<w:sdt><w:sdtContent>{p('In a control.')}</w:sdtContent></w:sdt>", "In a control."),
    ],
)  # fmt: skip
def test_what_a_document_shows_is_read_once_and_the_hidden_never(body: str, text: str) -> None:
    assert read(docx(body), "a.docx").text == text


def test_notes_of_a_document_follow_its_text() -> None:
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    notes = (
        f'<w:footnotes {w}><w:footnote w:type="separator">{p("---")}</w:footnote>'
        f'<w:footnote w:id="2">{p("The note.")}</w:footnote></w:footnotes>'
    )
    found = read(docx(p("See note."), **{"word__footnotes.xml": notes}), "a.docx")
    assert found.text == "See note.\n\nThe note."


def test_soft_hyphens_are_no_part_of_a_word() -> None:
    paragraphs = "<p>The In&shy;stand&shy;set&shy;zung of the har\u00adbour.</p>" * 9
    page = f"<html><body><article>{paragraphs}</article></body></html>"
    for content, name in ((page.encode(), "a.html"), ("har\u00adbour".encode(), "a.txt")):
        found = read(content, name).text
        assert "\u00ad" not in found
        assert "harbour" in found
