"""What a reader takes for one character, however many code points it is made of."""

from __future__ import annotations

import re

import regex  # type: ignore[import-untyped]

LINK = re.compile(r"https?://[^\s<>\"']+[^\s<>\"'.,;:!?)\]]")
TAG = re.compile(r"(?<!\w)#(\w*[^\W\d]\w*)")


def count_graphemes(text: str) -> int:
    """How many characters a reader sees.

    >>> count_graphemes("Moss"), count_graphemes("👨‍👩‍👧"), count_graphemes("é")
    (4, 1, 1)
    """
    return len(regex.findall(r"\X", text))
