"""Length as X counts it: a link is 23, most scripts take 2 a letter, an emoji is 2 however it is made."""

from __future__ import annotations

import sys
import unicodedata
from functools import cache
from importlib import resources, util
from types import ModuleType
from typing import Any


def weighted_length(text: str) -> int:
    """The weighted length of `text`; 280 fit into a post.

    >>> weighted_length("Moss Golem"), weighted_length("苔"), weighted_length("see https://example.com/a/b/c")
    (10, 2, 27)
    """
    return int(_parser()(text).weightedLength)


def has_link(text: str) -> bool:
    """Whether X will make a link of something in `text`, a bare domain included.

    >>> has_link("rig.dev is cool"), has_link("Moss Golem. Solid as a rock.")
    (True, False)
    """
    return bool(_links()(unicodedata.normalize("NFC", text)))


@cache
def _links() -> Any:
    _parser()
    from twitter_text.extract_urls import extract_urls_with_indices

    return extract_urls_with_indices


@cache
def _parser() -> Any:
    """X's own algorithm. Its Python port asks for pkg_resources, which setuptools no longer has."""
    stand_in = ModuleType("pkg_resources")
    stand_in.resource_string = _resource  # type: ignore[attr-defined]
    kept = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stand_in
    try:
        from twitter_text import parse_tweet
    finally:
        if kept is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = kept
    return parse_tweet


def _resource(module: str, name: str) -> bytes:
    package = module.rpartition(".")[0]
    assert util.find_spec(package) is not None
    return resources.files(package).joinpath(name).read_bytes()
