"""What the box gives and what a model takes: `pytest tests/test_serve_box.py`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rig.errors import RigError, WrongUse
from rig.model import gguf as model_gguf
from serve.config import EngineConfig
from serve.hardware import machine, memory

GIB = 2**30


def huge_pages() -> bool:
    """Whether the C library can ask for huge pages and the kernel gives them."""
    name, version = platform.libc_ver()
    says = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    new = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return new and says.exists() and "[never]" not in says.read_text()


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """A box that we do not own, as the files its kernel would show."""
    for name, text in {"proc/meminfo": meminfo(16, 12), **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", "utf-8")
    return root


def meminfo(total: float, free: float) -> str:
    return (
        f"MemTotal: {int(total * 2**20)} kB\nMemFree: 1000 kB\nMemAvailable: {int(free * 2**20)} kB"
    )


def topology(cores: list[str]) -> dict[str, str]:
    """`cores` as the kernel writes the logical CPUs of each."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": core
        for core in cores
        for cpu in machine.parse_cpu_list(core)
    }


ALL = frozenset(range(64))
V2 = {"proc/self/cgroup": "0::/user.slice/rig.service"}
RIG = "sys/fs/cgroup/user.slice/rig.service"
PAIRS = [f"{2 * n}-{2 * n + 1}" for n in range(4)]  # four cores with two threads each

BOXES: list[tuple[str, dict[str, str], frozenset[int], int]] = [
    ("N100: four small cores and no others", topology(["0", "1", "2", "3"]), ALL, 4),
    ("NUC11: four cores, eight threads", topology(PAIRS), ALL, 4),
    (
        "threads numbered apart, as on desktops",
        topology([f"{n},{n + 4}" for n in range(4)]),
        ALL,
        4,
    ),
    (
        "i7-12700: eight fast cores with two threads, four slow ones",
        topology([f"{2 * n}-{2 * n + 1}" for n in range(8)] + [str(n) for n in range(16, 20)])
        | {"sys/devices/cpu_core/cpus": "0-15", "sys/devices/cpu_atom/cpus": "16-19"},
        ALL,
        8,
    ),
    (
        "pinned to the slow cores: those are what there is",
        topology([f"{2 * n}-{2 * n + 1}" for n in range(2)] + ["4", "5", "6"])
        | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-6"},
        frozenset({4, 5}),
        2,
    ),
    (
        "RK3588: four A55 and four A76, by capacity",
        topology([str(n) for n in range(8)])
        | {
            f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "530" if n < 4 else "1024"
            for n in range(8)
        },
        ALL,
        4,
    ),
    (
        "two fast kinds on one phone chip: both count, the slow kind does not",
        topology([str(n) for n in range(8)])
        | {
            f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "340"
            if n < 4
            else "870"
            if n < 7
            else "1024"
            for n in range(8)
        },
        ALL,
        4,
    ),
    ("taskset to both threads of one core is one core", topology(PAIRS), frozenset({0, 1}), 1),
    ("taskset to one thread of two cores is two cores", topology(PAIRS), frozenset({0, 2}), 2),
    ("no topology to read, as in some containers", {}, frozenset({0, 1, 2}), 3),
    ("quota of two", topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "200000 100000"}, ALL, 2),
    (
        "quota of one and a half: two threads would be throttled and wait for each other",
        topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "150000 100000"},
        ALL,
        1,
    ),
    (
        "quota of a half is still one",
        topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "50000 100000"},
        ALL,
        1,
    ),
    ("no quota", topology(PAIRS) | V2 | {f"{RIG}/cpu.max": "max 100000"}, ALL, 4),
    (
        "a quota further up holds too",
        topology(PAIRS)
        | V2
        | {f"{RIG}/cpu.max": "max 100000", "sys/fs/cgroup/user.slice/cpu.max": "300000 100000"},
        ALL,
        3,
    ),
    (
        "version 1, in a container that sees the host's path",
        topology(PAIRS)
        | {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        ALL,
        2,
    ),
    (
        "version 1 without a quota",
        topology(PAIRS)
        | {"proc/self/cgroup": "4:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"},
        ALL,
        4,
    ),
]


@pytest.mark.parametrize(
    ("files", "affinity", "threads"), [b[1:] for b in BOXES], ids=[b[0] for b in BOXES]
)
def test_threads_are_the_performance_cores_that_are_really_ours(
    tmp_path: Path, files: dict[str, str], affinity: frozenset[int], threads: int
) -> None:
    assert machine.inspect_machine(lay_out(tmp_path, files), affinity).threads == threads


