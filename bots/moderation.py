"""What no post may be, whoever wrote it: an error, a refusal, a leak, a repetition, an insult.

Each fault is one sentence that a model can act on when it is asked again. The checks are plain rules: a
small box has no room for a second model that judges the first, and a rule can be read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

LINK = re.compile(r"https?:|www\.|\b[a-z0-9-]+\.[a-z]{2,}(?=$|[\s/:?#,;)!'\"])", re.IGNORECASE)
"""Anything that a platform may turn into a link, a missing blank after a full stop included."""
MENTION = re.compile(r"(?<!\w)@\w|[\w.+-]+@[\w-]+\.\w")
TAG = re.compile(r"(?<!\w)[#$][^\W\d_]")
"""Hashtags and cashtags; a number sign before a number ("#1") is neither."""
REFUSAL = re.compile(
    r"\bas an? (?:AI|language model|assistant)\b|\bI(?:'m| am) (?:sorry|unable|not able|an AI)\b"
    r"|\bI (?:can(?:not|'t)|do(?: not|n't) (?:know|recogni[sz]e|have))\b|\bno such card\b"
    r"|\b(?:is|are) not (?:a )?(?:real|existing|official)\b|\bdoes(?: not|n't) (?:exist|appear to be)\b"
    r"|\bknowledge cut-?off\b|\bhere(?:'s| is) (?:a|your|the) (?:post|tweet|draft|answer)\b|\bsure[,!]",
    re.IGNORECASE,
)
ERROR_TEXT = re.compile(
    r"\berrors?:|\bexception\b|\btraceback\b|\bHTTP(?:/\d| \d)|\btimed? ?out\b|\bundefined\b|\bNaN\b|\bnull\b"
    r"|\bNone\b|\bstatus code\b|\bfailed to\b|\bunable to\b|\btry again later\b|\brate limit",
    re.IGNORECASE,
)
LEFTOVER = re.compile(
    r"[{}<>]|```|\*\*|__|\\[nu\"]|\[(?:insert|name|card|your)|</?\w+>|<\|"
    r"|\b(?:system|user|assistant|post|tweet)\s*:\s",
    re.IGNORECASE,
)
"""What is left of a prompt, a template, JSON or markup."""
SECRET = re.compile(r"\b(?:sk|pk|ghp|xox[abp])[-_][A-Za-z0-9]{10,}|\b[A-Za-z0-9+/_-]{40,}\b")
PHONE = re.compile(r"\+\d[\d ()-]{7,}\d|\b\d{3}[-. ]\d{3}[-. ]\d{4}\b")
PAYMENT = re.compile(r"\b(?:\d[ -]?){13,19}\b")
INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories that a reader can't see: escape codes, direction marks, zero width."""
JOINERS = "\u200d\ufe0f"
"""Allowed: they hold one emoji together."""
HONEST = (
    re.compile(r"(?<=[^\W\d_a-zA-Z])[\u200c\u200d]|(?<=[\u0900-\u0dff])[\u200c\u200d]"),
    re.compile(r"(?<=\w)\u00ad(?=\w)"),
    re.compile("(?<=\U0001f3f4)[\U000e0061-\U000e007a\U000e0030-\U000e0039]+\U000e007f"),
    re.compile(r"[\u2066-\u2068](?=[^\u2066-\u2069]*\u2069)|(?<=\S)\u2069"),
)
"""Characters without a shape that a language or a flag needs where they stand: joiners of Persian and of
India's scripts after a letter, a soft hyphen in a word, a region's flag, a direction that is closed again."""
ALIKE = 0.8
"""From this share of common three-letter pieces on, two posts are the same to a reader."""


