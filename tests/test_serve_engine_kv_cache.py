"""What is computed once and found again: `pytest tests/test_serve_engine_kv_cache.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_slots import SlotPool
from support import serve_gguf
from support.serve_desk import TEXT, Desk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def desk(model: Path) -> Desk:
    return Desk(model)


def test_a_common_beginning_is_computed_once(desk: Desk) -> None:
    first = desk.ask(TEXT * 5 + "one")
    second = desk.ask(TEXT * 5 + "two")
    assert first.timings["cache_n"] == 0
    assert second.timings["cache_n"] >= len(desk.tokens(TEXT * 5)) - 2
    assert second.tokens == Desk(desk.path).ask(TEXT * 5 + "two").tokens


def test_those_who_come_together_wait_for_the_prefix_that_one_of_them_reads(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(model, ctx=4096)
    monkeypatch.setattr(desk.engine.cost_model, "prefill_chunk_size", lambda writers: 64)
    jobs = [desk.submit(TEXT * 20 + f"question {i}") for i in range(6)]
    desk.run()
    common = len(desk.tokens(TEXT * 20))
    read = sum(desk.said[job].timings["prompt_n"] for job in jobs)
    assert read < common + 6 * 32
    assert desk.engine.status_counts["cells_used"] < common + 6 * 64
    alone = [Desk(model).ask(TEXT * 20 + f"question {i}").tokens for i in range(6)]
    assert [desk.said[job].tokens for job in jobs] == alone


def test_a_conversation_goes_on_where_it_was(desk: Desk) -> None:
    first = desk.ask(TEXT, max_tokens=20)
    prompt = [*desk.tokens(TEXT), *first.tokens, *desk.tokens("and then?")]
    second = desk.ask(prompt)
    assert second.timings["cache_n"] >= len(desk.tokens(TEXT)) + 19
    assert desk.engine.status_counts["sequences"] == 1, "the second turn took the first one's place"


def test_what_rests_is_out_of_the_way_while_the_next_prompt_is_read(desk: Desk) -> None:
    first, second = (desk.tokens(TEXT * 3 + part * 100) for part in ("one ", "two "))
    said = desk.ask(first)
    desk.submit(second)
    desk.run(steps=1)
    assert desk.engine.status_counts["cells_used"] <= len(second)
    desk.run()
    again = desk.ask(first)
    assert again.timings["cache_n"] == len(first) - 1, "its copy was brought back"
    assert again.tokens == said.tokens


def test_what_is_too_large_for_a_copy_stays_where_there_is_room_for_both(model: Path) -> None:
    desk = Desk(model, parked_bytes=0)
    first, second, long = (
        desk.tokens(TEXT * 3 + part * n) for part, n in (("one ", 100), ("two ", 50), ("end ", 200))
    )
    desk.ask(first)
    desk.ask(second)
    assert desk.ask(first).timings["cache_n"] == len(first) - 1
    assert len(first) + len(long) > desk.native.n_ctx
    desk.submit(long)
    desk.run(steps=1)
    assert desk.engine.status_counts["cells_used"] <= len(long)


def test_idle_prefixes_make_room_for_whoever_needs_it(model: Path) -> None:
    desk = Desk(model, ctx=512, sequences=6)
    for i in range(20):
        prompt = f"{i} " + "y" * (100 + 15 * i)
        assert desk.ask(prompt).tokens == Desk(model).ask(prompt).tokens
    assert desk.engine.status_counts["cells_used"] <= 512


def test_a_prefix_is_there_after_a_restart(model: Path, tmp_path: Path) -> None:
    prompt = TEXT * 20
    before = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    said = before.ask(prompt + "one")
    before.engine.flush_to_disk()
    after = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    again = after.ask(prompt + "two")
    assert said.timings["cache_n"] == 0
    assert again.timings["cache_n"] >= len(after.tokens(prompt)) - 2
    assert again.tokens == Desk(model).ask(prompt + "two").tokens
    other = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "another model"))
    assert other.ask(prompt + "two").timings["cache_n"] == 0, "cells belong to one model"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_prefix_is_computed_again(model: Path, tmp_path: Path, damage: str) -> None:
    prompt = TEXT * 20
    before = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    before.ask(prompt)
    before.engine.flush_to_disk()
    (file,) = tmp_path.glob("*.kv")
    after = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[-100] ^= 255
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    again = after.ask(prompt)
    assert again.timings["cache_n"] == 0
    assert again.tokens == Desk(model).ask(prompt).tokens
    assert not file.exists() or file.stat().st_size == len(data)


def test_the_disk_keeps_to_its_limit_and_forgets_the_oldest(model: Path, tmp_path: Path) -> None:
    measure = Desk(model, disk=DiskKVCache(tmp_path / "x", 1 << 30, "a"))
    measure.ask("0" * 300)
    measure.engine.flush_to_disk()
    size = next((tmp_path / "x").glob("*.kv")).stat().st_size
    disk = DiskKVCache(tmp_path / "y", int(3.5 * size), "a")
    desk = Desk(model, disk=disk)
    for i in range(6):
        disk._budget = float(10 * size)  # the other limit is not what this is about
        desk.ask(str(i) * 300)
        desk.engine.flush_to_disk()
        files = list((tmp_path / "y").glob("*.kv"))
        assert sum(f.stat().st_size for f in files) <= 3.5 * size
    fresh = DiskKVCache(tmp_path / "y", int(3.5 * size), "a")
    found = [fresh.longest_prefix(desk.tokens(str(i) * 300), (), 0) is not None for i in range(6)]
    assert found == [False, False, False, True, True, True]


def test_no_more_is_written_in_six_hours_than_the_limit(model: Path, tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 250_000, "a")
    desk = Desk(model, disk=disk)
    for i in range(12):
        desk.ask(chr(65 + i) * 300)
        desk.engine.flush_to_disk()
    written = sum(1 for kept in disk._kept)
    assert 1 <= written <= 3
    disk._budget_at -= 6 * 3600
    desk.ask("z" * 300)
    desk.engine.flush_to_disk()
    assert disk.longest_prefix(desk.tokens("z" * 300), (), 0) is not None


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_cells_are_counted_once_however_sequences_share_them(data: st.DataObject) -> None:
    """Against a model that knows for each sequence which cells it refers to."""
    residents = SlotPool(8)
    cells: dict[Any, set[tuple[int, int]]] = {}
    fresh = 0
    for _ in range(data.draw(st.integers(1, 40))):
        here = list(residents)
        choices = ["add"] * (not residents.is_full) + ["grow", "drop", "busy"] * bool(here)
        match data.draw(st.sampled_from(choices)):
            case "add":
                source = data.draw(st.sampled_from([None, *here]))
                length = data.draw(st.integers(0, source.num_cells)) if source else 0
                made = residents.take_slot([], ())
                made.num_cells = length
                if source is not None and length:
                    made.source, made.num_shared_cells = source, length
                cells[made] = {c for c in cells.get(source, set()) if c[0] < length}
            case "grow":
                one = data.draw(st.sampled_from(here))
                for _ in range(data.draw(st.integers(1, 5))):
                    cells[one].add((one.num_cells, fresh := fresh + 1))
                    one.num_cells += 1
            case "drop":
                one = data.draw(st.sampled_from(here))
                residents.free_slot(one)
                del cells[one]
            case "busy":
                one = data.draw(st.sampled_from(here))
                one.busy = not one.busy
        assert residents.used_cells == len(set().union(*cells.values()))
        assert residents.pinned_cells == len(set().union(*(cells[r] for r in residents if r.busy)))
