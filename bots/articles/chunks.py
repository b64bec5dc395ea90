"""Cuts a text into as few and as even pieces as the context allows, at the strongest border near each cut.

Nothing is dropped and nothing is read twice: the pieces joined are the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

Count = Callable[[str], int]
"""Tokens of a text, by the model's own tokenizer."""

_BORDERS = (
    re.compile(r"\n\n+(?=#|chapter\b|[IVX]+\.?\n)", re.IGNORECASE),  # before a heading
    re.compile(r"\n\n+"),  # paragraph
    re.compile(r"(?<=[.!?…؟۔।॥։።])[\"'”’»)\]]*\s+|(?<=[。！？।॥။។])"),  # sentence
    re.compile(r"\n|\s+"),  # line, word
)
_REACH = (0.1, 0.25, 0.35, 0.45)
"""How far from the even cut each border is looked for, as a share of the piece."""


def split_text(text: str, budget: int, count: Count) -> list[str]:
    """Return the pieces of `text`, each at most `budget` tokens by `count`.

    >>> split_text("One two three. Four five. Six seven eight. Nine ten.", 6, lambda text: len(text.split()))
    ['One two three. Four five. ', 'Six seven eight. Nine ten.']
    """
    total = count(text)
    if total <= budget:
        return [text]
    wanted = math.ceil(total / budget)
    while True:
        pieces = split_evenly(text, wanted)
        if len(pieces) < 2 or len(text) <= wanted:
            raise ValueError(f"{budget} tokens are too few for any piece of the text")
        sizes = [count(piece) for piece in pieces]
        if max(sizes) <= budget:
            return pieces
        if (
            wanted >= 1.5 * total / budget + 2
        ):  # uneven: tables, other scripts; halve the large ones
            return [part for piece in pieces for part in split_text(piece, budget, count)]
        wanted += 1


def split_evenly(text: str, wanted: int) -> list[str]:
    """Cut `text` in about `wanted` pieces of like length in characters.

    >>> split_evenly("aa bb cc dd", 2)
    ['aa bb ', 'cc dd']
    """
    pieces, start = [], 0
    for left in range(wanted, 1, -1):
        size = (len(text) - start) / left
        at = _border(text, start, size)
        if start < at < len(text):
            pieces.append(text[start:at])
            start = at
    return [*pieces, text[start:]]


def _border(text: str, start: int, size: float) -> int:
    """The place of the best border near `start + size`; mid-word only where there is no blank at all."""
    ideal = start + int(size)
    for border, reach in zip(_BORDERS, _REACH, strict=True):
        low, high = ideal - int(size * reach), ideal + int(size * reach / 3)
        ends = [found.end() for found in border.finditer(text, max(low, start + 1), high + 1)]
        if ends:
            return min(ends, key=lambda end: abs(end - ideal))
    return max(ideal, start + 1)
