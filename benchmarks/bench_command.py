"""Whether `rig bench` tells the truth: its figures beside llama-bench's, turn by turn on the same file.

    python benchmarks/bench_command.py MODEL.gguf --llama-bench PATH/TO/llama-bench [--rounds 5]

Both read 512 tokens and write 32 on an empty context, with the same threads and flash attention on. The
median of the ratios of neighbouring runs counts; the figures themselves move with whatever else runs here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp

READ, WRITTEN = 512, 32
LIBRARIES = str(Path(llama_cpp.__file__).parent / "lib")
"""llama-bench loads the libraries that rig uses, so that both run the same kernels."""


def ours(model: Path, threads: int) -> tuple[float, float]:
    """Tokens per second read and written, as `rig bench` measures them."""
    plan: dict[str, Any] = {
        "path": str(model), "threads": threads, "batch": 512, "tokens": READ, "rounds": 1,
        "area": 2**28, "try_threads": [threads], "try_batch": [], "try_sequences": [], "try_cache": [],
    }  # fmt: skip
    words = [sys.executable, "-P", "-m", "serve.bench.worker", json.dumps(plan)]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as `rig bench` does
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    row = next(row for row in found if row.get("axis") == "threads")
    return row["prefill"], row["decode"]


def theirs(program: Path, model: Path, threads: int) -> tuple[float, float]:
    """The same from llama-bench."""
    options = f"-t {threads} -p {READ} -n {WRITTEN} -fa 1 -r 1 -o json".split()
    environment = {**os.environ, "LD_LIBRARY_PATH": LIBRARIES}
    done = subprocess.run(
        [program, "-m", model, *options],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    rows = json.loads(done.stdout)
    return (
        next(row["avg_ts"] for row in rows if row["n_prompt"]),
        next(row["avg_ts"] for row in rows if row["n_gen"]),
    )


def main() -> None:
    """Run both in turn and print the medians and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    threads: int = given.threads  # not asked of `serve`: beside this file that is a benchmark
    pairs = []
    for n in range(given.rounds):
        runs = {}
        for who in ("rig", "llama.cpp") if n % 2 else ("llama.cpp", "rig"):
            runs[who] = (
                ours(given.model, threads)
                if who == "rig"
                else theirs(given.llama_bench, given.model, threads)
            )
        pairs.append(runs)
        print(json.dumps(runs), file=sys.stderr, flush=True)
    print(f"{given.model.name}, {threads} threads, {given.rounds} pairs")
    for k, what in enumerate(("reads", "writes")):
        a, b = (statistics.median(run[who][k] for run in pairs) for who in ("rig", "llama.cpp"))
        ratio = statistics.median(run["rig"][k] / run["llama.cpp"][k] for run in pairs)
        print(f"{what:<7} rig bench {a:8.1f}  llama-bench {b:8.1f} tokens/s  ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
