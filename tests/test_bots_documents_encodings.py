"""Bytes become characters by the rules of the web: pytest tests/test_bots_documents_encodings.py"""

from __future__ import annotations

import pytest

from bots.documents import worker
from bots.documents.text import decode_text

PAGES = {
    "latin": ("iso-8859-1", "cp1252", "“We don’t know,” the keeper said — it cost €40, the lamp’s glass. "),
    "ascii": ("us-ascii", "cp1252", "“We don’t know,” the keeper said — and it cost €40. "),
    "latin9": ("iso-8859-9", "cp1254", "İstanbul’da ığdır ağaçları €40 tutar, dedi bekçi. "),
    "gb2312": ("gb2312", "gbk", "这座灯塔的看守人姓镕，费用约为四十元。"),
    "gb18030": ("gbk", "gb18030", "灯塔的看守人姓㐂，每年要更换三次灯泡。"),
    "sjis": ("Shift_JIS", "cp932", "灯台守の髙橋さんは①電球を年に三回交換すると話した。"),
    "eucjp": ("x-euc-jp", "euc_jp", "灯台守は電球を年に三回交換すると話した。"),
    "jis": ("iso-2022-jp", "iso-2022-jp", "灯台守は電球を年に三回交換すると話した。"),
    "jis unnamed": ("", "iso-2022-jp", "灯台守は電球を年に三回交換すると話した。"),
    "jis misnamed": ("utf-8", "iso-2022-jp", "灯台守は電球を年に三回交換すると話した。"),
    "euckr": (
        "ks_c_5601-1987", "cp949",
        "등대지기는 똠방각하라는 별명으로 불리며 해마다 세 번 전구를 바꾼다고 말했다. ",
    ),
    "koi8": ("koi8-r", "koi8-r", "Смотритель маяка сказал, что лампу меняют три раза в год. "),
    "cyrillic": ("x-cp1251", "cp1251", "Смотритель маяка сказал, что «лампу» меняют три раза в год. "),
    "big5": ("big5", "big5hkscs", "這座燈塔的看守人說，費用約為四十元，喺度等咗好耐。"),
    "thai": ("tis-620", "cp874", "คนเฝ้าประภาคารกล่าวว่า “หลอดไฟ” ถูกเปลี่ยนปีละ "),
    "greek": ("iso-8859-7", "iso-8859-7", "Ο φύλακας του φάρου είπε ότι η λάμπα αλλάζει τρεις φορές. "),
    "mac": ("macintosh", "mac_roman", "“The café’s keeper” said so — again and again. "),
    "utf-8 called latin": ("iso-8859-1", "utf-8", "The keeper’s café cost €40. "),
    "latin called utf-8": ("utf-8", "cp1252", "“The keeper’s café” cost €40 — and the soufflé more. "),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("late", [False, True])
def test_a_page_is_read_as_a_browser_reads_it(name: str, late: bool) -> None:
    said, encoding, sentence = PAGES[name]
    script = "<script>" + "var a=1;" * 9_000 + "</script>" if late else ""
    paragraphs = f"<p>{sentence * 4}</p>" * 5
    meta = f'<meta charset="{said}">' if said else ""
    head = f"<!doctype html><html><head>{meta}{script}</head>"
    page = f"{head}<body><article>{paragraphs}</article></body></html>"
    found = worker.answer_request(page.encode(encoding), kind="html")
    assert sentence.strip() in found["text"]
    assert not found["notes"]


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "cp932", "gbk", "cp949", "iso-8859-7"])
def test_a_text_file_that_names_nothing_is_guessed_from_all_of_its_bytes(encoding: str) -> None:
    plain = "The keeper climbed the stairs again and lit the lamp before the ships came in. " * 900
    tail = next(text for _, known, text in PAGES.values() if known == encoding) * 6
    assert worker.answer_request((plain + tail).encode(encoding), kind="text")["text"].endswith(
        tail.strip()
    )


def test_the_header_names_the_charset_in_the_same_words() -> None:
    assert decode_text(b"town\x92s \x93council\x94", "ISO-8859-1") == "town’s “council”"


def test_what_can_not_be_read_is_said_and_not_dropped() -> None:
    found = worker.answer_request(
        "Über die Klippen fürchten. ".encode() * 50 + b"\xc3", kind="text"
    )
    assert found["text"].endswith("\ufffd")
    assert found["notes"] == ["Characters that can't be read and stand as \ufffd: 1."]
