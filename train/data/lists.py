"""Answers of several parts: points, intervals, sets, ratios, and solutions one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

MOST = 12
"""Parts that are tried in any order; more are compared one after the other."""

_GROUP = re.compile(r"[0-9]{3}(?![0-9])")
_AND = re.compile(r"\s*(?:,\s*)?\b(?:and|or)\b\s*", re.IGNORECASE)
_RATIO = re.compile(r"\s*([0-9.]+)\s*(?::|\bto\b)\s*([0-9.]+)(?:\s*:\s*([0-9.]+))?\s*")


class Parts(NamedTuple):
    """The parts of an answer, and what stands around them: (), [), {} or nothing; `:` for a ratio."""

    around: str
    parts: tuple[str, ...]

    @property
    def has_order(self) -> bool:
        """Whether the parts of a point differ from the same ones in another order."""
        return self.around not in ("", "{}")


def split_list(text: str) -> Parts | None:
    r"""Return the parts of undressed `text`; None where it is one thing.

    >>> split_list("(3, 4)"), split_list("x=1 or x=-2")
    (Parts(around='()', parts=('3', '4')), Parts(around='', parts=('x=1', 'x=-2')))
    >>> split_list(r"\{1,2\}"), split_list("1,000")
    (Parts(around='{}', parts=('1', '2')), None)
    """
    text = text.replace("\\{", "{").replace("\\}", "}").replace("$", "").strip().rstrip(".").strip()
    if ratio := _RATIO.fullmatch(text):
        return Parts(":", tuple(part for part in ratio.groups() if part))
    around = ""
    if _encloses(text):
        around, text = text[0] + text[-1], text[1:-1]
    parts = tuple(part.strip() for part in _cut(text, bracketed=bool(around)))
    if not all(parts) or (len(parts) < 2 and around != "{}"):
        return None
    return Parts(around, parts)


def same_list(said: str, gold: Parts, same: Callable[[str, str], bool]) -> bool:
    """Whether undressed `said` has the parts of `gold`, in its order where that counts.

    >>> gold = split_list("1, -2")
    >>> [same_list(one, gold, str.__eq__) for one in ("-2 and 1", "(1, -2)", "[-2, 1]", "1", "1, -2, 3")]
    [True, True, False, False, False]
    """
    found = split_list(said)
    if found is None or len(found.parts) != len(gold.parts):
        return False
    if found.around != gold.around and not _may_stand_for(found.around, gold.around):
        return False
    pairs = zip(found.parts, gold.parts, strict=True)
    if all(same(one, other) for one, other in pairs):
        return True
    free = not (found.has_order or gold.has_order) and _named(found) == _named(gold)
    return free and len(gold.parts) <= MOST and _in_any_order(found.parts, gold.parts, same)


def _may_stand_for(said: str, gold: str) -> bool:
    """`3, 4` for the point (3, 4); any brackets but an interval's for a plain list."""
    return (said, gold) in {("", "()"), ("", "{}"), ("{}", ""), ("()", ""), ("[]", "")}


def _named(found: Parts) -> bool:
    return all("=" in part for part in found.parts)


def _in_any_order(
    said: tuple[str, ...], gold: tuple[str, ...], same: Callable[[str, str], bool]
) -> bool:
    left = list(gold)
    for one in said:
        if (at := next((at for at, other in enumerate(left) if same(one, other)), None)) is None:
            return False
        del left[at]
    return True


def _encloses(text: str) -> bool:
    """Whether the first and the last sign are the two ends of one pair, of any two kinds of bracket."""
    if len(text) < 2 or text[0] not in "([{" or text[-1] not in ")]}":
        return False
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _cut(text: str, bracketed: bool) -> list[str]:
    """`text` at its outermost commas, semicolons and ands; a comma within 1,000 is none in a bare list."""
    grouped = not bracketed or re.search(r",\s", text) is not None
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth or sign not in ",;":
            continue
        within = sign == "," and text[at - 1 : at].isdigit() and _GROUP.match(text, at + 1)
        if within and grouped:
            continue
        parts.append(text[start:at])
        start = at + 1
    parts.append(text[start:])
    return [part for one in parts for part in _split_words(one)]


def _split_words(text: str) -> list[str]:
    if not re.search(r"\b(?:and|or)\b", text, re.IGNORECASE):
        return [text]
    parts = _AND.split(text)
    return [part for part in parts if part.strip()] or [text]
