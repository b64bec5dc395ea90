"""What a GGUF header tells, and what is wrong with one: `pytest tests/test_rig_model_gguf_header.py`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rig.errors import RigError
from rig.model import gguf as model_gguf
from serve.hardware.machine import Machine
from serve.hardware.memory import fit_context
from support.gguf_files import write_shaped


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shaped(tmp_path_factory.mktemp("model") / "small.gguf")


def test_a_header_tells_what_the_writer_wrote(small: Path) -> None:
    found = model_gguf.read_header(small)
    assert (found.arch, found.quant_name, found.context_length) == ("llama", "F16", 8192)
    assert found.arch_value("attention.head_count_kv") == 2
    assert found.metadata["general.tags"] == ["a", "b"]
    assert found.reply_format.reasoning_open == "<reasoning>"
    assert {t.name: t.shape for t in found.tensors}["blk.1.ffn_down.weight"] == (256, 512)
    theirs = {t.name: int(t.n_bytes) for t in gguf.GGUFReader(small).tensors}
    assert {t.name: t.bytes for t in found.tensors} == theirs


def test_a_large_vocabulary_is_counted_and_not_built(tmp_path: Path) -> None:
    tokens = [f"token{n}" for n in range(model_gguf.KEPT + 1)]
    found = model_gguf.read_header(
        write_shaped(tmp_path / "m.gguf", tokens=tokens, vocab=len(tokens))
    )
    assert found.metadata["tokenizer.ggml.tokens"] == found.vocab_size == model_gguf.KEPT + 1


def test_every_type_of_gguf_has_its_size() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, (name, block, size) in model_gguf.BLOCKS.items():
        assert theirs[number] == (block, size), name
        assert gguf.GGMLQuantizationType(number).name == name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF"),
        (b"{}", "not a GGUF"),
        (b"PK\x03\x04 a zip file", "not a GGUF"),
        (b"GGUF", "damaged"),
        (b"GGUF\x63\x00\x00\x00" + b"\0" * 64, "damaged"),  # a version from the future
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "damaged"),  # absurd counts
    ],
)
def test_what_is_no_gguf_is_refused_with_a_sentence(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "thing.gguf"
    path.write_bytes(content)
    with pytest.raises(RigError, match=says):
        model_gguf.read_header(path)


def test_a_half_downloaded_file_is_refused_with_the_numbers(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    half = tmp_path / "half.gguf"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RigError, match=f"not all there .{len(whole) // 2:,} of"):
        model_gguf.read_header(half)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="folder"):
        model_gguf.read_header(tmp_path)
    with pytest.raises(RigError, match="no file"):
        model_gguf.read_header(tmp_path / "none.gguf")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    at=st.lists(st.tuples(st.integers(4, 1500), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(4, 3000),
)
def test_a_damaged_header_never_does_worse_than_a_sentence(
    small: Path, tmp_path: Path, at: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(small.read_bytes()[:cut])
    for place, value in at:
        if place < len(data):
            data[place] = value
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(data)
    with pytest.raises(RigError):
        model_gguf.read_header(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llama.block_count", 2**31 - 1, r"2,147,483,647 layers"),
        ("llama.block_count", 2**32 - 1, r"block_count is no size"),
        ("llama.embedding_length", -5, r"embedding_length is no size"),
        ("llama.attention.head_count", "many", r"head_count is no size"),
        ("llama.attention.head_count_kv", [2, -1], r"head_count_kv holds no sizes"),
        ("llama.feed_forward_length", ["x"], r"feed_forward_length holds no sizes"),
        ("llama.context_length", 0.5, r"context_length is no size"),
    ],
)
def test_what_a_file_claims_of_itself_is_held_to_what_a_model_can_be(
    small: Path, key: str, value: object, says: str
) -> None:
    header = model_gguf.read_header(small)
    claims = replace(header, metadata=header.metadata | {key: value})
    with pytest.raises(RigError, match=says):
        fit_context(claims, Machine(4, 4, 4, None, 2**34, 2**34))


def test_a_context_of_two_billion_tokens_is_weighed_at_once(small: Path) -> None:
    header = model_gguf.read_header(small)
    claims = replace(header, metadata=header.metadata | {"llama.context_length": 2**31 - 1})
    box, started = Machine(4, 4, 4, None, 2**34, 2**34), time.process_time()
    assert fit_context(claims, box).context == 16_384
    assert fit_context(claims, box, 2**24, cache="q4_0").context == 2**24
    assert time.process_time() - started < 2


def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for name in ("pipe.gguf", "zero.gguf"):
        with pytest.raises(RigError, match="a pipe or a device"):
            model_gguf.read_header(tmp_path / name)


def test_arrays_of_all_keys_together_are_bounded(tmp_path: Path) -> None:
    """Small numbers take thirty times their bytes once they are Python's."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for n in range(model_gguf.MOST_KEPT // model_gguf.KEPT + 2):
        writer.add_array(f"x.{n}", [True] * model_gguf.KEPT)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = model_gguf.read_header(tmp_path / "m.gguf").metadata
    kept = [value for value in found.values() if isinstance(value, list)]
    assert sum(map(len, kept)) == model_gguf.MOST_KEPT
    assert list(found.values())[-1] == model_gguf.KEPT


def test_a_split_model_is_all_its_parts(small: Path, tmp_path: Path) -> None:
    names = [f"big-{n:05d}-of-00002.gguf" for n in (1, 2)]
    for n, name in enumerate(names):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_uint16("split.no", n)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"part{n}", np.zeros(1024, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    found = model_gguf.read_header(tmp_path / names[0])
    assert [part.name for part in found.parts] == names
    assert found.total_bytes == sum((tmp_path / name).stat().st_size for name in names)
    with pytest.raises(RigError, match="later part"):
        model_gguf.read_header(tmp_path / names[1])
    (tmp_path / names[1]).unlink()
    with pytest.raises(RigError, match="missing: big-00002-of-00002"):
        model_gguf.read_header(tmp_path / names[0])


def test_a_fingerprint_tells_files_apart_by_size_beginning_and_end(tmp_path: Path) -> None:
    base = bytes(3 * 2**20)
    files = {
        "same": base,
        "again": base,
        "longer": base + b"\0",
        "other head": b"x" + base[1:],
        "other end": base[:-1] + b"x",
        "short": b"GGUF",
    }
    found = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        found[name] = model_gguf.fingerprint_file(tmp_path / name)
    assert found["same"] == found["again"]
    assert len(set(found.values())) == len(files) - 1
