"""Cuts a text into sentences in any script, by Unicode's own list of the marks that end one.

Thai, Lao and their like have no such marks: there a blank parts clauses, and a clause long enough counts as a
sentence. A text without any marks (a transcript) stays in one piece, so whoever asks how long a text is
counts words and characters too: `fits_in`.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex  # type: ignore[import-untyped]

from bots.documents.sanitise import count_words

LONGEST_WORDS, LONGEST_CHARACTERS = 50, 320
"""What one sentence may hold before it is more than a sentence."""
CLAUSE = 40
"""Letters of a script without full stops that make a sentence when a blank follows."""
LONGEST_POST = 2_000
"""Characters of a text whose beginnings are offered: no outlet has room for more of one sentence."""

_CLOSERS = "[\"'”’»›)\\]}」』）】]*"
_ENDS = regex.compile(
    # a mark, what closes, a blank; neither an initial (J. Smith) nor the number of an item ends a sentence
    rf"(?<=[\p{{Sentence_Terminal}}…])(?<!\b\p{{Lu}}\.)(?<!(?:\A|\n)[ \t]*\d{{1,3}}\.){_CLOSERS}\s+"
    r"|(?<=[。！？｡．।॥۔။។።᠃᱿])(?![\p{Sentence_Terminal}\"'”’»」』）)])"  # no blank is needed after these
    r"|(?<=[。！？｡．][」』）”’])"
    r"|\n{2,}"
    r"|\n(?=[ \t]*(?:[-*•–·▪◦‣|]|\d{1,3}[.)])[ \t])"  # an item of a list, a row of a table
)
_MARKLESS = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]{2,}")
_BLANK = regex.compile(
    r"(?<=[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ๆ0-9\)”])[ \t]+"
    r"(?=[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}0-9\(“])"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, roughly.

    >>> split_sentences("One. Two! Three")
    ['One.', 'Two!', 'Three']
    >>> split_sentences("बंदरगाह खुल गया। मरम्मत हुई।"), split_sentences("بندرگاہ کھل گئی۔ مرمت ہوئی۔")
    (['बंदरगाह खुल गया।', 'मरम्मत हुई।'], ['بندرگاہ کھل گئی۔', 'مرمت ہوئی۔'])
    """
    found, start = [], 0
    for border in _ENDS.finditer(text):
        kept = (
            len(border[0].rstrip()) if border[0].strip() else 0
        )  # closers stay with their sentence
        found.append(text[start : border.start() + kept])
        start = border.end()
    found.append(text[start:])
    return [one for piece in found for one in _clauses(piece.strip()) if one]


def _clauses(sentence: str) -> list[str]:
    """`sentence` cut at the blanks of a script that has no other marks."""
    if len(sentence) <= CLAUSE or not _MARKLESS.search(sentence):
        return [sentence]
    pieces, start = [], 0
    for blank in _BLANK.finditer(sentence):
        if blank.start() - start >= CLAUSE:
            pieces.append(sentence[start : blank.start()])
            start = blank.end()
    return [*pieces, sentence[start:]]


def ends_sentence(text: str) -> bool:
    """Whether `text` ends where a sentence does.

    >>> ends_sentence("He left."), ends_sentence("वह गया।"), ends_sentence("He le")
    (True, True, False)
    """
    return bool(regex.search(rf"[\p{{Sentence_Terminal}}…]{_CLOSERS}\Z", text.rstrip()))


def whole_sentences(text: str) -> str:
    """`text` without the half sentence at its end, if that leaves anything.

    >>> whole_sentences("One. Two. Thr"), whole_sentences("On")
    ('One. Two.', 'On')
    """
    kept = split_sentences(text)
    if ends_sentence(text) or len(kept) < 2:
        return text
    return text[: text.rfind(kept[-2]) + len(kept[-2])]


def fits_in(text: str, sentences: int) -> bool:
    """Whether `text` is as short as so many sentences, whatever stands between its words.

    >>> fits_in("One. Two.", 2), fits_in("so we went on " * 100, 2)
    (True, False)
    """
    return (
        len(text) <= sentences * LONGEST_CHARACTERS
        and count_words(text) <= sentences * LONGEST_WORDS
        and len(split_sentences(text)) <= sentences
    )


def shorter_texts(text: str) -> Iterator[str]:
    """The beginnings of `text` that may stand alone, the longest first: by words, or by letters of a
    script without blanks; each ends in an ellipsis.

    >>> list(shorter_texts("One two three."))
    ['One two…', 'One…']
    """
    text = text[:LONGEST_POST]
    ends = [word.end() for word in regex.finditer(r"\S+", text)]
    if count_words(text) > 2 * len(ends):  # no blanks between the words
        ends = [letter.end() for letter in regex.finditer(r"\X", text) if not letter[0].isspace()]
    for end in reversed(ends[:-1]):
        yield text[:end].rstrip(" ,;:-،、，؛") + "…"
