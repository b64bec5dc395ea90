"""Copies in memory and the table of sequences: `pytest tests/test_serve_engine_kv_host.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve.engine.kv_host import WORTH_BRINGING, HostCopy, HostKVCache
from serve.engine.kv_slots import Slot, SlotPool, common_prefix_length

OWN = ((1, 0.5),)


def span(first: int, length: int) -> list[int]:
    return list(range(first, first + length))


def copy(tokens: list[int], size: int = 100, adapters: Any = ()) -> HostCopy:
    return HostCopy(tokens, adapters, np.zeros(size, np.uint8))


def held(cache: HostKVCache, *copies: HostCopy) -> list[bool]:
    return [cache.longest_prefix(one.tokens, one.adapters)[0] is one for one in copies]


def test_a_copy_is_brought_when_it_saves_enough() -> None:
    cache = HostKVCache(1000)
    one = copy(span(0, 300))
    cache.add_copy(one)
    assert WORTH_BRINGING == 32
    least = 300 - 32
    assert cache.longest_prefix(span(0, 400), (), more_than=least) == (one, 300)
    assert cache.longest_prefix(span(0, 400), (), more_than=least + 1) == (None, 0)
    assert cache.longest_prefix(span(0, 1), ()) == (one, 1), "unless told, any beginning counts"
    assert cache.longest_prefix(span(1, 300), ()) == (one, 0)
    assert cache.longest_prefix(span(0, 400), OWN) == (None, 0)


def test_the_longest_copy_is_found_and_of_two_alike_the_first() -> None:
    cache = HostKVCache(1000)
    first = copy([*span(0, 100), 7])
    second = copy([*span(0, 100), 8])
    long = copy([*span(0, 90), *span(900, 90)])
    for one in (first, second, long):
        cache.add_copy(one)
    assert cache.longest_prefix([*span(0, 100), 9], ()) == (first, 100)
    assert cache.longest_prefix([*span(0, 90), *span(900, 50)], ()) == (long, 140)


def test_a_copy_has_room_up_to_the_limit_and_an_empty_one_none() -> None:
    cache = HostKVCache(100)
    assert [cache.can_hold(size) for size in (0, 1, 100, 101)] == [False, True, True, False]


def test_a_copy_replaces_those_that_it_contains_of_its_own_adapters() -> None:
    cache = HostKVCache(10_000)
    inside, beside, other = (
        copy(span(0, 100)),
        copy([*span(0, 100), 999]),
        copy(span(0, 100), adapters=OWN),
    )
    whole = copy(span(0, 200))
    for one in (inside, beside, other, whole):
        cache.add_copy(one)
    assert cache.used_bytes == 300
    assert held(cache, beside, other, whole) == [True, True, True]
    cache.add_copy(copy(span(0, 200)))
    assert cache.used_bytes == 300, "the same again is one copy"


def test_the_copies_used_longest_ago_make_room() -> None:
    cache = HostKVCache(300)
    first, second, third = (copy(span(1000 * at, 100)) for at in range(3))
    for one in (first, second, third):
        cache.add_copy(one)
    assert cache.used_bytes == 300, "exactly the limit has room"
    cache.mark_used(first)
    fourth = copy(span(9000, 100))
    cache.add_copy(fourth)
    assert held(cache, first, second, third, fourth) == [True, False, True, True]
    cache.mark_used(second)
    assert cache.used_bytes == 300, "what is gone stays gone"


# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 129, 200])
def test_a_common_beginning_ends_at_the_first_difference_and_at_each_end(length: int) -> None:
    same, other = span(0, 200), [*span(0, length), *span(5000, 50)]
    assert common_prefix_length(same, other, 1000) == length
    assert common_prefix_length(other, same, 1000) == length
    assert common_prefix_length(same, span(0, length), 1000) == length
    assert common_prefix_length(span(0, length), same, 1000) == length
    assert common_prefix_length(same, same, length) == length


def taken(pool: SlotPool, tokens: list[int], adapters: Any = (), busy: bool = False) -> Slot:
    slot = pool.take_slot(tokens, adapters)
    slot.num_cells, slot.busy = len(tokens), busy
    return slot


def test_sequences_are_numbered_from_0_and_all_of_them_are_used() -> None:
    pool = SlotPool(3)
    slots = []
    for _ in range(3):
        assert not pool.is_full
        slots.append(pool.take_slot([]))
    assert pool.is_full
    assert [slot.seq for slot in slots] == [0, 1, 2]
    pool.free_slot(slots[1])
    assert not pool.is_full
    assert pool.take_slot([]).seq == 1


def test_only_cells_that_are_there_count_as_a_beginning() -> None:
    pool = SlotPool(4)
    slot = taken(pool, span(0, 100))
    slot.num_cells = 60
    assert pool.longest_prefix(span(0, 100), ()) == (slot, 60)
    assert pool.longest_prefix(span(0, 100), OWN) == (None, 0)
    assert pool.longest_prefix(span(1, 100), ()) == (None, 0)
    taken(pool, span(0, 90), OWN)
    same = taken(pool, span(0, 60))
    assert pool.longest_prefix(span(0, 100), ()) == (slot, 60), "of two alike the first"
    longer = taken(pool, span(0, 61))
    assert pool.longest_prefix(span(0, 100), ()) == (longer, 61)
    assert same in pool.idle_slots()


def test_the_sequence_used_longest_ago_is_first_and_a_busy_one_never() -> None:
    pool = SlotPool(4)
    first, second, third = (taken(pool, [at]) for at in range(3))
    busy = taken(pool, [9], busy=True)
    pool.mark_used(first)
    assert pool.idle_slots() == [second, third, first]
    assert pool.oldest_idle_slot() is second
    assert pool.oldest_idle_slot(keep=second) is third
    for slot in (second, third):
        pool.free_slot(slot)
    assert pool.oldest_idle_slot(keep=first) is None
    assert busy in list(pool)


def test_who_shared_the_cells_of_a_forgotten_sequence_share_them_with_each_other() -> None:
    pool = SlotPool(4)
    root = taken(pool, span(0, 100))
    heirs = []
    for shared, own in ((40, 10), (70, 5), (20, 30)):
        heir = taken(pool, [*span(0, shared), *span(1000 * own, own)], busy=True)
        heir.source, heir.num_shared_cells = root, shared
        heirs.append(heir)
    assert pool.used_cells == 100 + 10 + 5 + 30
    assert pool.pinned_cells == 70 + 10 + 5 + 30, "the rest of the first one is in nobody's way"
    pool.free_slot(root)
    assert pool.used_cells == pool.pinned_cells == 70 + 10 + 5 + 30
    short, long, least = heirs
    assert (long.source, long.num_shared_cells) == (None, 0)
    assert (short.source, short.num_shared_cells) == (long, 40)
    assert (least.source, least.num_shared_cells) == (long, 20)
