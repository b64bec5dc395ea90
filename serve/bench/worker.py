"""Measures a model in a process of its own: `python -P -m serve.bench.worker PLAN`, JSON lines out.

A CPU that llama.cpp was not built for kills this process and not the command that started it. Raw
`llama_decode` like llama-bench, without HTTP and sampling: what is compared here are settings, not servers.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp as lib

from serve.engine.llama import model_params

CACHE = {"f16": 1, "q8_0": 8}
SECONDS = 2.0
"""About how long one measurement takes; slow boxes read fewer tokens."""


def measure_bandwidth(threads: int, size: int) -> float:
    """Bytes per second that `threads` read from memory: the C library looks for a byte that isn't there."""
    libc = ctypes.CDLL(None) if os.name != "nt" else ctypes.CDLL("msvcrt")
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    area = mmap.mmap(-1, size)
    view = ctypes.c_char.from_buffer(area)
    start, part = ctypes.addressof(view), size // threads
    ctypes.memset(start, 1, size)  # untouched pages are all the same page of zeros
    best = 0.0
    for _ in range(8):
        readers = [
            threading.Thread(target=libc.memchr, args=(start + n * part, 0, part))
            for n in range(threads)
        ]
        begun = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * part / (time.perf_counter() - begun))
    del view
    area.close()
    return best


