"""Sentences in any script, and how long a text is: pytest tests/test_bots_language.py"""

from __future__ import annotations

import pytest

from bots.articles.bot import shorter_summaries
from bots.language.sentences import fits_in, split_sentences, whole_sentences
from support.scripts import SENTENCES, transcript


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_end_where_the_script_ends_them(language: str) -> None:
    wanted = [sentence.strip() for sentence in SENTENCES[language]]
    glue = "" if language in ("chinese", "japanese") else " "
    assert split_sentences(glue.join(wanted)) == wanted
    assert split_sentences("\n\n".join(wanted)) == wanted


def test_items_of_a_list_and_rows_are_sentences() -> None:
    assert split_sentences("- one\n- two\n* three") == ["- one", "- two", "* three"]
    assert split_sentences("1. First thing\n2. Second") == ["1. First thing", "2. Second"]
    assert split_sentences("a line\nbroken by its width") == ["a line\nbroken by its width"]


@pytest.mark.parametrize(
    ("text", "sentences", "short"),
    [
        ("One. Two. Three.", 3, True),
        ("One. Two. Three. Four.", 3, False),
        ("A headline without a mark", 1, True),
        (transcript(3_000), 3, False),
        (transcript(160), 3, False),
        (transcript(40), 1, True),
        ("x" * 5_000, 3, False),
        (" ".join(SENTENCES["hindi"]), 3, True),
        (" ".join(SENTENCES["hindi"] * 3), 3, False),
        (" ".join(SENTENCES["urdu"] * 2), 3, False),
        (" ".join(SENTENCES["thai"]), 3, True),
        (" ".join(SENTENCES["thai"] * 6), 7, False),
        ("ท่าเรือเปิดอีกครั้งในวันอังคารหลังจากซ่อมแซมเก้าสัปดาห์" * 12, 3, False),  # no blank at all
        ("".join(SENTENCES["chinese"] * 2), 3, False),
        ("\n".join(["a line of a poem without marks"] * 60), 7, False),
    ],
)
def test_as_short_as_asked_counts_words_and_letters(text: str, sentences: int, short: bool) -> None:
    assert fits_in(text, sentences) is short


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("He left. She st", "He left."),
        ("बंदरगाह खुल गया। मरम्मत में", "बंदरगाह खुल गया।"),
        ("کھل گئی۔ مرمت می", "کھل گئی۔"),
        ("港口开放。修理用", "港口开放。"),
        ("Only a beginning", "Only a beginning"),
    ],
)
def test_a_half_sentence_at_the_end_goes(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
    assert whole_sentences(kept) == kept


@pytest.mark.parametrize("language", ["thai", "chinese", "japanese", "urdu", "english"])
def test_a_summary_too_long_for_an_outlet_is_cut_in_any_script(language: str) -> None:
    glue = "" if language in ("chinese", "japanese") else " "
    summary = glue.join(sentence.strip() for sentence in SENTENCES[language])
    bodies = list(shorter_summaries(summary, lines=False))
    assert bodies[0] == summary
    assert [len(body) for body in bodies] == sorted(map(len, bodies), reverse=True)
    assert len(bodies[-1]) < 12
    assert all(summary.startswith(body.removesuffix("…")) for body in bodies)


def test_a_first_sentence_without_end_is_not_offered_in_a_million_pieces() -> None:
    assert len(list(shorter_summaries("word " * 200_000, lines=False))) < 2_000
