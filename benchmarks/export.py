"""How fast and how small the one pass is, beside its rivals, in the same run: `python benchmarks/export.py`.

A random model of Llama 3.2 1B's shape (16 layers, 2048 wide, 128,256 tokens, 1.24 billion weights, BF16)
with a rank-16 LoRA adapter, on two threads. Three contenders make a Q4_K_M file, each in a process of its
own, taking turns:

  rig        `rig export ADAPTER --gguf --no-check`: base and adapter to the finished file
  quantise   llama_model_quantize alone, on a BF16 GGUF that lies ready: the floor, without any merge
  usual      PEFT merge, llama.cpp's converter, llama_model_quantize (once; needs torch, transformers, peft
             and llama.cpp's sources: RIG_LLAMA_CPP=vendor/llama.cpp of llama-cpp-python's source package)

Prints wall time, peak resident memory and bytes of scratch of each, and the ratios. `--sizes` lets rig alone
export models of 4, 8, 16 and 32 layers instead, to show how time and memory grow.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT.parent / "shared/data/models"
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, TOKENS, RANK = 16, 2048, 8192, 32, 8, 128_256, 16
SIZES = (4, 8, LAYERS, 32)
RIG = (sys.executable, "-m", "rig", "export")

QUANTISE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread, p.max_buf_size = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, int(sys.argv[3]), 64 << 20
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))
"""
MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[4]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def main() -> None:
    """Make the model once, let the contenders take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rig-benchmark-export"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of rig and quantise")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--sizes", action="store_true", help="rig alone, on models of four sizes")
    parser.add_argument("--no-usual", action="store_true", help="leave the slow rival out")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.sizes:
        grow(asked.folder, asked.threads, as_json=asked.json)
        return
    work = ready_model(asked.folder, asked.layers)
    model, adapter, ready = work / "model", work / "adapter", work / "ready-BF16.gguf"
    if not ready.is_file():
        quant = ["--quant", "BF16", "--no-check"]
        measure([*RIG, model, "--gguf", *quant, "--out", ready, "--threads", asked.threads])
    found: dict[str, list[dict[str, Any]]] = {"rig": [], "quantise": []}
    for _ in range(asked.rounds):
        found["rig"].append(one_pass(work, asked.threads))
        out = work / "quantise-Q4_K_M.gguf"
        command = [sys.executable, "-c", QUANTISE, ready, out, asked.threads]
        found["quantise"].append(measure(command))
    if not asked.no_usual:
        found["usual"] = [usual(work, model, adapter, asked.threads)]
    report(found, model, as_json=asked.json)


def one_pass(work: Path, threads: int) -> dict[str, Any]:
    """Base and adapter to Q4_K_M by rig."""
    command = [*RIG, work / "adapter", "--gguf", "--quant", "Q4_K_M", "--no-check"]
    return measure([*command, "--out", work / "rig-Q4_K_M.gguf", "--threads", threads])


def grow(folder: Path, threads: int, *, as_json: bool) -> None:
    """The same width in four depths: seconds for each billion weights, and peak memory."""
    works = [ready_model(folder, layers) for layers in SIZES]
    rows = []
    for layers, work in zip(SIZES, works, strict=True):
        run = one_pass(work, threads)
        billions = (work / "model/model.safetensors").stat().st_size / 2e9
        rows.append({"layers": layers, "billions": billions, **run})
        if not as_json:
            print(
                f"{layers:3} layers, {billions:.2f} billion weights: {run['seconds']:6.1f} s, "
                f"{run['seconds'] / billions:.1f} s a billion, peak {run['peak_mib']:.0f} MiB"
            )
    if as_json:
        print(json.dumps(rows))


def ready_model(folder: Path, layers: int) -> Path:
    """The folder that holds the random model of so many layers and its adapter, made when absent."""
    work = folder / f"layers-{layers}"
    if not (work / "adapter/adapter_model.safetensors").is_file():
        build(work / "model", work / "adapter", layers)
    return work


def build(model: Path, adapter: Path, layers: int) -> None:
    """Write the random model and its adapter."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np

    from support import tiny_models, tiny_tokenizers

    model.mkdir(parents=True, exist_ok=True)
    real = TOKENIZER / "Llama-3.2-1B-Instruct"
    if real.is_dir():
        for path in real.iterdir():
            shutil.copy(path, model)
        packed = TOKENIZER / "llama-3.1-tokenizer/tokenizer.json.gz"
        (model / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    else:
        tiny_tokenizers.write_tokenizer(model, "llama")
    config = {
        **tiny_models.FAMILIES["llama"],
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 64,
        "vocab_size": TOKENS, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "rope_theta": 500_000.0, "torch_dtype": "bfloat16",
        "rope_scaling": tiny_models.LLAMA3_ROPE | {"original_max_position_embeddings": 8192, "factor": 32.0},
        "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009],
    }  # fmt: skip
    tiny_models.write_json(model / "config.json", config)
    shapes = tiny_models.shapes(config, "llama", biases=False)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            for _ in range(shape[0] if len(shape) > 1 else 1):
                row = rng.standard_normal(shape[-1], dtype=np.float32) * np.float32(0.02)
                file.write(tiny_models.packed(row + float("norm" in name), "BF16"))
    tiny_models.make_adapter(adapter, model, rank=RANK, alpha=2 * RANK, size=0.02)


def measure(command: list[Any], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command; wall seconds and the peak resident memory of its process, in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | (env or {}),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} failed:\n{said[-2000:]}")
    return {
        "seconds": time.monotonic() - started,
        "cpu": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "scratch": 0,
    }


def usual(work: Path, model: Path, adapter: Path, threads: int) -> dict[str, Any]:
    """Merge with PEFT, convert with llama.cpp's converter, quantise: the way without rig."""
    sources = os.environ.get("RIG_LLAMA_CPP")
    if not sources:
        sys.exit("RIG_LLAMA_CPP names no llama.cpp sources: set it, or give --no-usual.")
    merged, converted = work / "merged", work / "usual-BF16.gguf"
    steps = [measure([sys.executable, "-c", MERGE, model, adapter, merged, threads])]
    for path in model.glob("*token*"):
        shutil.copy(path, merged)
    convert = [sys.executable, Path(sources) / "convert_hf_to_gguf.py", merged, "--outtype", "bf16"]
    paths = {"PYTHONPATH": str(Path(sources) / "gguf-py"), "OMP_NUM_THREADS": str(threads)}
    steps.append(measure([*convert, "--outfile", converted], paths))
    out = work / "usual-Q4_K_M.gguf"
    steps.append(measure([sys.executable, "-c", QUANTISE, converted, out, threads]))
    scratch = sum(p.stat().st_size for p in merged.iterdir()) + converted.stat().st_size
    shutil.rmtree(merged)
    converted.unlink()
    return {
        "seconds": sum(step["seconds"] for step in steps),
        "cpu": sum(step["cpu"] for step in steps),
        "peak_mib": max(step["peak_mib"] for step in steps),
        "scratch": scratch,
        "steps": [round(step["seconds"], 1) for step in steps],
    }


def report(found: dict[str, list[dict[str, Any]]], model: Path, *, as_json: bool) -> None:
    """Print the medians and the ratios."""
    table = {
        name: {
            "seconds": statistics.median(run["seconds"] for run in runs),
            "cpu": statistics.median(run["cpu"] for run in runs),
            "peak_mib": max(run["peak_mib"] for run in runs),
            "scratch_gb": runs[0]["scratch"] / 1e9,
            "runs": [round(run["seconds"], 1) for run in runs],
            **({"steps": runs[0]["steps"]} if "steps" in runs[0] else {}),
        }
        for name, runs in found.items()
    }
    pairs = zip(found["rig"], found["quantise"], strict=True)
    ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
    result = {
        "weights_gb": (model / "model.safetensors").stat().st_size / 1e9,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "table": table,
        "rig_over_quantise": statistics.median(ratios),
    }
    if "usual" in table:
        result["usual_over_rig"] = table["usual"]["seconds"] / table["rig"]["seconds"]
    if as_json:
        print(json.dumps(result))
        return
    print(f"{result['weights_gb']:.2f} GB of weights; {result['machine']}")
    for name, row in table.items():
        print(
            f"{name:9} {row['seconds']:7.1f} s  cpu {row['cpu']:6.1f} s  peak {row['peak_mib']:6.0f} MiB  "
            f"scratch {row['scratch_gb']:.2f} GB  {row.get('steps', row['runs'])}"
        )
    print(f"rig / quantise: {result['rig_over_quantise']:.2f}", end="")
    print(f"; usual / rig: {result['usual_over_rig']:.2f}" if "usual" in table else "")


if __name__ == "__main__":
    main()