MEMORY: list[tuple[str, dict[str, str], float, float]] = [
    ("no control group", {}, 16, 12),
    ("no limit", V2 | {f"{RIG}/memory.max": "max", f"{RIG}/memory.current": "5"}, 16, 12),
    (
        "a limit: what is used counts, page cache that can go does not",
        V2
        | {
            f"{RIG}/memory.max": str(4 * GIB),
            f"{RIG}/memory.current": str(3 * GIB),
            f"{RIG}/memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {2 * GIB}",
        },
        4,
        3,
    ),
    (
        "memory.high slows down before memory.max kills",
        V2
        | {
            f"{RIG}/memory.max": str(8 * GIB),
            f"{RIG}/memory.high": str(6 * GIB),
            f"{RIG}/memory.current": str(GIB),
        },
        6,
        5,
    ),
    (
        "the slice above is tighter",
        V2
        | {
            f"{RIG}/memory.max": str(8 * GIB),
            f"{RIG}/memory.current": str(GIB),
            "sys/fs/cgroup/user.slice/memory.max": str(4 * GIB),
            "sys/fs/cgroup/user.slice/memory.current": str(2 * GIB),
        },
        4,
        2,
    ),
    (
        "a limit above what the machine has free changes nothing",
        V2 | {f"{RIG}/memory.max": str(64 * GIB), f"{RIG}/memory.current": "0"},
        16,
        12,
    ),
    (
        "version 1",
        {
            "proc/self/cgroup": "5:memory:/lxc/box",
            "sys/fs/cgroup/memory/lxc/box/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/lxc/box/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(9 * GIB),
        },
        2,
        1,
    ),
    (
        "already over the limit: nothing, not less than nothing",
        V2 | {f"{RIG}/memory.max": str(GIB), f"{RIG}/memory.current": str(2 * GIB)},
        1,
        0,
    ),
]


@pytest.mark.parametrize(
    ("files", "memory", "free"), [m[1:] for m in MEMORY], ids=[m[0] for m in MEMORY]
)
def test_free_memory_is_what_the_kernel_will_really_give(
    tmp_path: Path, files: dict[str, str], memory: float, free: float
) -> None:
    found = machine.inspect_machine(lay_out(tmp_path, files), frozenset({0}))
    assert (found.memory, found.free) == (memory * GIB, free * GIB)


