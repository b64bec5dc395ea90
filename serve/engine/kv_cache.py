"""What is computed once and used again: sequences that rest, their copies in memory, and files on disk.

A prompt begins in the sequence, the copy or the file that has its longest beginning. What rests is taken
out of the context before anybody computes, because its cells are in the way (`kv_host`); that goes for
the one that a prompt begins with too, whose beginning they share. Only what is too large for a copy stays,
as long as there is room for both.
"""

from __future__ import annotations

from typing import Any

from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_host import WORTH_KEEPING, HostCopy, HostKVCache
from serve.engine.kv_slots import Adapters, Slot, SlotPool, common_prefix_length
from serve.engine.llama import LlamaContext


class KVCache:
    """The cells of one context, and what was in them; all methods belong to the thread that decodes."""

    def __init__(self, native: LlamaContext, parked_bytes: int, disk: DiskKVCache | None) -> None:
        self._native = native
        self._parked = HostKVCache(parked_bytes)
        self._disk = disk
        self._residents = SlotPool(native.n_seq)

    @property
    def cell_counts(self) -> dict[str, int]:
        """What is in use, for the metrics."""
        return {
            "cells_used": self._residents.used_cells,
            "cells": self._native.n_ctx,
            "sequences": sum(1 for _ in self._residents),
            "parked_bytes": self._parked.used_bytes,
        }

    def has_room_for(self, tokens: list[int], adapters: Adapters, reserve: int) -> bool:
        """Whether `tokens` and `reserve` more fit beside the replies in progress."""
        room = self._native.n_ctx - self._residents.pinned_cells
        found, common = self._residents.longest_prefix(tokens, adapters)
        mine = common if found is not None and found.busy else 0
        some_idle = self._residents.oldest_idle_slot() is not None
        free_sequence = not self._residents.is_full or some_idle
        return free_sequence and len(tokens) - mine + reserve <= room

    def cached_length(self, tokens: list[int], adapters: Adapters) -> int:
        """How many first tokens need not be computed, those on disk left aside."""
        _, common = self._residents.longest_prefix(tokens, adapters)
        return max(common, self._parked.longest_prefix(tokens, adapters)[1])

    def claim_slot(self, tokens: list[int], adapters: Adapters) -> Slot:
        """A sequence for a reply, with the longest known beginning of `tokens` in it (`num_cells`).

        At least one token is always left to compute: its scores choose the next one.
        """
        native = self._native
        source, common = self._begin_of(tokens, adapters) if native.can_rewind else (None, 0)
        while self._residents.is_full and self.evict_oldest_slot(keep=source):
            pass
        resident = self._residents.take_slot(tokens, adapters)
        native.truncate_cells(resident.seq)
        if source is not None and common:
            native.share_cells(source.seq, resident.seq, common)
            resident.source, resident.num_shared_cells, resident.num_cells = source, common, common
            self._residents.mark_used(source)
        coming = len(tokens) - resident.num_cells
        for idle in self._residents.idle_slots():
            if self._copied(idle) or self._residents.used_cells + coming > native.n_ctx:
                self._forget(idle)
        return resident

    def release_slot(self, resident: Slot, tokens: list[int]) -> None:
        """A reply is done: its cells stay for whoever begins the same."""
        resident.busy = False
        resident.tokens = tokens[: resident.num_cells]
        self._native.truncate_cells(resident.seq, resident.num_cells)
        if not self._native.can_rewind or resident.num_cells == 0:
            self._forget(resident)

    def evict_oldest_slot(self, keep: Slot | None = None) -> bool:
        """Clear away the resting sequence that was used longest ago; False when there is none."""
        oldest = self._residents.oldest_idle_slot(keep)
        if oldest is None:
            return False
        self._copied(oldest)
        self._forget(oldest)
        return True

    def note_prompt(self, prompt: list[int], adapters: Adapters) -> None:
        """A prompt was read: its beginning may be worth a file."""
        if self._disk is not None and self._native.can_rewind:
            self._disk.note_prompt(prompt, adapters)

    def save_one_prefix(self, *, older_than: float) -> bool:
        """Write one prefix to disk that has waited for so many seconds; False when there is none."""
        wanted = self._disk.pop_pending(older_than=older_than) if self._disk is not None else None
        if wanted is None:
            return False
        tokens, adapters = wanted
        resident, common = self._residents.longest_prefix(tokens, adapters)
        if resident is not None and common == len(tokens):
            self._save(resident, tokens, adapters)
        return True

    def flush_to_disk(self) -> None:
        """Write what is still to be kept on disk."""
        if self._disk is not None:
            self._disk.wait_for_writer()
            while self.save_one_prefix(older_than=0.0):
                self._disk.wait_for_writer()

    def _begin_of(self, tokens: list[int], adapters: Adapters) -> tuple[Slot | None, int]:
        """The sequence with the longest beginning, brought from a copy or from disk if need be."""
        most = len(tokens) - 1
        resident, common = self._residents.longest_prefix(tokens, adapters)
        copy, parked = self._parked.longest_prefix(tokens, adapters, more_than=common)
        kept = None
        if self._disk is not None:
            kept = self._disk.longest_prefix(tokens, adapters, more_than=max(common, parked))
        if kept is not None and self._disk is not None:
            cells = self._disk.read_cells(kept)
            if cells is not None and (found := self._bring(kept.tokens, adapters, cells)):
                return found, min(kept.num_common_tokens, most)
            if cells is not None:
                self._disk.delete_file(kept)
        if copy is not None:
            self._parked.mark_used(copy)
            if found := self._bring(copy.tokens, adapters, copy.cells):
                return found, min(parked, most)
        return resident, min(common, most)

    def _bring(self, tokens: list[int], adapters: Adapters, cells: Any) -> Slot | None:
        """Put copied cells into a sequence of their own; None when there is no room for them."""
        while (
            self._residents.is_full or self._residents.used_cells + len(tokens) > self._native.n_ctx
        ):
            if not self.evict_oldest_slot():
                return None
        resident = self._residents.take_slot(list(tokens), adapters)
        self._native.truncate_cells(resident.seq)
        resident.busy = False
        if not self._native.restore_state(resident.seq, cells):
            self._forget(resident)
            return None
        resident.num_cells = len(tokens)
        return resident

    def _copied(self, resident: Slot) -> bool:
        """Whether nothing is lost without this sequence: copies what it holds that no other holds.

        False where that is much and a copy has no room.
        """
        tokens, adapters = resident.tokens[: resident.num_cells], resident.adapters
        others = (r for r in self._residents if r is not resident and r.adapters == adapters)
        known = max(
            (common_prefix_length(r.tokens, tokens, r.num_cells) for r in others), default=0
        )
        known = max(known, self._parked.longest_prefix(tokens, adapters)[1])
        if len(tokens) - known < WORTH_KEEPING:
            return True
        if not self._parked.can_hold(self._native.state_size(resident.seq)):
            return False
        self._parked.add_copy(HostCopy(tokens, adapters, self._native.get_state(resident.seq)))
        return True

    def _forget(self, resident: Slot) -> None:
        self._native.truncate_cells(resident.seq)
        self._residents.free_slot(resident)

    def _save(self, resident: Slot, tokens: list[int], adapters: Adapters) -> None:
        assert self._disk is not None
        while self._residents.is_full:
            if not self.evict_oldest_slot(keep=resident):
                return
        copy = self._residents.take_slot(tokens, adapters)
        self._native.share_cells(resident.seq, copy.seq, len(tokens))
        self._disk.write_file(tokens, adapters, self._native.get_state(copy.seq))
        self._native.truncate_cells(copy.seq)
        self._residents.free_slot(copy)
