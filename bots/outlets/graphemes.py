"""What a reader takes for one character, however many code points it is made of."""

from __future__ import annotations

import re

import regex  # type: ignore[import-untyped]

LINK = re.compile(r"https?://[^\s<>\"'。、」』】〉》）｡､，！？；：「『【（]+")
"""A link as far as it may reach: no further than to the punctuation of Chinese and Japanese."""
OPENED = {")": "(", "]": "["}
TAG = re.compile(r"(?<!\w)#(\w*[^\W\d]\w*)")


def find_links(text: str) -> list[tuple[int, int]]:
    """Where links begin and end; what closes a sentence or a bracket that the link didn't open is outside.

    >>> text = "(see https://a.example/Heron_(bird))."
    >>> [text[begin:end] for begin, end in find_links(text)]
    ['https://a.example/Heron_(bird)']
    """
    found = []
    for match in LINK.finditer(text):
        link = match[0]
        while link[-1] in ".,;:!?…" or (
            link[-1] in OPENED and link.count(link[-1]) > link.count(OPENED[link[-1]])
        ):
            link = link[:-1]
        if not link.endswith("//"):
            found.append((match.start(), match.start() + len(link)))
    return found


def count_graphemes(text: str) -> int:
    """How many characters a reader sees.

    >>> count_graphemes("Moss"), count_graphemes("👨‍👩‍👧"), count_graphemes("é")
    (4, 1, 1)
    """
    return len(regex.findall(r"\X", text))