def test_this_very_box_is_looked_at() -> None:
    found = machine.inspect_machine()
    assert 1 <= found.threads <= (os.cpu_count() or 1)
    assert 0 < found.free <= found.memory
    assert str(found.threads) in found.describe_machine()


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),  # somebody has decided
    ],
)
def test_a_process_with_a_model_asks_for_huge_pages(
    monkeypatch: pytest.MonkeyPatch, before: str | None, expected: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert machine.model_environment() == {**os.environ, "GLIBC_TUNABLES": expected}


@pytest.mark.skipif(not huge_pages(), reason="needs glibc 2.35 and a kernel that gives huge pages")
def test_the_kernel_gives_them() -> None:
    """64 MiB taken and filled as llama.cpp takes its weights: how much of it lies in huge pages."""
    probe = (
        "import ctypes; n = 64 << 20; at = ctypes.c_void_p(); libc = ctypes.CDLL(None); "
        "libc.posix_memalign(ctypes.byref(at), 64, n); ctypes.memset(at, 1, n); "
        "print(open('/proc/self/smaps_rollup').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=machine.model_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = (row for row in done.stdout.splitlines() if row.startswith("AnonHugePages"))
    assert int(row.split()[1]) >= 32 << 10, row


def test_a_narrower_affinity_is_seen_by_a_real_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = "from serve.hardware import machine; print(machine.inspect_machine().threads)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"


# ---------------------------------------------------------------------------------------------
# headers


def model(path: Path, **shape: Any) -> Path:
    """A llama of random weights without a vocabulary: real enough for llama.cpp to load and run."""
    layers, width, ff = shape.get("layers", 2), shape.get("width", 256), shape.get("ff", 512)
    heads, kv, vocab = shape.get("heads", 4), shape.get("kv", 2), shape.get("vocab", 1000)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(shape.get("trained", 8192))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocab)
    writer.add_file_type(1)
    writer.add_string("rig.reasoning_open", "<reasoning>")
    writer.add_array("general.tags", ["a", "b"])
    if "tokens" in shape:
        writer.add_array("tokenizer.ggml.tokens", shape["tokens"])
    else:
        writer.add_string("tokenizer.ggml.model", "no_vocab")
    side = width // heads
    tensors = {"token_embd": (vocab, width), "output": (vocab, width), "output_norm": (width,)}
    for n in range(layers):
        tensors |= {
            f"blk.{n}.attn_norm": (width,), f"blk.{n}.ffn_norm": (width,),
            f"blk.{n}.attn_q": (width, width), f"blk.{n}.attn_output": (width, width),
            f"blk.{n}.attn_k": (kv * side, width), f"blk.{n}.attn_v": (kv * side, width),
            f"blk.{n}.ffn_gate": (ff, width), f"blk.{n}.ffn_up": (ff, width),
            f"blk.{n}.ffn_down": (width, ff),
        }  # fmt: skip
    for name, sides in tensors.items():
        kind = np.float32 if len(sides) == 1 else np.float16
        writer.add_tensor(name + ".weight", np.full(sides, 0.01, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model") / "small.gguf")


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
    found = model_gguf.read_header(model(tmp_path / "m.gguf", tokens=tokens, vocab=len(tokens)))
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


# ---------------------------------------------------------------------------------------------
# what fits

LLAMA_8B = model_gguf.GGUFHeader(
    Path("llama-3.1-8b-q4_k_m.gguf"),
    {
        "general.architecture": "llama", "llama.block_count": 32, "llama.context_length": 131072,
        "llama.embedding_length": 4096, "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
        "tokenizer.ggml.tokens": 128256,
    },
    (),
    (),
)  # fmt: skip


class Weighing(model_gguf.GGUFHeader):
    """A header whose file we do not have: Llama 3.1 8B Q4_K_M weighs 4.92 GB."""

    @property
    def total_bytes(self) -> int:
        return 4_920_000_000


EIGHT = Weighing(LLAMA_8B.path, LLAMA_8B.metadata, (), ())


def a_box(free: float, memory: float = 16) -> machine.Machine:
    return machine.Machine(4, 4, 4, None, int(memory * GIB), int(free * GIB))


def test_llama_8b_keeps_128_kib_for_each_token() -> None:
    assert memory.kv_cache_bytes(EIGHT, 1024) == 1024 * 128 * 1024
    assert memory.kv_cache_bytes(EIGHT, 8192) == GIB
    assert memory.kv_cache_bytes(EIGHT, 131072) == 16 * GIB
    assert memory.kv_cache_bytes(EIGHT, 8192, "q8_0") == GIB * 17 // 32
    assert memory.kv_cache_bytes(EIGHT, 1) == memory.kv_cache_bytes(EIGHT, 256), (
        "llama.cpp pads to 256"
    )


def test_layers_without_attention_keep_nothing() -> None:
    mixed = replace(EIGHT, metadata=EIGHT.metadata | {"llama.attention.head_count_kv": [8, 0] * 16})
    assert memory.kv_cache_bytes(mixed, 8192) == GIB // 2


def test_the_arithmetic_is_llama_cpps_own(tmp_path: Path) -> None:
    probe = """
import ctypes, json, sys, llama_cpp as lib
lines = []
@lib.llama_log_callback
def log(level, text, data):
    lines.append(text.decode())
lib.llama_log_set(log, ctypes.c_void_p(0))
lib.llama_backend_init()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
for n_ctx, micro, kind, flash in json.loads(sys.argv[2]):
    lines.clear()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, micro, micro, 4
    params.kv_unified, params.flash_attn_type, params.type_k, params.type_v = True, flash, kind, kind
    context = lib.llama_init_from_model(model, params)
    print(json.dumps([line for line in lines if "buffer size" in line]))
    lib.llama_free(context)
"""
    path = model(tmp_path / "m.gguf", layers=6, width=512, ff=2048, heads=8, kv=4, vocab=20000)
    cases = [
        (4096, 512, 1, 1),
        (2000, 128, 1, 1),
        (8192, 256, 8, 1),
        (8192, 512, 1, 0),
        (16384, 128, 1, 0),
    ]
    done = subprocess.run(
        [sys.executable, "-c", probe, str(path), json.dumps(cases)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = model_gguf.read_header(path)
    widened = replace(found, metadata=found.metadata | {"tokenizer.ggml.tokens": 20000})
    for (tokens, micro, kind, flash), line in zip(cases, done.stdout.splitlines(), strict=True):
        sizes = dict(
            re.findall(r"CPU (\w+) buffer size = +([\d.]+) MiB", "".join(json.loads(line)))
        )
        ours = memory.kv_cache_bytes(found, tokens, {1: "f16", 8: "q8_0"}[kind]) / 2**20
        assert ours == pytest.approx(float(sizes["KV"]), abs=0.01)
        work = (memory.work_bytes(widened, micro, 0 if flash else tokens) - memory.PROCESS) / 2**20
        assert float(sizes["compute"]) <= work <= 1.25 * float(sizes["compute"])


@pytest.mark.parametrize(
    ("free", "context", "why"),
    [
        (12, 16384, "room enough: the usual size, not the trained 131,072"),
        (8, 10496, "half of what the weights leave"),
        (6.2, 3072, "little is left: half of little"),
        (5.55, 512, "almost nothing is left: the least that is of use"),
    ],
)
def test_a_context_is_chosen_that_leaves_the_box_alive(free: float, context: int, why: str) -> None:
    found = memory.fit_context(EIGHT, a_box(free))
    assert found.context == context, why
    assert found.total_bytes < free * GIB


def test_scores_kept_for_plain_attention_leave_less_room_for_the_context() -> None:
    plain, tiles = (
        memory.fit_context(EIGHT, a_box(8), flash_attn=flash) for flash in (False, True)
    )
    assert plain.context < tiles.context
    assert plain.total_bytes < 8 * GIB
    assert memory.fit_context(EIGHT, a_box(8), 18432).context == 18432
    with pytest.raises(RigError, match=r"Ask for --ctx \d+ or less"):
        memory.fit_context(EIGHT, a_box(8), 18432, flash_attn=False)


def test_what_is_asked_for_is_taken_if_it_fits() -> None:
    assert memory.fit_context(EIGHT, a_box(12), 32768).context == 32768
    assert memory.fit_context(EIGHT, a_box(28, 32), 131072).context == 131072


def test_what_cannot_fit_is_refused_and_told_what_would() -> None:
    with pytest.raises(RigError) as caught:
        memory.fit_context(EIGHT, a_box(8), 65536)
    largest = int(re.search(r"--ctx (\d+) or less", caught.value.message)[1])  # type: ignore[index]
    assert "8.0 GiB are free" in caught.value.message
    assert memory.fit_context(EIGHT, a_box(8), largest).context == largest, "the advice is right"
    with pytest.raises(RigError):
        memory.fit_context(EIGHT, a_box(8), largest + 256)


def test_a_model_too_large_for_the_box_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(RigError, match="smaller quantisation"):
        memory.fit_context(EIGHT, a_box(4))


def test_a_quantised_cache_holds_more() -> None:
    with pytest.raises(RigError, match="q8_0"):
        memory.fit_context(EIGHT, a_box(8), 24576)
    assert memory.fit_context(EIGHT, a_box(8), 24576, cache="q8_0").context == 24576


def test_more_than_the_model_was_trained_on_is_wrong_use() -> None:
    with pytest.raises(WrongUse, match="131072"):
        memory.fit_context(EIGHT, a_box(64, 64), 200_000)


@pytest.mark.parametrize(
    ("free", "context", "parked", "why"),
    [
        (12, 16384, 1024, "half of a large context"),
        (12, 3072, 256, "the least that a long prompt needs"),
        (12, 1024, 128, "all of a small one"),
        (8, 18432, 344, "what is left"),
    ],
)
def test_copies_of_what_rests_are_counted_and_never_in_the_way(
    free: float, context: int, parked: int, why: str
) -> None:
    found = memory.fit_context(EIGHT, a_box(free), context)
    assert found.parked // 2**20 == pytest.approx(parked, abs=40), why
    assert found.total_bytes == found.weights + found.cache + found.work + found.parked < free * GIB
    assert "kept prefixes" in found.describe_memory()


def test_a_step_is_as_large_in_the_command_as_in_the_arithmetic() -> None:
    from serve.cli import serve

    default = next(option.default for option in serve.params if option.name == "batch")
    assert default == memory.BATCH == EngineConfig(model="", ctx=1).batch
