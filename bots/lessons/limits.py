"""How long a post may be, without the outlets' settings: a lesson carries kind and limit alone."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from bots.outlets.base import Outlet
from bots.outlets.build import KINDS

Limit = Mapping[str, Any]
"""`outlet` (a kind of `bots.outlets.build`) and `limit` in what it counts."""

EVERYWHERE: tuple[Limit, ...] = ({"outlet": "x", "limit": 280},)
"""Where nothing is said of the outlets: what X takes is taken nearly everywhere."""


def outlet_limits(outlets: Iterable[Outlet]) -> list[dict[str, Any]]:
    """What a lesson says of the outlets that its bot speaks on: neither names nor addresses.

    >>> from bots.outlets.build import build_outlet
    >>> outlet_limits([build_outlet("screen", {})])
    [{'outlet': 'screen', 'limit': 280}]
    """
    return [{"outlet": outlet.kind, "limit": outlet.limit} for outlet in outlets]


def length_faults(post: str, limits: Iterable[Limit]) -> list[str]:
    """Why `post` is too long, in the outlets' own words.

    >>> length_faults("x" * 300, EVERYWHERE)
    ['The post is too long: 300 of 280 for x.']
    """
    return [
        fault for one in limits for fault in _measure(one["outlet"], one["limit"]).text_faults(post)
    ]


@cache
def _measure(kind: str, limit: int) -> Outlet:
    """An outlet that can only measure: it was never told where it speaks."""
    found: type[Outlet] = getattr(importlib.import_module(f"bots.outlets.{kind}"), KINDS[kind])
    outlet = found.__new__(found)
    outlet.name, outlet.limit = kind, limit
    return outlet
