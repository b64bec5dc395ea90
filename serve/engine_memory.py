"""What is computed once and used again: sequences that rest, their copies in memory, and files on disk.

A prompt begins in the sequence, the copy or the file that has its longest beginning. What rests is taken
out of the context before anybody computes, because its cells are in the way (`prefix_parked`); that goes for
the one that a prompt begins with too, whose beginning they share. Only what is too large for a copy stays,
as long as there is room for both.
"""

from __future__ import annotations

from typing import Any

from serve.engine_native import Native
from serve.prefix import Adapters, Resident, Residents, common_length
from serve.prefix_disk import PrefixDisk
from serve.prefix_parked import WORTH_KEEPING, Copy, Parked


class Memory:
    """The cells of one context, and what was in them; all methods belong to the thread that decodes."""

    def __init__(self, native: Native, parked_bytes: int, disk: PrefixDisk | None) -> None:
        self._native = native
        self._parked = Parked(parked_bytes)
        self._disk = disk
        self._residents = Residents(native.n_seq)

    @property
    def counts(self) -> dict[str, int]:
        """What is in use, for the metrics."""
        return {
            "cells_used": self._residents.used,
            "cells": self._native.n_ctx,
            "sequences": sum(1 for _ in self._residents),
            "parked_bytes": self._parked.bytes,
        }

    def room_for(self, tokens: list[int], adapters: Adapters, reserve: int) -> bool:
        """Whether `tokens` and `reserve` more fit beside the replies in progress."""
        room = self._native.n_ctx - self._residents.pinned
        found, common = self._residents.best(tokens, adapters)
        mine = common if found is not None and found.busy else 0
        some_idle = self._residents.oldest_idle() is not None
        free_sequence = not self._residents.full or some_idle
        return free_sequence and len(tokens) - mine + reserve <= room

    def ready(self, tokens: list[int], adapters: Adapters) -> int:
        """How many first tokens need not be computed, those on disk left aside."""
        _, common = self._residents.best(tokens, adapters)
        return max(common, self._parked.longest(tokens, adapters)[1])

    def claim(self, tokens: list[int], adapters: Adapters) -> Resident:
        """A sequence for a reply, with the longest known beginning of `tokens` in it (`held`).

        At least one token is always left to compute: its scores choose the next one.
        """
        native = self._native
        source, common = self._begin_of(tokens, adapters) if native.can_rewind else (None, 0)
        while self._residents.full and self.make_room(keep=source):
            pass
        resident = self._residents.add(tokens, adapters)
        native.cut(resident.seq)
        if source is not None and common:
            native.share(source.seq, resident.seq, common)
            resident.source, resident.shared, resident.held = source, common, common
            self._residents.touch(source)
        coming = len(tokens) - resident.held
        for idle in self._residents.idle():
            if self._copied(idle) or self._residents.used + coming > native.n_ctx:
                self._forget(idle)
        return resident

    def rest(self, resident: Resident, tokens: list[int]) -> None:
        """A reply is done: its cells stay for whoever begins the same."""
        resident.busy = False
        resident.tokens = tokens[: resident.held]
        self._native.cut(resident.seq, resident.held)
        if not self._native.can_rewind or resident.held == 0:
            self._forget(resident)

    def make_room(self, keep: Resident | None = None) -> bool:
        """Clear away the resting sequence that was used longest ago; False when there is none."""
        oldest = self._residents.oldest_idle(keep)
        if oldest is None:
            return False
        self._copied(oldest)
        self._forget(oldest)
        return True

    def note(self, prompt: list[int], adapters: Adapters) -> None:
        """A prompt was read: its beginning may be worth a file."""
        if self._disk is not None and self._native.can_rewind:
            self._disk.note(prompt, adapters)

    def save_one(self, *, older_than: float) -> bool:
        """Write one prefix to disk that has waited for so many seconds; False when there is none."""
        wanted = self._disk.wanted(older_than=older_than) if self._disk is not None else None
        if wanted is None:
            return False
        tokens, adapters = wanted
        resident, common = self._residents.best(tokens, adapters)
        if resident is not None and common == len(tokens):
            self._save(resident, tokens, adapters)
        return True

    def finish(self) -> None:
        """Write what is still to be kept on disk."""
        if self._disk is not None:
            self._disk.finish()
            while self.save_one(older_than=0.0):
                self._disk.finish()

    def _begin_of(self, tokens: list[int], adapters: Adapters) -> tuple[Resident | None, int]:
        """The sequence with the longest beginning, brought from a copy or from disk if need be."""
        most = len(tokens) - 1
        resident, common = self._residents.best(tokens, adapters)
        copy, parked = self._parked.longest(tokens, adapters, more_than=common)
        kept = None
        if self._disk is not None:
            kept = self._disk.longest(tokens, adapters, more_than=max(common, parked))
        if kept is not None and self._disk is not None:
            cells = self._disk.read(kept)
            if cells is not None and (found := self._bring(kept.tokens, adapters, cells)):
                return found, min(kept.common, most)
            if cells is not None:
                self._disk.drop(kept)
        if copy is not None:
            self._parked.touch(copy)
            if found := self._bring(copy.tokens, adapters, copy.cells):
                return found, min(parked, most)
        return resident, min(common, most)

    def _bring(self, tokens: list[int], adapters: Adapters, cells: Any) -> Resident | None:
        """Put copied cells into a sequence of their own; None when there is no room for them."""
        while self._residents.full or self._residents.used + len(tokens) > self._native.n_ctx:
            if not self.make_room():
                return None
        resident = self._residents.add(list(tokens), adapters)
        self._native.cut(resident.seq)
        resident.busy = False
        if not self._native.restore(resident.seq, cells):
            self._forget(resident)
            return None
        resident.held = len(tokens)
        return resident

    def _copied(self, resident: Resident) -> bool:
        """Whether nothing is lost without this sequence: copies what it holds that no other holds.

        False where that is much and a copy has no room.
        """
        tokens, adapters = resident.tokens[: resident.held], resident.adapters
        others = (r for r in self._residents if r is not resident and r.adapters == adapters)
        known = max((common_length(r.tokens, tokens, r.held) for r in others), default=0)
        known = max(known, self._parked.longest(tokens, adapters)[1])
        if len(tokens) - known < WORTH_KEEPING:
            return True
        if not self._parked.takes(self._native.state_size(resident.seq)):
            return False
        self._parked.add(Copy(tokens, adapters, self._native.state(resident.seq)))
        return True

    def _forget(self, resident: Resident) -> None:
        self._native.cut(resident.seq)
        self._residents.remove(resident)

    def _save(self, resident: Resident, tokens: list[int], adapters: Adapters) -> None:
        assert self._disk is not None
        while self._residents.full:
            if not self.make_room(keep=resident):
                return
        copy = self._residents.add(tokens, adapters)
        self._native.share(resident.seq, copy.seq, len(tokens))
        self._disk.write(tokens, adapters, self._native.state(copy.seq))
        self._native.cut(copy.seq)
        self._residents.remove(copy)
