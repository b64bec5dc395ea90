"""What a model takes, and what fits: `pytest tests/test_serve_hardware_memory.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rig.errors import RigError, WrongUse
from rig.model import gguf as model_gguf
from serve.config import EngineConfig
from serve.hardware import machine, memory
from support.gguf_files import write_shaped

GIB = 2**30

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
    path = write_shaped(
        tmp_path / "m.gguf", layers=6, width=512, ff=2048, heads=8, kv=4, vocab=20000
    )
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
