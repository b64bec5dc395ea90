"""Whether a text that a platform gives back is the one that was sent, after all that platforms do to a text.

They escape it, trim it, shorten its links, add a scheme to a bare domain, write a host in ASCII, hang a link
to the picture at its end, and cut what is long. What says where a shortened link leads is put in its place
first; a short link that nobody explains stands for any one link.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

SHORT = re.compile(r"https?://t\.co/\w+", re.IGNORECASE)
OWN_PAGE = re.compile(
    r"https?://(?:mobile\.)?(?:twitter|x)\.com/(?:\w+/status/\d+/(?:photo|video)/|i/(?:web/)?status/)\d+",
    re.IGNORECASE,
)
"""Where a link leads that X itself hung on: to the post's own picture, or to the whole of a cut text."""
LEAST_OF_A_CUT = 40
"""Characters that a cut text must share with the whole one to count as its beginning."""
ANY_LINK = r"\S*[./]\S*"
PLACE = "\ue000"
"""Stands where a link was that nobody explains; from the private use area, so that no text has it."""


def is_same_text(sent: str, returned: str, links: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether `returned` is `sent` as a platform shows it; `links` are X's `entities.urls`.

    >>> is_same_text("Tea & more: https://a.example/x", "Tea &amp; more: https://t.co/AbC")
    True
    >>> where = [{"url": "https://t.co/AbC", "expanded_url": "https://b.example/y"}]
    >>> is_same_text("Tea & more: https://a.example/x", "Tea &amp; more: https://t.co/AbC", where)
    False
    """
    mine = fold_text(sent)
    theirs = fold_text(SHORT.sub(PLACE, _expand_links(html.unescape(returned), links)))
    body = theirs.rstrip(f"{PLACE} ")
    hung_on = theirs[len(body) :].count(PLACE)
    pattern = ANY_LINK.join(re.escape(part) for part in body.split(PLACE))
    if body.endswith("…") and len(body) > LEAST_OF_A_CUT:
        pattern = f"(?:{pattern}|{pattern.removesuffix('…')}.*)"
    # the last of them may lead to the picture, which the text that was sent doesn't name
    return re.fullmatch(pattern + rf"(?:\s*{ANY_LINK}){{0,{hung_on}}}", mine) is not None


def fold_text(text: str) -> str:
    """A text without what platforms change in it: spaces, invisible characters, how a link is written.

    >>> fold_text("See  HTTPS://Example.com/a%20b/ now")
    'see example.com/a b now'
    """
    text = unicodedata.normalize("NFC", unquote(text)).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in "\ufe0e\ufe0f")
    text = re.sub(r"https?://", "", text)
    text = re.sub(r"xn--[a-z0-9-]+", _decode_label, text)
    text = re.sub(r"/(?=[\s.,;:!?)\]。、」]|$)", "", text)
    return " ".join(text.split())


def _expand_links(text: str, links: Sequence[Mapping[str, Any]]) -> str:
    """Each short link as what it leads to; one that X hung on itself is taken out."""
    for link in links:
        short, whole = str(link.get("url") or ""), str(link.get("expanded_url") or "")
        if short and whole:
            target = "" if link.get("media_key") or OWN_PAGE.match(whole) else whole
            text = target.join(re.split(re.escape(short) + r"(?!\w)", text))
    return text


def _decode_label(label: re.Match[str]) -> str:
    try:
        return label[0].encode("ascii").decode("idna")
    except UnicodeError:
        return label[0]
