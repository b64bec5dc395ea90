"""Which sequence holds which tokens, so that a common beginning is computed once.

Sequences share cells by reference: `used_cells` counts each cell once. A sequence whose reply is done
stays as long as there is room; the one that was used longest ago goes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

Adapters = tuple[tuple[int, float], ...]
"""LoRA adapters in force, as (index, scale): cells computed with others can't be shared."""


class Slot:
    """One sequence in the context's memory: `tokens[:num_cells]` are in its cells."""

    def __init__(self, seq: int, tokens: list[int], adapters: Adapters) -> None:
        self.seq = seq
        self.tokens = tokens
        self.adapters = adapters
        self.num_cells = 0
        self.busy = True
        """Whether a reply is being written; such a one is never forgotten."""
        self.used_at = 0
        self.source: Slot | None = None
        """The sequence whose first `num_shared_cells` cells this one refers to."""
        self.num_shared_cells = 0


class SlotPool:
    """All sequences in memory, at most `n_seq`."""

    def __init__(self, n_seq: int) -> None:
        self._free = list(range(n_seq - 1, -1, -1))
        self._all: list[Slot] = []
        self._clock = itertools.count(1)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._all)

    @property
    def used_cells(self) -> int:
        """Cells in use, a shared one counted once."""
        return sum(s.num_cells - s.num_shared_cells for s in self._all)

    @property
    def pinned_cells(self) -> int:
        """Cells that replies in progress need, a shared one counted once."""
        needed: dict[Slot, int] = {}
        for busy in (s for s in self._all if s.busy):
            slot: Slot | None = busy
            length = busy.num_cells
            while slot is not None:
                needed[slot] = max(needed.get(slot, 0), length)
                length, slot = min(length, slot.num_shared_cells), slot.source
        return sum(max(0, length - s.num_shared_cells) for s, length in needed.items())

    @property
    def is_full(self) -> bool:
        """Whether another sequence needs one to be forgotten first."""
        return not self._free

    def take_slot(self, tokens: list[int], adapters: Adapters = ()) -> Slot:
        """Take a free sequence for `tokens`; there must be one (see `is_full`)."""
        slot = Slot(self._free.pop(), tokens, adapters)
        slot.used_at = next(self._clock)
        self._all.append(slot)
        return slot

    def mark_used(self, slot: Slot) -> None:
        """Note that the sequence was of use."""
        slot.used_at = next(self._clock)

    def free_slot(self, slot: Slot) -> None:
        """Forget a sequence; who shared its cells now shares them with each other."""
        self._all.remove(slot)
        self._free.append(slot.seq)
        heirs = [s for s in self._all if s.source is slot]
        if heirs:
            heir = max(heirs, key=lambda s: s.num_shared_cells)
            reach = heir.num_shared_cells
            heir.source, heir.num_shared_cells = (
                slot.source,
                min(slot.num_shared_cells, heir.num_shared_cells),
            )
            for other in heirs:
                if other is not heir:
                    other.source, other.num_shared_cells = heir, min(other.num_shared_cells, reach)

    def longest_prefix(self, tokens: list[int], adapters: Adapters) -> tuple[Slot | None, int]:
        """The sequence whose cells have the longest beginning in common with `tokens`, and its length."""
        found, length = None, 0
        for slot in self._all:
            if slot.adapters != adapters or slot.num_cells <= length:
                continue
            common = common_prefix_length(slot.tokens, tokens, slot.num_cells)
            if common > length:
                found, length = slot, common
        return found, length

    def oldest_idle_slot(self, keep: Slot | None = None) -> Slot | None:
        """The sequence without a reply in progress that was used longest ago; never `keep`."""
        return next((s for s in self.idle_slots() if s is not keep), None)

    def idle_slots(self) -> list[Slot]:
        """The sequences without a reply in progress, the one that was used longest ago first."""
        return sorted((s for s in self._all if not s.busy), key=lambda s: s.used_at)


def common_prefix_length(a: list[int], b: list[int], limit: int) -> int:
    """How many first tokens two lists share, at most `limit`.

    >>> common_prefix_length([1, 2, 3, 4], [1, 2, 9], 10), common_prefix_length([1, 2], [1, 2], 1)
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
