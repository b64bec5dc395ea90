"""Finds quotes and figures in a summary that its text does not hold: the cheapest sign of invention."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_QUOTE = re.compile(r"[“\"„«]([^“”\"„«»\n]{6,400})[”\"“»]")
_NUMBER = re.compile(
    r"(?<![\w.])\d[\d.,\u202f']{0,30}(?:\s?(thousand|million|billion|trillion|[kmb]n?\b))?",
    re.IGNORECASE,
)
_SCALE = {"t": 3, "k": 3, "m": 6, "b": 9}
_SMALL = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
_WORDS = {word: value for value, word in enumerate(_SMALL, 1)} | {
    word: 10 * tens for tens, word in enumerate(_TENS, 3)
}


def find_unfounded(summary: str, text: str) -> dict[str, list[str]]:
    """The `quotes` and `figures` of `summary` that do not occur in `text`.

    >>> find_unfounded('He said "we will win" and paid $1,200 for 3 boats.', "He paid 1200 for three boats.")
    {'quotes': ['we will win'], 'figures': []}
    """
    source = _letters(text)
    quotes = [
        quote
        for quote in _QUOTE.findall(summary)
        if len(quote.split()) > 1 and _letters(quote) not in source
    ]
    known = _values(text) | {
        Decimal(_WORDS[w]) for w in re.findall(r"[a-z]+", text.lower()) if w in _WORDS
    }
    listed = re.sub(r"^\s*\d+[.)]\s", "", summary, flags=re.MULTILINE)  # numbering of a list
    figures = [
        found[0].strip(" .,'") for found in _NUMBER.finditer(listed) if not _readings(found) & known
    ]
    return {"quotes": list(dict.fromkeys(quotes)), "figures": list(dict.fromkeys(figures))}


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold().replace("’", "'")))


def _values(text: str) -> set[Decimal]:
    return {value for found in _NUMBER.finditer(text) for value in _readings(found)}


def _readings(found: re.Match[str]) -> set[Decimal]:
    """The values a figure may stand for: 1.200 is one and a bit here, twelve hundred there."""
    digits = re.sub(r"[\u202f']", "", re.match(r"[\d.,\u202f']*\d", found[0])[0])  # type: ignore[index]
    forms = {
        digits.replace(",", ""),
        digits.replace(".", "").replace(",", "."),
        re.sub(r"[.,]", "", digits),
    }
    scale = (found[1] or "").lower()
    power = 12 if scale.startswith("tr") else _SCALE.get(scale[:1], 0)
    values = set()
    for form in forms:
        try:
            value = Decimal(form)
        except InvalidOperation:
            continue
        values |= {value.normalize(), (value * 10**power).normalize()}
    return values
