"""Which cells a reply begins with, at every border: `pytest tests/test_serve_engine_kv_borders.py`.

`Cells` stands in for llama.cpp's memory: it holds the tokens themselves, so that a test sees at once whether
a sequence holds what the cache says it does.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from serve.engine.kv_cache import KVCache
from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_slots import Slot

Numbers = list[int]


class Cells:
    """The memory of one context; a cell is a token in a list of its own, so that sharing is seen."""

    def __init__(self, n_ctx: int, n_seq: int, can_rewind: bool = True) -> None:
        self.n_ctx, self.n_seq, self.can_rewind = n_ctx, n_seq, can_rewind
        self.rows: list[list[list[int]]] = [[] for _ in range(n_seq)]
        self.refuses = False

    def write(self, slot: Slot, tokens: Numbers) -> None:
        """Compute `tokens` after what the sequence holds."""
        self.rows[slot.seq] += [[token] for token in tokens]
        slot.num_cells += len(tokens)

    def held(self, slot: Slot) -> Numbers:
        return [cell[0] for cell in self.rows[slot.seq]]

    def truncate_cells(self, seq: int, length: int = 0) -> None:
        del self.rows[seq][length:]

    def share_cells(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert not self.rows[target]
        assert len(self.rows[source]) >= length
        self.rows[target] = self.rows[source][:length]

    def state_size(self, seq: int) -> int:
        return 4 * len(self.rows[seq])

    def get_state(self, seq: int) -> NDArray[np.uint8]:
        return np.array([cell[0] for cell in self.rows[seq]], np.int32).view(np.uint8)

    def restore_state(self, seq: int, data: NDArray[np.uint8]) -> bool:
        if self.refuses:
            return False
        self.rows[seq] = [[int(token)] for token in data.view(np.int32)]
        return len({id(cell) for row in self.rows for cell in row}) <= self.n_ctx


def made(
    n_ctx: int = 1000, n_seq: int = 4, parked: int = 1 << 20, disk: DiskKVCache | None = None
) -> tuple[KVCache, Cells]:
    cells = Cells(n_ctx, n_seq)
    return KVCache(cast(Any, cells), parked, disk), cells


def begin(cache: KVCache, cells: Cells, tokens: Numbers, adapters: Any = ()) -> Slot:
    """A reply whose prompt has been read."""
    slot = cache.claim_slot(tokens, adapters)
    assert cells.held(slot) == tokens[: slot.num_cells], "what is called known is there"
    assert slot.num_cells < len(tokens), "one token is left, whose scores choose the next"
    cells.write(slot, tokens[slot.num_cells :])
    return slot


def ask(cache: KVCache, cells: Cells, tokens: Numbers, adapters: Any = ()) -> int:
    """Read a prompt, end its reply, and say how much of it was known."""
    slot = cache.claim_slot(tokens, adapters)
    known = slot.num_cells
    assert cells.held(slot) == tokens[:known]
    cells.write(slot, tokens[known:])
    cache.release_slot(slot, tokens)
    return known


def span(first: int, length: int) -> Numbers:
    return list(range(first, first + length))


def test_a_beginning_too_long_to_be_brought_leaves_the_shorter_one_that_is_there() -> None:
    """The copy needs more room than there is; the resting sequence must not be given up for it."""
    cache, cells = made(n_ctx=1000)
    long = span(0, 600)
    ask(cache, cells, long)
    busy = begin(cache, cells, span(5000, 500))
    assert cache.cell_counts["parked_bytes"] == 4 * 600
    short = [*span(0, 100), *span(7000, 10)]
    ask(cache, cells, short)
    prompt = [*span(0, 300), *span(9000, 50)]
    slot = cache.claim_slot(prompt, ())
    assert cells.held(slot) == prompt[: slot.num_cells]
    assert cells.held(busy) == span(5000, 500)


def test_a_file_is_kept_when_only_the_room_is_short(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 1 << 20, "a")
    cache, cells = made(n_ctx=1000, parked=0, disk=disk)
    long = span(0, 600)
    slot = begin(cache, cells, long)
    cache.note_prompt(long, ())
    cache.release_slot(slot, long)
    cache.flush_to_disk()
    begin(cache, cells, span(5000, 500))
    slot = cache.claim_slot(span(0, 300), ())
    assert cells.held(slot) == span(0, 300)[: slot.num_cells]
    assert list(tmp_path.glob("*.kv")), "the next prompt finds it again"


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_and_goes_a_reply_begins_with_its_own_tokens(
    seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    disk = DiskKVCache(tmp_path, 1 << 16, "a")
    cache, cells = made(n_ctx=900, n_seq=5, parked=4000, disk=disk)
    stems = [span(1000 * i, 500) for i in range(4)]
    busy: list[tuple[Slot, Numbers, Any]] = []
    for at in range(120):
        tokens = [*draw.choice(stems)[: draw.randint(1, 400)], *span(100_000 + 100 * at, 20)]
        adapters = draw.choice([(), (), ((0, 1.0),)])
        if cache.has_room_for(tokens, adapters, 1):
            slot = begin(cache, cells, tokens, adapters)
            cache.note_prompt(tokens, adapters)
            busy.append((slot, tokens, adapters))
        while busy and (len(busy) > 2 or draw.random() < 0.5):
            slot, tokens, _ = busy.pop(draw.randrange(len(busy)))
            assert cells.held(slot) == tokens
            cache.release_slot(slot, tokens)
        if draw.random() < 0.2:
            cache.save_one_prefix(older_than=0.0)
            disk.wait_for_writer()
        distinct = len({id(cell) for row in cells.rows for cell in row})
        assert cache.cell_counts["cells_used"] == distinct


def test_the_counts_are_those_of_the_context() -> None:
    cache, cells = made(n_ctx=700)
    ask(cache, cells, span(0, 100))
    begin(cache, cells, span(500, 50))
    assert cache.cell_counts == {
        "cells_used": 50,
        "cells": 700,
        "sequences": 1,
        "parked_bytes": 400,
    }


def test_room_is_what_busy_replies_leave_and_a_shared_beginning_needs_none() -> None:
    cache, cells = made(n_ctx=100, n_seq=3)
    begin(cache, cells, span(0, 60))
    assert cache.has_room_for(span(500, 40), (), 0)
    assert not cache.has_room_for(span(500, 40), (), 1)
    assert cache.has_room_for(span(0, 90), (), 10), "60 of them are there"
    assert not cache.has_room_for(span(0, 90), (), 11)
    assert not cache.has_room_for(span(0, 90), ((0, 1.0),), 10), "made with other adapters"
    begin(cache, cells, span(500, 5))
    begin(cache, cells, span(600, 5))
    assert not cache.has_room_for([1], (), 0), "no sequence is free"


def test_a_resting_beginning_is_no_room_that_is_saved() -> None:
    """It gives way where room is short, so a prompt that needs all must count it in."""
    cache, cells = made(n_ctx=100, parked=0)
    ask(cache, cells, span(0, 80))
    assert cache.has_room_for(span(0, 90), (), 10)
    assert not cache.has_room_for(span(0, 90), (), 11)


def test_what_is_known_is_counted_in_sequences_and_in_copies() -> None:
    cache, cells = made()
    ask(cache, cells, span(0, 300))
    assert cache.cached_length(span(0, 200), ()) == 200
    ask(cache, cells, span(5000, 300))
    assert cache.cached_length(span(0, 250), ()) == 250, "by now a copy"
    assert cache.cached_length(span(0, 250), ((0, 1.0),)) == 0
    assert cache.cached_length(span(9000, 5), ()) == 0


def test_adapters_begin_with_their_own_cells_from_a_copy_and_from_disk(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 1 << 20, "a")
    cache, cells = made(disk=disk)
    own = ((1, 0.5),)
    cache.note_prompt(span(0, 300), own)
    assert ask(cache, cells, span(0, 300), own) == 0
    assert cache.save_one_prefix(older_than=0.0)
    disk.wait_for_writer()
    assert ask(cache, cells, span(0, 300)) == 0
    assert ask(cache, cells, span(0, 300), own) == 299
    fresh, again = made(disk=DiskKVCache(tmp_path, 1 << 20, "a"))
    assert ask(fresh, again, [*span(0, 300), 7], own) == 300
    assert ask(fresh, again, [*span(0, 300), 7, 8], own) == 301, "what disk gave keeps its adapters"
    assert ask(fresh, again, [*span(0, 300), 7]) == 0


def test_a_copy_that_a_context_refuses_costs_only_time() -> None:
    cache, cells = made()
    ask(cache, cells, span(0, 300))
    ask(cache, cells, span(5000, 300))
    cells.refuses = True
    assert ask(cache, cells, span(0, 300)) == 0
    assert cache.cell_counts["sequences"] <= 2


def test_a_file_that_a_context_refuses_is_deleted(tmp_path: Path) -> None:
    cache, cells = made(disk=DiskKVCache(tmp_path, 1 << 20, "a"))
    cache.note_prompt(span(0, 300), ())
    ask(cache, cells, span(0, 300))
    cache.flush_to_disk()
    fresh, again = made(disk=DiskKVCache(tmp_path, 1 << 20, "a"))
    again.refuses = True
    assert ask(fresh, again, span(0, 300)) == 0
    assert not list(tmp_path.glob("*.kv"))


def test_a_context_that_cannot_rewind_keeps_nothing() -> None:
    cache, cells = made(disk=None)
    cells.can_rewind = False
    assert ask(cache, cells, span(0, 300)) == 0
    assert ask(cache, cells, span(0, 300)) == 0
    assert cache.cell_counts["sequences"] == 0


def test_a_reply_that_never_began_leaves_no_sequence() -> None:
    cache, _ = made()
    cache.release_slot(cache.claim_slot(span(0, 10), ()), [])
    assert cache.cell_counts["sequences"] == 0


def test_the_one_used_longest_ago_goes_first_and_its_copy_remains() -> None:
    cache, cells = made(n_seq=3)
    first = begin(cache, cells, span(0, 200))
    second = begin(cache, cells, span(5000, 200))
    cache.release_slot(first, span(0, 200))
    cache.release_slot(second, span(5000, 200))
    assert cache.evict_oldest_slot(keep=first)
    assert cells.held(first) == span(0, 200)
    assert cache.cell_counts["parked_bytes"] == 800
    assert not cache.evict_oldest_slot(keep=first)
    assert cache.evict_oldest_slot()
    assert not cache.evict_oldest_slot()
    assert ask(cache, cells, span(0, 200)) == 199


def test_fewer_than_64_tokens_of_its_own_are_not_worth_a_copy() -> None:
    cache, cells = made()
    ask(cache, cells, span(0, 63))
    ask(cache, cells, span(5000, 10))
    assert cache.cell_counts["parked_bytes"] == 0
    ask(cache, cells, span(0, 64))
    ask(cache, cells, span(5000, 10))
    assert cache.cell_counts["parked_bytes"] == 4 * 64


def test_a_prefix_is_written_from_the_sequence_that_holds_all_of_it(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 1 << 20, "a")
    cache, cells = made(n_seq=1, disk=disk)
    assert not cache.save_one_prefix(older_than=0.0)
    cache.note_prompt(span(0, 300), ())
    slot = begin(cache, cells, span(0, 300))
    assert cache.save_one_prefix(older_than=0.0), "tried: no second sequence is free"
    disk.wait_for_writer()
    assert not list(tmp_path.glob("*.kv"))
    cache.release_slot(slot, span(0, 300))
    cache.note_prompt(span(9000, 300), ())
    assert cache.save_one_prefix(older_than=0.0), "nobody holds it any more: it is left out"
    disk.wait_for_writer()
    assert not list(tmp_path.glob("*.kv"))


def test_a_prefix_waits_its_time_and_a_flush_does_not(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 1 << 20, "a")
    cache, cells = made(disk=disk)
    cache.note_prompt(span(0, 300), ())
    cache.note_prompt(span(5000, 300), ())
    for tokens in (span(0, 300), span(5000, 300)):
        cache.release_slot(begin(cache, cells, tokens), tokens)
    begin(cache, cells, span(0, 300))
    begin(cache, cells, span(5000, 300))
    assert not cache.save_one_prefix(older_than=60.0)
    started = time.monotonic()
    cache.flush_to_disk()
    assert time.monotonic() - started < 30
    assert len(list(tmp_path.glob("*.kv"))) == 2
    assert all(not row for row in cells.rows if [c[0] for c in row] == [0])


def test_what_has_a_copy_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, cells = made()
    for adapters in ((), ((0, 1.0),)):
        ask(cache, cells, span(0, 300), adapters)
    ask(cache, cells, span(5000, 10))

    def copied(_: int) -> NDArray[np.uint8]:
        raise AssertionError("copied again")

    monkeypatch.setattr(cells, "get_state", copied)
    for adapters in ((), ((0, 1.0),)):
        assert ask(cache, cells, span(0, 300), adapters) == 299
    ask(cache, cells, span(5000, 10))
