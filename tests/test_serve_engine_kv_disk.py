"""Files of cells: their key, their limits, their borders: `pytest tests/test_serve_engine_kv_disk.py`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve.engine import kv_disk
from serve.engine.kv_disk import DiskKVCache

LARGE = 1 << 20
OWN = ((1, 0.5),)


def cells(size: int = 500, fill: int = 7) -> NDArray[np.uint8]:
    return np.full(size, fill, np.uint8)


def span(first: int, length: int) -> list[int]:
    return list(range(first, first + length))


def keep(disk: DiskKVCache, tokens: list[int], adapters: Any = (), size: int = 500) -> None:
    disk.write_file(tokens, adapters, cells(size))
    disk.wait_for_writer()


def found(disk: DiskKVCache, tokens: list[int], adapters: Any = (), more_than: int = 0) -> int:
    """How many cells the disk has for a prompt; 0 for none worth loading."""
    kept = disk.longest_prefix(tokens, adapters, more_than)
    return kept.num_common_tokens if kept is not None else 0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(kv_disk, "time", made)
    return made


def test_the_key_keeps_models_and_adapters_apart(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "model A")
    prompt = [*span(0, 300), 1]
    keep(disk, span(0, 300), OWN)
    assert found(disk, prompt, OWN) == 300
    for other in ((), ((1, 1.0),), ((0, 0.5),)):
        assert found(disk, prompt, other) == 0
    assert found(DiskKVCache(tmp_path, LARGE, "model A"), prompt, OWN) == 300, "after a restart"
    assert found(DiskKVCache(tmp_path, LARGE, "model B"), prompt, OWN) == 0


def test_two_models_keep_a_file_each_for_one_prompt(tmp_path: Path) -> None:
    for family in ("model A", "model B", "model A"):
        keep(DiskKVCache(tmp_path, LARGE, family), span(0, 300))
    assert len(list(tmp_path.glob("*.kv"))) == 2


def test_cells_of_another_model_under_this_ones_name_are_not_read(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "model A")
    keep(disk, span(0, 300))
    kept = disk.longest_prefix([*span(0, 300), 1], (), 0)
    assert kept is not None
    other = DiskKVCache(tmp_path / "other", LARGE, "model B")
    keep(other, span(0, 300))
    (stranger,) = (tmp_path / "other").glob("*.kv")
    kept.path.write_bytes(stranger.read_bytes())
    assert disk.read_cells(kept) is None
    assert not kept.path.exists()
    assert found(disk, [*span(0, 300), 1]) == 0, "it is forgotten too"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path / "new" / "folder", LARGE, "a")
    keep(disk, span(0, 300))
    keep(disk, span(5000, 300))
    kept = disk.longest_prefix([*span(0, 300), 1], (), 0)
    assert kept is not None
    assert kept.num_cells == 300
    read = disk.read_cells(kept)
    assert read is not None
    assert read.tobytes() == cells().tobytes()
    disk.delete_file(kept)
    assert found(disk, [*span(0, 300), 1]) == 0
    assert found(disk, [*span(5000, 300), 1]) == 300, "the others stay"


def test_what_somebody_wrote_to_the_model_is_for_nobody_else(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path / "kv", LARGE, "a")
    keep(disk, span(0, 300))
    (path,) = (tmp_path / "kv").glob("*.kv")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["magic", "short", "empty"])
def test_a_file_of_another_kind_is_not_listed(tmp_path: Path, damage: str) -> None:
    keep(DiskKVCache(tmp_path, LARGE, "a"), span(0, 300))
    (path,) = tmp_path.glob("*.kv")
    data = path.read_bytes()
    head = kv_disk.HEAD.size
    spoilt = {"magic": b"rigkv\x02" + data[6:], "short": data[: head + 4 * 299], "empty": b""}
    path.write_bytes(spoilt[damage])
    assert found(DiskKVCache(tmp_path, LARGE, "a"), [*span(0, 300), 1]) == 0


def test_the_longest_of_several_is_taken_and_one_token_left(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    keep(disk, span(0, 200))
    keep(disk, [*span(0, 300), 9, 9, 9])
    keep(disk, span(0, 100))
    assert found(disk, span(0, 500)) == 300
    assert found(disk, span(0, 300)) == 299
    assert found(disk, span(0, 250)) == 249


def test_64_tokens_more_than_there_are_is_worth_loading(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    keep(disk, span(0, 300))
    assert found(disk, span(0, 500), more_than=236) == 300
    assert found(disk, span(0, 500), more_than=237) == 0


def test_a_prompt_is_noted_from_256_tokens_on_and_2048_of_it_are_kept(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    disk.note_prompt(span(0, 255), ())
    assert disk.pop_pending() is None
    disk.note_prompt(span(0, 256), OWN)
    assert disk.pop_pending() == (span(0, 256), OWN)
    disk.note_prompt(span(0, 5000), ())
    assert disk.pop_pending() == (span(0, 2048), ())


@pytest.mark.parametrize(("own", "noted"), [(350, True), (349, False)])
def test_a_prompt_of_which_half_is_on_disk_is_not_kept_again(
    tmp_path: Path, own: int, noted: bool
) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    keep(disk, span(0, 700 - own))
    disk.note_prompt([*span(0, 700 - own), *span(9000, own)], ())
    assert (disk.pop_pending() is not None) == noted
    disk.note_prompt([*span(0, 700 - own), *span(9000, own)], OWN)
    assert disk.pop_pending() is not None, "other adapters have nothing there"


def test_what_waits_to_be_written_counts_as_there_for_its_adapters(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    disk.note_prompt(span(0, 300), ())
    disk.note_prompt(span(0, 310), ())
    disk.note_prompt(span(0, 300), OWN)
    assert [disk.pop_pending() for _ in range(3)] == [
        (span(0, 300), ()),
        (span(0, 300), OWN),
        None,
    ]


def test_a_prefix_is_written_when_it_has_waited(tmp_path: Path, clock: Clock) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    disk.note_prompt(span(0, 300), ())
    clock.now += 4.9
    assert disk.pop_pending(older_than=5.0) is None
    clock.now += 0.1
    assert disk.pop_pending(older_than=5.0) is not None


def test_a_file_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    size = kv_disk.HEAD.size + 4 * 300 + 500
    keep(DiskKVCache(tmp_path / "small", size - 1, "a"), span(0, 300))
    assert not list((tmp_path / "small").glob("*.kv"))
    keep(DiskKVCache(tmp_path / "large", size, "a"), span(0, 300))
    (path,) = (tmp_path / "large").glob("*.kv")
    assert path.stat().st_size == size


def test_the_limit_is_spent_and_comes_back_in_six_hours(tmp_path: Path, clock: Clock) -> None:
    size = kv_disk.HEAD.size + 4 * 300 + 500
    disk = DiskKVCache(tmp_path, 2 * size, "a")
    said = []
    for first, hours in ((0, 0.0), (1000, 0.0), (2000, 0.0), (3000, 2.9), (4000, 0.2), (5000, 0.1)):
        clock.now += 3600 * hours
        keep(disk, span(first, 300))
        said.append(found(disk, [*span(first, 300), 1]) > 0)
    assert said == [True, True, False, False, True, False]
    clock.now += 1000 * 3600
    for first in (6000, 7000, 8000):
        keep(disk, span(first, 300))
    assert found(disk, [*span(8000, 300), 1]) == 0, "what was not used does not add up"


def test_a_file_used_last_outlives_one_written_later(tmp_path: Path) -> None:
    size = kv_disk.HEAD.size + 4 * 300 + 500
    disk = DiskKVCache(tmp_path, 2 * size, "a")
    for at, first in enumerate((0, 1000)):
        keep(disk, span(first, 300))
        kept = disk.longest_prefix([*span(first, 300), 1], (), 0)
        assert kept is not None
        os.utime(kept.path, (at + 1, at + 1))
    oldest = disk.longest_prefix([*span(0, 300), 1], (), 0)
    assert oldest is not None
    assert disk.read_cells(oldest) is not None
    disk._budget = float(size)
    keep(disk, span(2000, 300))
    assert [found(disk, [*span(first, 300), 1]) for first in (0, 1000, 2000)] == [300, 0, 300]
    assert len(list(tmp_path.glob("*.kv"))) == 2


def test_who_writes_says_when_it_is_done_and_a_full_disk_is_no_reason_to_stop(
    tmp_path: Path,
) -> None:
    disk = DiskKVCache(tmp_path / "kv", LARGE, "a")
    disk.wait_for_writer()
    keep(disk, span(0, 300))  # nobody listens
    woken: list[str] = []
    disk.wake = lambda: woken.append("now")
    keep(disk, span(1000, 300))
    assert woken == ["now"]
    for path in (tmp_path / "kv").iterdir():
        path.unlink()
    (tmp_path / "kv").rmdir()
    (tmp_path / "kv").write_text("in the way", "utf-8")
    keep(disk, span(2000, 300))
    assert woken == ["now", "now"]
    assert found(disk, [*span(2000, 300), 1]) == 0
    (tmp_path / "kv").unlink()
    keep(disk, span(3000, 300))
    assert found(disk, [*span(3000, 300), 1]) == 0, "it is left alone for a while"


def test_the_same_prefix_is_one_file_and_one_entry(tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, LARGE, "a")
    keep(disk, span(0, 300))
    keep(disk, span(0, 300), size=600)
    kept = disk.longest_prefix([*span(0, 300), 1], (), 0)
    assert kept is not None
    read = disk.read_cells(kept)
    assert read is not None
    assert len(read) == 600
    disk.delete_file(kept)
    assert found(disk, [*span(0, 300), 1]) == 0