class BenchModel:
    """One loaded model; each measurement takes a context of its own."""

    def __init__(self, path: str, tokens: int) -> None:
        begun = time.perf_counter()
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(path.encode(), model_params())
        if not model:
            raise SystemExit(f"{path} can't be loaded")
        self.model = model
        self.load_seconds = time.perf_counter() - begun
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.tokens = tokens
        """Prompt tokens per measurement."""
        self.steps = 32
        """Tokens written per measurement."""

    def fit_to(self, threads: int) -> None:
        """Choose how much to read and write, so that a measurement takes `SECONDS`."""
        with self.new_context(threads=threads) as context:
            context.read_prompt(32)
            read = self.time_action(lambda: context.read_prompt(32)) / 32
            write = self.time_action(lambda: context.write_tokens(2)) / 2
        self.tokens = max(32, min(self.tokens, int(SECONDS / read) // 32 * 32))
        self.steps = max(4, min(64, int(SECONDS / write)))

    def new_context(self, **settings: Any) -> BenchContext:
        """A context with `threads`, `batch`, `cache`, `sequences`."""
        return BenchContext(self, **settings)

    def time_action(self, action: Callable[[], object]) -> float:
        """Seconds that `action` takes."""
        begun = time.perf_counter()
        action()
        return time.perf_counter() - begun


class BenchContext:
    """A llama.cpp context and one batch; token ids are arbitrary, speed does not depend on them."""

    def __init__(
        self,
        bench: BenchModel,
        *,
        threads: int,
        batch: int = 512,
        cache: str = "f16",
        sequences: int = 1,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = -(-(bench.tokens + 64 * sequences + 256) // 256) * 256
        params.n_batch, params.n_ubatch, params.n_seq_max = max(batch, sequences), batch, sequences
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = CACHE[cache]
        params.flash_attn_type, params.kv_unified, params.no_perf = 1, True, True
        self.raw = lib.llama_init_from_model(bench.model, params)
        if not self.raw:
            raise SystemExit("there is no memory for a context")
        self.bench, self.size = bench, params.n_batch
        self.batch = lib.llama_batch_init(params.n_batch, 0, 1)
        self.at = [0] * sequences

    def __enter__(self) -> BenchContext:
        return self

    def __exit__(self, *_: object) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.raw)

    def read_prompt(self, tokens: int) -> None:
        """Read a prompt of `tokens` into sequence 0, from the start."""
        self.truncate_sequence(0)
        while self.at[0] < tokens:
            self.decode_batch([(0, min(self.size, tokens - self.at[0]))])

    def write_tokens(self, steps: int) -> None:
        """Write one token after the other in every sequence."""
        for _ in range(steps):
            self.decode_batch([(sequence, 1) for sequence in range(len(self.at))])

    def decode_batch(self, work: list[tuple[int, int]]) -> None:
        """One step: (sequence, number of tokens) each, the last token of each with logits."""
        n = 0
        for sequence, count in work:
            for k in range(count):
                self.batch.token[n] = 100 + (31 * n + self.at[sequence]) % (
                    self.bench.vocab_size - 100
                )
                self.batch.pos[n] = self.at[sequence]
                self.batch.n_seq_id[n] = 1
                self.batch.seq_id[n][0] = sequence
                self.batch.logits[n] = k == count - 1
                self.at[sequence] += 1
                n += 1
        self.batch.n_tokens = n
        if lib.llama_decode(self.raw, self.batch):
            raise SystemExit("llama.cpp could not decode a batch")
        lib.llama_synchronize(self.raw)

    def truncate_sequence(self, sequence: int, keep: int = 0) -> None:
        """Keep only the first `keep` tokens of a sequence."""
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.raw), sequence, keep, -1)
        self.at[sequence] = keep

    def measure_speeds(self) -> tuple[float, float]:
        """Tokens per second read, and written (all sequences together)."""
        bench = self.bench
        read = bench.tokens / bench.time_action(lambda: self.read_prompt(bench.tokens))
        return read, bench.steps * len(self.at) / bench.time_action(
            lambda: self.write_tokens(bench.steps)
        )


def run_measurements(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every finding of `plan` as it is made; rounds are interleaved, so that a busy moment hits all alike."""
    threads: int = plan["threads"]
    yield {
        "bandwidth": measure_bandwidth(threads, plan["area"]),
        "bandwidth_one": measure_bandwidth(1, plan["area"]),
    }
    bench = BenchModel(plan["path"], plan["tokens"])
    bench.fit_to(threads)
    yield {"load_seconds": bench.load_seconds, "tokens": bench.tokens, "steps": bench.steps}
    axes: list[tuple[str, list[Any]]] = [
        ("threads", plan["try_threads"]),
        ("batch", plan["try_batch"]),
        ("sequences", plan["try_sequences"]),
        ("cache", plan["try_cache"]),
    ]
    for axis, values in axes:
        found: dict[Any, list[tuple[float, float]]] = {value: [] for value in values}
        for _ in range(plan["rounds"]):
            for value in values:
                settings = {"threads": threads, "batch": plan["batch"], axis: value}
                with bench.new_context(**settings) as context:
                    context.decode_batch(
                        [(sequence, 1) for sequence in range(len(context.at))]
                    )  # warm
                    context.truncate_sequence(0)
                    found[value].append(context.measure_speeds())
        for value, pairs in found.items():
            read, write = (statistics.median(column) for column in zip(*pairs, strict=True))
            row = {"axis": axis, "value": value, "prefill": read, "decode": write}
            yield row | {"rounds": [{"prefill": r, "decode": w} for r, w in pairs]}
    yield {"prefix": measure_prefix(bench, threads, plan["batch"])}


def measure_prefix(bench: BenchModel, threads: int, batch: int) -> dict[str, Any]:
    """Seconds to the first token of a prompt: cold, with its start in memory, and with it on disk."""
    new = 16
    with (
        bench.new_context(threads=threads, batch=batch) as context,
        tempfile.TemporaryDirectory() as folder,
    ):
        path = Path(folder) / "prefix"
        cold = bench.time_action(lambda: context.read_prompt(bench.tokens))
        kept = bench.tokens - new
        context.truncate_sequence(0, kept)
        ids = (lib.llama_token * kept)(*range(kept))
        size = lib.llama_state_seq_save_file(context.raw, str(path).encode(), 0, ids, kept)
        warm = bench.time_action(lambda: context.decode_batch([(0, new)]))
        context.truncate_sequence(0)

        def from_disk() -> None:
            out, count = (lib.llama_token * kept)(), ctypes.c_size_t()
            lib.llama_state_seq_load_file(
                context.raw, str(path).encode(), 0, out, kept, ctypes.byref(count)
            )
            context.at[0] = count.value
            context.decode_batch([(0, new)])

        disk = bench.time_action(from_disk)
        assert context.at[0] == bench.tokens
    return {"tokens": bench.tokens, "cold": cold, "memory": warm, "disk": disk, "bytes": size}


def main() -> None:
    """Run the plan on the command line."""
    for finding in run_measurements(json.loads(sys.argv[1])):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main()