def find_faults(
    text: str, *, links: bool = False, blocked: Iterable[str] = (), own_words: str = ""
) -> list[str]:
    """Why `text` may not go out; empty when it may.

    `own_words` are the given facts: what stands there may be said (a card may be called "Error").

    >>> find_faults("Lantern Heron: 1200 ATK. Would you play it?")
    []
    >>> find_faults("Error: no trivia found.")
    ['The post reads like an error message ("Error:").']
    >>> find_faults("Read more at rig.dev today.")
    ['The post has a link ("rig.dev").']
    """
    if not text.strip():
        return ["The post is empty."]
    found = []
    plain = text
    for honest in HONEST:
        plain = honest.sub("", plain)
    if any(unicodedata.category(c) in INVISIBLE and c not in JOINERS + "\n" for c in plain):
        found.append("The post has characters that nobody can see.")
    rules = [
        (REFUSAL, "The post refuses or talks about itself"),
        (ERROR_TEXT, "The post reads like an error message"),
        (LEFTOVER, "The post has a piece of markup or of the prompt in it"),
        (MENTION, "The post has a mention or an address"),
        (TAG, "The post has a hashtag"),
        (PHONE, "The post has a telephone number"),
        (PAYMENT, "The post has a long number like that of a payment card"),
    ]
    if not links:
        rules += [(LINK, "The post has a link"), (SECRET, "The post has something like a key")]
    for rule, sentence in rules:
        said = [m[0] for m in rule.finditer(text) if m[0].lower() not in own_words.lower()]
        if rule is LINK:
            said = [word for word in said if _may_become_link(word)]
        if said:
            found.append(f'{sentence} ("{said[0].strip()}").')
    if word := _blocked(text, [*_never(), *blocked], own_words):
        found.append(f'The post contains a word that is not allowed ("{word}").')
    return found


def _may_become_link(word: str) -> bool:
    """Whether some platform makes a link of `word`: by X's own rules, or a blank is missing in it.

    >>> _may_become_link("Node.js"), _may_become_link("rig.dev"), _may_become_link("Ends.Begins")
    (False, True, True)
    """
    from bots.outlets.x_length import has_link

    missing_blank = re.search(r"[a-z]\.[A-Z][a-z]*$", word)
    return ":" in word or word.lower().startswith("www.") or has_link(word) or bool(missing_blank)


def repetition_faults(text: str, earlier: Sequence[str]) -> list[str]:
    """Why `text` says again what was said; `earlier` are former posts.

    >>> repetition_faults("Moss Golem is here!", ["moss golem is HERE"])
    ['The post is the same as an earlier one.']
    """
    mine = normalise_text(text)
    pieces = _pieces(mine)
    for other in earlier:
        theirs = normalise_text(other)
        if mine == theirs:
            return ["The post is the same as an earlier one."]
        if _alike(pieces, theirs):
            return ["The post is too similar to an earlier post."]
    return []


@lru_cache(maxsize=1024)
def normalise_text(text: str) -> str:
    """Letters and digits alone, in lower case: what two posts are compared by.

    >>> normalise_text("It’s  “MOSS” — again!")
    'it s moss again'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def _alike(pieces: set[str], other: str) -> bool:
    """Whether `pieces` and those of `other` have so much in common; most texts are told apart at once."""
    spare = len(pieces) - ALIKE * len(pieces) + 1e-9
    for piece in pieces:
        if piece not in other and (spare := spare - 1) < 0:
            return False
    others = _pieces(other)
    common = len(pieces & others)
    return common >= ALIKE * (len(pieces) + len(others) - common)


def _pieces(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


@cache
def _never() -> tuple[str, ...]:
    lines = Path(__file__).with_name("blocked.txt").read_text("utf-8").splitlines()
    return tuple(word for line in lines if not line.startswith("#") for word in line.split())


def _blocked(text: str, words: Iterable[str], own_words: str) -> str | None:
    said = f" {normalise_text(text)} "
    allowed = f" {normalise_text(own_words)} "
    for word in words:
        plain = f" {normalise_text(word)} "
        if plain.strip() and any(
            p in said and p not in allowed for p in (plain, plain[:-1] + "s ")
        ):
            return word
    return None
