"""Sentences of the text itself that name what the reader asked about; notes made before may lack them."""

from __future__ import annotations

import re

from bots.language.sentences import split_sentences


def sentences_on(subject: str, text: str, characters: int) -> str:
    """The sentences nearest to `subject`, in their order, as paragraphs of at most `characters`.

    >>> sentences_on("the costs", "It rained. The cost was high. Cats slept.", 100)
    '\\n\\nThe cost was high.'
    """
    wanted = {_stem(word) for word in re.findall(r"\w+", subject) if len(word) > 3}
    if not wanted:
        return ""
    scored = []
    for at, sentence in enumerate(split_sentences(text)):
        words = {_stem(word) for word in re.findall(r"\w+", sentence) if len(word) > 3}
        if hits := len(wanted & words):
            scored.append((-hits, at, sentence))
    chosen, size = [], 0
    for _, at, sentence in sorted(scored):
        if size + len(sentence) + 2 > characters:
            break
        chosen.append((at, sentence))
        size += len(sentence) + 2
    return "".join(f"\n\n{sentence}" for _, sentence in sorted(chosen))


def _stem(word: str) -> str:
    """Rough: `costs` and `cost`, `engines` and `engine` are one."""
    return word.casefold().removesuffix("'s").rstrip("s")[:8]
