"""What a GGUF file may claim, and what reading it then costs: `pytest tests/test_rig_model_gguf.py`."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rig.errors import RigError
from rig.model.gguf import KEPT, GGUFHeader, is_gguf, read_header

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(path: Path, fill: Callable[[gguf.GGUFWriter], Any] = lambda writer: None) -> Path:
    """A file of two tensors; `fill` adds keys."""
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.add_tensor("first", np.ones(64, np.float16))
    writer.add_tensor("second", WEIGHTS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_tensor_is_found_where_the_header_says(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", lambda writer: writer.add_custom_alignment(64))
    found = {t.name: t for t in read_header(path).tensors}
    second = found["second"]
    assert (found["first"].shape, second.shape, second.type) == ((64,), (3, 4), "F32")
    assert second.offset % 64 == 0
    raw = path.read_bytes()[second.offset : second.offset + second.bytes]
    assert (np.frombuffer(raw, np.float32).reshape(second.shape) == WEIGHTS).all()


def test_lists_come_whole_where_they_are_asked_for(tmp_path: Path) -> None:
    words, numbers = [f"w{n}" for n in range(KEPT + 1)], list(range(KEPT + 1))

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_array("words", words)
        writer.add_array("numbers", numbers)
        writer.add_array("few", numbers[:KEPT])

    path = write(tmp_path / "m.gguf", fill)
    counted, whole = read_header(path).metadata, read_header(path, lists=True).metadata
    assert (counted["words"], counted["numbers"], counted["few"]) == (
        KEPT + 1,
        KEPT + 1,
        numbers[:KEPT],
    )
    assert (whole["words"], whole["numbers"]) == (words, numbers)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (4, 4, "version"),
        (8, 2**16 + 1, "65,537 tensors"),
        (16, 2**14 + 1, "16,385 keys"),
        (24, 2**26 + 1, "67,108,865 bytes of text"),
        (24, 2**26, "it ends too early"),
    ],
)
def test_a_count_beyond_any_model_is_refused_at_once(
    tmp_path: Path, place: int, value: int, told: str
) -> None:
    path = write(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I" if place == 4 else "<Q", data, place, value)
    path.write_bytes(data)
    with pytest.raises(RigError, match=rf"m\.gguf is a damaged GGUF \(.*{told}.*\): copy or pull"):
        read_header(path)


@pytest.mark.parametrize(
    "fill",
    [
        lambda writer: writer.add_uint32("general.alignment", 0),
        lambda writer: writer.add_string("general.alignment", "wide"),
        lambda writer: writer.add_array("general.alignment", [32]),
        lambda writer: writer.add_string("split.count", "two"),
        lambda writer: writer.add_uint64("split.count", 2**40),
        lambda writer: writer.add_array("split.count", [2, 2]),
    ],
    ids=[
        "alignment 0",
        "alignment text",
        "alignment list",
        "split text",
        "split many",
        "split list",
    ],
)
def test_a_key_of_the_wrong_kind_is_damage_and_no_traceback(
    tmp_path: Path, fill: Callable[[gguf.GGUFWriter], None]
) -> None:
    with pytest.raises(RigError, match=r"m\.gguf is a damaged GGUF"):
        read_header(write(tmp_path / "m.gguf", fill))


@pytest.mark.parametrize("value", ["many", -1, 2**31, True, [4096], 4096.0])
def test_a_size_that_is_none_is_refused_when_it_is_asked_for(value: object) -> None:
    said = {"general.architecture": "llama", "llama.context_length": value}
    header = GGUFHeader(Path("m.gguf"), said, (), ())
    with pytest.raises(
        RigError, match=r"m\.gguf is a damaged GGUF .llama\.context_length is no size"
    ):
        _ = header.context_length
    assert header.arch_number("block_count", 7) == 7


def test_missing_parts_are_named_and_not_all_of_them(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 40)

    path = write(tmp_path / "big-00001-of-00040.gguf", fill)
    with pytest.raises(RigError, match=r"missing: big-00002-of-00040.*big-00004.* and 36 more\.$"):
        read_header(path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf")
    assert is_gguf(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RigError, match=r"m\.gguf can't be read: Permission denied\.$"):
        read_header(path)
