"""Finds quotes and figures in a summary that its text does not hold: the cheapest sign of invention."""

from __future__ import annotations

import re

from bots.language.figures import decimal_mark, is_founded, read_figures, written_figures

_QUOTE = re.compile(r"[“\"„«]([^“”\"„«»\n]{6,400})[”\"“»]")


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
    listed = re.sub(r"^\s*\d+[.)]\s", "", summary, flags=re.MULTILINE)  # numbering of a list
    known = read_figures(text)
    figures = [
        figure.shown.strip(" .,'")
        for figure in written_figures(listed, decimal_mark(text))
        if not is_founded(figure, known)
    ]
    return {"quotes": list(dict.fromkeys(quotes)), "figures": list(dict.fromkeys(figures))}


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold().replace("’", "'")))
