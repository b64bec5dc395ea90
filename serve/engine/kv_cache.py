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

    def __init__(self, llama: LlamaContext, parked_bytes: int, disk: DiskKVCache | None) -> None:
        self._llama = llama
        self._host_cache = HostKVCache(parked_bytes)
        self._disk = disk
        self._slots = SlotPool(llama.n_seq)

    @property
    def cell_counts(self) -> dict[str, int]:
        """What is in use, for the metrics."""
        return {
            "cells_used": self._slots.used_cells,
            "cells": self._llama.n_ctx,
            "sequences": sum(1 for _ in self._slots),
            "parked_bytes": self._host_cache.used_bytes,
        }

    def has_room_for(self, tokens: list[int], adapters: Adapters, reserve: int) -> bool:
        """Whether `tokens` and `reserve` more fit beside the replies in progress."""
        room = self._llama.n_ctx - self._slots.pinned_cells
        found, common = self._slots.longest_prefix(tokens, adapters)
        mine = common if found is not None and found.busy else 0
        some_idle = self._slots.oldest_idle_slot() is not None
        free_sequence = not self._slots.is_full or some_idle
        return free_sequence and len(tokens) - mine + reserve <= room

    def cached_length(self, tokens: list[int], adapters: Adapters) -> int:
        """How many first tokens need not be computed, those on disk left aside."""
        _, common = self._slots.longest_prefix(tokens, adapters)
        return max(common, self._host_cache.longest_prefix(tokens, adapters)[1])

    def claim_slot(self, tokens: list[int], adapters: Adapters) -> Slot:
        """A sequence for a reply, with the longest known beginning of `tokens` in it (`num_cells`).

        At least one token is always left to compute: its scores choose the next one.
        """
        llama = self._llama
        source, common = self._begin_of(tokens, adapters) if llama.can_rewind else (None, 0)
        while self._slots.is_full and self.evict_oldest_slot(keep=source):
            pass
        slot = self._slots.take_slot(tokens, adapters)
        llama.truncate_cells(slot.seq)
        if source is not None and common:
            llama.share_cells(source.seq, slot.seq, common)
            slot.source, slot.num_shared_cells, slot.num_cells = source, common, common
            self._slots.mark_used(source)
        coming = len(tokens) - slot.num_cells
        for idle in self._slots.idle_slots():
            if self._copied(idle) or self._slots.used_cells + coming > llama.n_ctx:
                self._forget(idle)
        return slot

    def release_slot(self, slot: Slot, tokens: list[int]) -> None:
        """A reply is done: its cells stay for whoever begins the same."""
        slot.tokens = tokens[: slot.num_cells]
        self._llama.truncate_cells(slot.seq, slot.num_cells)
        slot.busy = False
        if not self._llama.can_rewind or slot.num_cells == 0:
            self._forget(slot)

    def reclaim_slots(self, held: list[Slot]) -> None:
        """Clear away what replies hold that are no more: those that ended in the middle of a step."""
        for slot in [s for s in self._slots if s.busy and s not in held]:
            self._forget(slot)

    def evict_oldest_slot(self, keep: Slot | None = None) -> bool:
        """Clear away the resting sequence that was used longest ago; False when there is none."""
        oldest = self._slots.oldest_idle_slot(keep)
        if oldest is None:
            return False
        self._copied(oldest)
        self._forget(oldest)
        return True

    def note_prompt(self, prompt: list[int], adapters: Adapters) -> None:
        """A prompt was read: its beginning may be worth a file."""
        if self._disk is not None and self._llama.can_rewind:
            self._disk.note_prompt(prompt, adapters)

    def save_one_prefix(self, *, older_than: float) -> bool:
        """Write one prefix to disk that has waited for so many seconds; False when there is none."""
        wanted = self._disk.pop_pending(older_than=older_than) if self._disk is not None else None
        if wanted is None:
            return False
        tokens, adapters = wanted
        slot, common = self._slots.longest_prefix(tokens, adapters)
        if slot is not None and common == len(tokens):
            self._save(slot, tokens, adapters)
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
        slot, common = self._slots.longest_prefix(tokens, adapters)
        copy, parked = self._host_cache.longest_prefix(tokens, adapters, more_than=common)
        kept = None
        if self._disk is not None:
            kept = self._disk.longest_prefix(tokens, adapters, more_than=max(common, parked))
        if kept is not None and self._disk is not None and self._can_bring(kept.tokens):
            cells = self._disk.read_cells(kept)
            if cells is not None and (found := self._bring(kept.tokens, adapters, cells)):
                return found, min(kept.num_common_tokens, most)
            if cells is not None:
                self._disk.delete_file(kept)
        if copy is not None and self._can_bring(copy.tokens):
            self._host_cache.mark_used(copy)
            if found := self._bring(copy.tokens, adapters, copy.cells):
                return found, min(parked, most)
        slot, common = self._slots.longest_prefix(tokens, adapters)  # anew: some may have made room
        return slot, min(common, most)

    def _can_bring(self, tokens: list[int]) -> bool:
        """Whether copied cells have room beside the replies in progress, once nothing else rests."""
        free = not self._slots.is_full or self._slots.oldest_idle_slot() is not None
        return free and self._slots.pinned_cells + len(tokens) <= self._llama.n_ctx

    def _bring(self, tokens: list[int], adapters: Adapters, cells: Any) -> Slot | None:
        """Put copied cells into a sequence of their own; None when the context does not take them."""
        while self._slots.is_full or self._slots.used_cells + len(tokens) > self._llama.n_ctx:
            if not self.evict_oldest_slot():
                return None
        slot = self._slots.take_slot(list(tokens), adapters)
        self._llama.truncate_cells(slot.seq)
        slot.busy = False
        if not self._llama.restore_state(slot.seq, cells):
            self._forget(slot)
            return None
        slot.num_cells = len(tokens)
        return slot

    def _copied(self, slot: Slot) -> bool:
        """Whether nothing is lost without this sequence: copies what it holds that no other holds.

        False where that is much and a copy has no room.
        """
        tokens, adapters = slot.tokens[: slot.num_cells], slot.adapters
        others = (s for s in self._slots if s is not slot and s.adapters == adapters)
        known = max(
            (common_prefix_length(s.tokens, tokens, s.num_cells) for s in others), default=0
        )
        known = max(known, self._host_cache.longest_prefix(tokens, adapters)[1])
        if len(tokens) - known < WORTH_KEEPING:
            return True
        if not self._host_cache.can_hold(self._llama.state_size(slot.seq)):
            return False
        self._host_cache.add_copy(HostCopy(tokens, adapters, self._llama.get_state(slot.seq)))
        return True

    def _forget(self, slot: Slot) -> None:
        self._llama.truncate_cells(slot.seq)
        self._slots.free_slot(slot)

    def _save(self, slot: Slot, tokens: list[int], adapters: Adapters) -> None:
        assert self._disk is not None
        while self._slots.is_full:
            if not self.evict_oldest_slot(keep=slot):
                return
        copy = self._slots.take_slot(tokens, adapters)
        self._llama.share_cells(slot.seq, copy.seq, len(tokens))
        self._disk.write_file(tokens, adapters, self._llama.get_state(copy.seq))
        self._llama.truncate_cells(copy.seq)
        self._slots.free_slot(copy)
