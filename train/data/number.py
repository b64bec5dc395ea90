"""The one number that a text states, exactly, in whatever dress; algebra and hedges are not dress.

`$1,000`, `1000.00`, `1 000 pens` and `\\boxed{1000}` state one number. `3x`, `5!`, `n-1`, `not 42`, `±5` and
`at least 5` do not, however few numbers stand in them. Pure and bounded: a text is looked at up to
`LONGEST` characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from train.data import units
from train.data.undress import undress, write_out

LONGEST = 1000
"""Characters; a longer text states no number."""
SCALES = {
    "k": 3, "thousand": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12,
    "hundred": 2, "lakh": 5, "lakhs": 5, "crore": 7, "crores": 7,
}  # fmt: skip
FLOAT_NOISE = Fraction(1, 10**7)
"""Relative error up to which a number of eight decimals or more is a shorter one, stored as a float."""
ROUNDED = 6
"""Decimals from which on a number may be the rounding of a fraction or of a longer one."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_TOKEN = re.compile(
    r"(?P<sign>[-+])?\s?(?P<blob>[0-9](?:[0-9.,]*[0-9])?|\.[0-9]+)"
    r"(?:[eE](?P<power>[+-]?[0-9]{1,3})(?![0-9A-Za-z]))?"
    r"(?:\s*/\s*(?P<below>[0-9]+)(?![0-9.,]*[0-9]))?"
    r"(?:\s?(?P<scale>hundred|thousand|million|billion|trillion|lakhs?|crores?|bn|(?<=[0-9])k)\b)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_GROUPED = re.compile(
    r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?"  # as in India: 1,00,000
)
_LABEL = re.compile(r"\(?[A-Za-z][.):]\s+")
_EQUALS = re.compile(r"(?<![<>!:])=|≈|\\approx(?![a-z])")
_SEVERAL = re.compile(r"[0-9].*[,;]\s*[A-Za-z]\w*\s*\Z|[0-9].*\band\b")
_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|percentage\b|pct\b)", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:not|never|neither|nor|or|except|but|wrong|incorrect|false|cannot|nicht|kein\w*|pas|niet"
    r"|(?:other|rather)\s+than|instead\s+of|between)\b|n['’]t\b",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"(?:\bthan|\bat\s+(?:least|most)|\bup\s+to|\bover|\bunder|\babove|\bbelow|\bbeyond|\bno|\bmin(?:imum)?"
    r"|\bmax(?:imum)?|[-+]|\w['’]?\(|[-+]\s*\(|[/^_|])\s*\Z",
    re.IGNORECASE,
)
_ALGEBRA = re.compile(
    r"[\\^_|<>=+*×÷·√∞±∓≤≥≠{}∪∩∈Α-Ωα-ω]"
    r"|\b(?:sqrt|a?sin|a?cos|a?tan|cot|log|ln|exp|pi|alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi"
    r"|mod|infinity|inf)\b"
    r"|/\s*(?![A-Za-z]{2}|[A-Za-z]\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction
    decimals: int | None = None
    """Digits after the point; None for a fraction, which is exact."""
    percent: bool = False
    unit: str = ""
    """The words around it, in which a unit may stand."""


def parse_number(text: str) -> Fraction | None:
    r"""Return the one number that `text` states, exactly; None where there is none, or more than one.

    >>> [str(parse_number(t)) for t in ("$1,234.50 a day", "x = -3", "12 km^2", r"3\frac{1}{2}", "2 million")]
    ['2469/2', '-3', '12', '7/2', '2000000']
    >>> [parse_number(t) for t in ("5 or 6", "1,00", "2^10", "10:30", "3x", "5!", "not 42", r"\pm 5")]
    [None, None, None, None, None, None, None, None]
    """
    found = read_number(text)
    return found.value if found else None


@lru_cache(maxsize=65536)
def read_number(text: str, *, gold: bool = False) -> Number | None:
    """Return the number that `text` states, with how it was written.

    With `gold`, a letter right behind the digits is algebra (`5m`), where a model's `5m` may be metres.

    >>> read_number("0.25%"), read_number("5m", gold=True)
    (Number(value=Fraction(1, 4), decimals=2, percent=True, unit='%'), None)
    """
    if _WHOLE.fullmatch(text):
        return Number(Fraction(int(text)), 0)
    if len(text) > LONGEST:
        return None
    bare = write_out(undress(text))
    if _HEDGE.search(bare):
        return None
    *_, last_but_one, bare = ("", *_EQUALS.split(bare))
    if _SEVERAL.search(last_but_one):
        return None  # x = 1, y = 2
    bare = bare.strip()
    bare = bare[label.end() :] if (label := _LABEL.match(bare)) else bare
    found = list(islice(find_numbers(bare), 2))
    if len(found) != 1 or not _is_dress(bare, found[0], gold):
        return None
    match = found[0]
    value = number_value(bare, match)
    if value is None:
        return None
    beside = f"{units.money_sign(text)} {bare[: match.start()]} {bare[match.end() :]}".strip()
    percent = bool(_PERCENT.match(bare, match.end()))
    return Number(value, _decimals(match), percent, beside)


def find_numbers(bare: str) -> Iterator[re.Match[str]]:
    """Each number in undressed text; digits in a name (H2O, x1) are none."""
    for match in _TOKEN.finditer(bare):
        at = match.start("blob")
        if not at or not (bare[at - 1].isalpha() or bare[at - 1] == "_"):
            yield match


def same_number(said: Number, gold: Number) -> bool:
    """Whether `said` is `gold`: exactly, or within what a float or a rounding to six decimals loses.

    A percent sign may stand or be missing, but 0.5% is not 0.5; and 5 cents are not 5 dollars.

    >>> third, cut, far = Number(Fraction(1, 3)), Number(Fraction("0.333333"), 6), Number(Fraction("0.33"), 2)
    >>> same_number(cut, third), same_number(far, third)
    (True, False)
    """
    if units.clash(said.unit, gold.unit):
        return False
    if said.percent != gold.percent:
        share, plain = (said, gold) if said.percent else (gold, said)
        if _close(Number(share.value / 100, share.decimals), plain):
            return True
        if abs(share.value) < 1:
            return False
    return _close(said, gold)


def _close(said: Number, gold: Number) -> bool:
    if said.value == gold.value:
        return True
    apart = abs(said.value - gold.value)
    known = [one.decimals for one in (said, gold) if one.decimals is not None]
    if not known or not gold.value:
        return False
    if max(known) >= 8 and apart <= abs(gold.value) * FLOAT_NOISE:
        return True
    shorter = min(known)
    return shorter >= ROUNDED and 2 * apart * 10**shorter <= 1 and apart * 50_000 <= abs(gold.value)


def _decimals(match: re.Match[str]) -> int | None:
    if match["below"]:
        return None
    after = len(match["blob"].partition(".")[2]) - int(match["power"] or 0)
    return max(0, after - SCALES.get((match["scale"] or "").lower(), 0))


def number_value(bare: str, match: re.Match[str]) -> Fraction | None:
    """What the match states; None where the digits make no number, such as 1,00."""
    blob = match["blob"]
    if not (_PLAIN.fullmatch(blob) or _GROUPED.fullmatch(blob)) or len(blob) > 400:
        return None
    value = Fraction(blob.replace(",", ""))
    if match["below"]:
        if int(match["below"]) == 0 or bare[match.end("below") :].lstrip().startswith("/"):
            return None  # no number, or a date
        value /= int(match["below"])
        if value.denominator == 1:
            return None  # a division left to the reader
    value *= Fraction(10) ** int(match["power"] or 0)
    value *= Fraction(10) ** SCALES.get((match["scale"] or "").lower(), 0)
    return -value if match["sign"] == "-" and _is_sign(bare, match) else value


def _is_sign(bare: str, match: re.Match[str]) -> bool:
    """Whether the dash before a number negates it; `5-6` is a range and `Total - 5` a dash."""
    before = bare[: match.start("sign")]
    if match.start("blob") == match.end("sign"):
        return not before[-1:].isalnum()
    return not before.strip() or before.rstrip()[-1] in ":=("


def _is_dress(bare: str, match: re.Match[str], gold: bool) -> bool:
    """Whether nothing but dress stands around the number: no algebra and no comparison."""
    before, after = bare[: match.start()], bare[match.end() :]
    if after.lstrip().startswith("!") or ("." in match["blob"] and after.startswith(("..", "…"))):
        return False  # a factorial; decimals that go on
    rest = f"{before} {after}"
    if _ALGEBRA.search(rest) or _COMPARED.search(before):
        return False
    return _words_are_dress(before, False, gold) and _words_are_dress(after, True, gold)


def _words_are_dress(text: str, tight: bool, gold: bool) -> bool:
    """Whether every run of letters is a word or a unit, none a variable such as the x in `3 x`."""
    for word in _WORD.finditer(text):
        touching = tight and not re.search(r"[\s\w]", text[: word.start()])
        if len(word[0]) == 1:
            if not _letter_is_dress(text, word, touching, gold):
                return False
        elif not _is_word(word[0], touching):
            return False
    return True


def _is_word(letters: str, touching: bool) -> bool:
    """Whether letters are a word, a unit or a name such as H2O, and no product such as xy."""
    lower = letters.lower()
    if not letters.isalpha() or letters in units.SHORT or lower in units.SHORT:
        return True
    if touching and len(letters) <= 3:
        return False
    if len(letters) == 2:
        return lower in units.TWO_LETTERS
    return len(letters) > 3 or re.search("[aeiouy]", lower) is not None


def _letter_is_dress(text: str, word: re.Match[str], touching: bool, gold: bool) -> bool:
    """A single letter: the unit of a number (5 m), an article (5 a day), or the s of `it's`."""
    before, after = text[: word.start()], text[word.end() :]
    if before.endswith(("'", "’")):
        return True
    if word[0] in "aAI" and re.match(r"\s+[A-Za-z]{2}", after):
        return True
    return word[0] in units.LETTERS and not (touching and gold)
