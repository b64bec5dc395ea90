"""Which sequence holds which tokens, so that a common beginning is computed once.

Sequences share cells by reference: `used` counts each cell once. A sequence whose reply is done stays as
long as there is room; the one that was used longest ago goes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

Adapters = tuple[tuple[int, float], ...]
"""LoRA adapters in force, as (index, scale): cells computed with others can't be shared."""


class Resident:
    """One sequence in the context's memory: `tokens[:held]` are in its cells."""

    def __init__(self, seq: int, tokens: list[int], adapters: Adapters) -> None:
        self.seq = seq
        self.tokens = tokens
        self.adapters = adapters
        self.held = 0
        self.busy = True
        """Whether a reply is being written; such a one is never forgotten."""
        self.used_at = 0
        self.source: Resident | None = None
        """The sequence whose first `shared` cells this one refers to."""
        self.shared = 0


class Residents:
    """All sequences in memory, at most `n_seq`."""

    def __init__(self, n_seq: int) -> None:
        self._free = list(range(n_seq - 1, -1, -1))
        self._all: list[Resident] = []
        self._clock = itertools.count(1)

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._all)

    @property
    def used(self) -> int:
        """Cells in use, a shared one counted once."""
        return sum(r.held - r.shared for r in self._all)

    @property
    def pinned(self) -> int:
        """Cells that replies in progress need, a shared one counted once."""
        needed: dict[Resident, int] = {}
        for busy in (r for r in self._all if r.busy):
            resident: Resident | None = busy
            length = busy.held
            while resident is not None:
                needed[resident] = max(needed.get(resident, 0), length)
                length, resident = min(length, resident.shared), resident.source
        return sum(max(0, length - r.shared) for r, length in needed.items())

    @property
    def full(self) -> bool:
        """Whether another sequence needs one to be forgotten first."""
        return not self._free

    def add(self, tokens: list[int], adapters: Adapters = ()) -> Resident:
        """Take a free sequence for `tokens`; there must be one (see `full`)."""
        resident = Resident(self._free.pop(), tokens, adapters)
        resident.used_at = next(self._clock)
        self._all.append(resident)
        return resident

    def touch(self, resident: Resident) -> None:
        """Note that the sequence was of use."""
        resident.used_at = next(self._clock)

    def remove(self, resident: Resident) -> None:
        """Forget a sequence; who shared its cells now shares them with each other."""
        self._all.remove(resident)
        self._free.append(resident.seq)
        heirs = [r for r in self._all if r.source is resident]
        if heirs:
            heir = max(heirs, key=lambda r: r.shared)
            reach = heir.shared
            heir.source, heir.shared = resident.source, min(resident.shared, heir.shared)
            for other in heirs:
                if other is not heir:
                    other.source, other.shared = heir, min(other.shared, reach)

    def best(self, tokens: list[int], adapters: Adapters) -> tuple[Resident | None, int]:
        """The sequence whose cells have the longest beginning in common with `tokens`, and its length."""
        found, length = None, 0
        for resident in self._all:
            if resident.adapters != adapters or resident.held <= length:
                continue
            common = common_length(resident.tokens, tokens, resident.held)
            if common > length:
                found, length = resident, common
        return found, length

    def oldest_idle(self, keep: Resident | None = None) -> Resident | None:
        """The sequence without a reply in progress that was used longest ago; never `keep`."""
        return next((r for r in self.idle() if r is not keep), None)

    def idle(self) -> list[Resident]:
        """The sequences without a reply in progress, the one that was used longest ago first."""
        return sorted((r for r in self._all if not r.busy), key=lambda r: r.used_at)


def common_length(a: list[int], b: list[int], limit: int) -> int:
    """How many first tokens two lists share, at most `limit`.

    >>> common_length([1, 2, 3, 4], [1, 2, 9], 10), common_length([1, 2], [1, 2], 1)
    (2, 1)
    """
    limit = min(limit, len(a), len(b))
    at = 0
    while at + 64 <= limit and a[at : at + 64] == b[at : at + 64]:
        at += 64
    pairs: Iterable[tuple[int, int]] = zip(a[at:limit], b[at:limit], strict=False)
    for x, y in pairs:
        if x != y:
            return at
        at += 1
    return at
