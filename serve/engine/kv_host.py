"""Sequences that rest: their cells are copied out of the context, into plain memory with a limit.

Cells of a resting sequence are in the way of those that are computed: attention walks over them to find
that they are masked, which costs up to a tenth of the speed (benchmarks/serve.py). A copy of a thousand
tokens takes milliseconds, there and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.engine.kv_slots import Adapters, common_prefix_length

WORTH_KEEPING = 64
"""A sequence that has fewer tokens of its own than this is forgotten: they are soon read again."""
WORTH_BRINGING = 32
"""How many more tokens a copy must save to be brought back."""


@dataclass(frozen=True, eq=False)
class HostCopy:
    """The cells of `tokens`."""

    tokens: list[int]
    adapters: Adapters
    cells: NDArray[np.uint8]


class HostKVCache:
    """Copies of at most `limit` bytes together; the one that was used longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._copies: list[HostCopy] = []

    @property
    def used_bytes(self) -> int:
        """Memory in use."""
        return sum(copy.cells.nbytes for copy in self._copies)

    def longest_prefix(
        self, tokens: list[int], adapters: Adapters, more_than: int = -WORTH_BRINGING
    ) -> tuple[HostCopy | None, int]:
        """The copy with the longest common beginning, if it saves enough, and that length."""
        found, length = None, more_than + WORTH_BRINGING - 1
        for copy in self._copies:
            if copy.adapters == adapters:
                common = common_prefix_length(copy.tokens, tokens, len(tokens))
                if common > length:
                    found, length = copy, common
        return (found, length) if found is not None else (None, 0)

    def can_hold(self, size: int) -> bool:
        """Whether a copy of so many bytes has room at all."""
        return 0 < size <= self._limit

    def add_copy(self, copy: HostCopy) -> None:
        """Keep a copy; it replaces those that it contains, and the oldest ones that have no room."""
        self._copies = [
            other
            for other in self._copies
            if other.adapters != copy.adapters
            or common_prefix_length(other.tokens, copy.tokens, len(copy.tokens)) < len(other.tokens)
        ]
        self._copies.append(copy)
        while self.used_bytes > self._limit:
            del self._copies[0]

    def mark_used(self, copy: HostCopy) -> None:
        """Note that a copy was of use."""
        if copy in self._copies:
            self._copies.remove(copy)
            self._copies.append(copy)
