"""What this box makes of a model, how near that is to what its memory allows, and what to set."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.model.gguf import GGUFHeader, read_header
from serve.hardware import machine as boxes
from serve.hardware.memory import BATCH, fit_context, kv_cache_bytes, work_bytes

WORTH = 1.03
"""A setting is preferred to the usual one when it is faster by this much: less is noise."""
READ, WRITTEN = 1000, 200
"""What a typical request reads and writes, to weigh the two speeds."""

Report = dict[str, Any]


def benchmark_model(
    path: Path, *, rounds: int, tokens: int, threads: int | None, told: Callable[[str], None]
) -> Report:
    """Measure the GGUF at `path` and return the object of `--json`; `told` hears how far it is."""
    header, box = read_header(path), boxes.inspect_machine()
    fits = fit_context(header, box, min(4096, header.context_length or 4096), micro_batch=BATCH)
    usual = threads or box.threads
    logical = _logical(box)
    tries = sorted(
        {1, max(1, usual // 2), usual, min(logical, 2 * usual)} | {min(logical, usual + 1)}
    )
    plan = {
        "path": str(path),
        "threads": usual,
        "batch": BATCH,
        "tokens": min(tokens, max(64, (header.context_length or tokens) - 128)),
        "rounds": rounds,
        "area": min(2**29, box.free // 8),
        "try_threads": [usual] if threads else tries,
        "try_batch": [64, 128, 256, 512],
        "try_sequences": [1, 2, 4],
        "try_cache": ["f16", "q8_0"],
    }
    findings = _run(plan, told)
    report = _report(header, box, plan, findings)
    report["settings"] = choose_settings(report)
    report["command"] = serve_command_line(path, report["settings"])
    report["fits"] = fits.describe_memory()
    return report


def bytes_per_token(header: GGUFHeader) -> int:
    """What must come from memory for each token: every weight but the rows of the embedding not asked for.

    Where the output layer is the embedding itself (tied), that is read whole; of experts, those in use.
    """
    tied = not any(t.name == "output.weight" for t in header.tensors)
    experts, used = (
        header.arch_number("expert_count"),
        header.arch_number("expert_used_count"),
    )
    total = 0.0
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and not tied:
            continue
        total += tensor.bytes * (used / experts if experts and "_exps" in tensor.name else 1.0)
    return int(total)


def choose_settings(report: Report) -> dict[str, Any]:
    """The settings that make a typical request quickest; the usual ones unless others are clearly better.

    Clearly: in every round, each against the usual one's measurement beside it, so that a busy moment
    of the box does not choose.
    """
    chosen = {}
    for axis, usual in (("threads", report["threads_usual"]), ("batch", BATCH), ("cache", "f16")):
        rounds = {row[axis]: row["rounds"] for row in report[axis]}
        gains = {value: _gain(found, rounds[usual]) for value, found in rounds.items()}
        best = max(gains, key=lambda value: gains[value])
        chosen[axis] = best if gains[best] > WORTH else usual
    return {"threads": chosen["threads"], "batch": chosen["batch"], "cache_type": chosen["cache"]}


def _gain(found: list[Report], usual: list[Report]) -> float:
    """How many times quicker a typical request is, in the round where it is least so."""

    def seconds(row: Report) -> float:
        return float(READ / row["prefill"] + WRITTEN / row["decode"])

    return min(seconds(theirs) / seconds(its) for its, theirs in zip(found, usual, strict=True))


def serve_command_line(path: Path, chosen: dict[str, Any]) -> str:
    """The command line that uses the settings."""
    words = ["rig", "serve", str(path)]
    for name, value in chosen.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def format_report(report: Report) -> list[str]:
    """The report as text."""
    share = f"{report['share_of_bound']:.0%} of that is reached"
    if report["share_of_bound"] > 1:
        share = "more is reached: it comes from the CPU's own cache"
    lines = [
        f"{report['model']}: {report['quant']}, {boxes.format_bytes(report['bytes'])}; "
        f"{report['box']['sentence']}",
        f"reads   {report['prefill']:8.1f} tokens/s  ({report['tokens']} tokens)",
        f"writes  {report['decode']:8.1f} tokens/s  ({report['steps']} tokens)",
        f"memory  {report['bandwidth'] / 1e9:8.1f} GB/s, "
        f"{boxes.format_bytes(report['bytes_per_token'])} a token: "
        f"at most {report['bound']:.1f} tokens/s; {share}",
        f"loads   {report['load_seconds']:8.1f} s",
        "",
        "threads       reads  writes",
    ]
    lines += [f"{r['threads']:<8}{r['prefill']:11.1f}{r['decode']:8.1f}" for r in report["threads"]]
    lines += ["", "batch         reads  work space"]
    lines += [
        f"{r['batch']:<8}{r['prefill']:11.1f}  {boxes.format_bytes(r['work_bytes'])}"
        for r in report["batch"]
    ]
    lines += ["", "at a time    writes, all together"]
    lines += [f"{r['sequences']:<8}{r['decode']:11.1f}" for r in report["sequences"]]
    lines += ["", "cache         reads  writes  of 8192 tokens"]
    lines += [
        f"{r['cache']:<8}{r['prefill']:11.1f}{r['decode']:8.1f}  {boxes.format_bytes(r['cache_bytes'])}"
        for r in report["cache"]
    ]
    p = report["prefix"]
    lines += [
        "",
        f"first word of a prompt of {p['tokens']} tokens: {p['cold']:.2f} s; its start known from memory "
        f"{p['memory']:.3f} s, from disk {p['disk']:.3f} s ({boxes.format_bytes(p['bytes'])})",
        "",
        report["command"],
    ]
    return lines


def _report(header: GGUFHeader, box: boxes.Machine, plan: Report, findings: list[Report]) -> Report:
    report: Report = {
        "model": header.path.name,
        "quant": header.quant_name,
        "bytes": header.total_bytes,
        "box": asdict(box) | {"sentence": box.describe_machine()},
        "threads_usual": plan["threads"],
        "threads": [], "batch": [], "sequences": [], "cache": [],
    }  # fmt: skip
    for finding in findings:
        if "axis" in finding:
            axis = finding["axis"]
            row = {axis: finding["value"]}
            row |= {name: finding[name] for name in ("prefill", "decode", "rounds")}
            if axis == "batch":
                row["work_bytes"] = work_bytes(header, finding["value"])
            elif axis == "cache":
                row["cache_bytes"] = kv_cache_bytes(header, 8192, finding["value"])
            report[axis].append(row)
        else:
            report |= finding
    usual = next(row for row in report["threads"] if row["threads"] == plan["threads"])
    report["prefill"], report["decode"] = usual["prefill"], usual["decode"]
    depth = report["tokens"] + report["steps"] // 2
    report["bytes_per_token"] = bytes_per_token(header) + kv_cache_bytes(header, 256) * depth // 256
    report["bound"] = report["bandwidth"] / report["bytes_per_token"]
    report["share_of_bound"] = report["decode"] / report["bound"]
    return report


def _run(plan: Report, told: Callable[[str], None]) -> list[Report]:
    """Run the plan in a process of its own and collect what it finds."""
    words = [sys.executable, "-P", "-m", "serve.bench.worker", json.dumps(plan)]
    findings = []
    environment = {**boxes.model_environment(), "GGML_NO_BACKTRACE": "1"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(process.stderr or []), daemon=True)
        listener.start()
        try:
            for line in process.stdout:
                finding = json.loads(line)
                findings.append(finding)
                told(finding.get("axis") or "/".join(finding))
        except BaseException:
            process.kill()
            raise
        process.wait()
        listener.join(5)
    if process.returncode == -signal.SIGILL:
        raise RigError(
            "llama.cpp was built for another CPU than this one: "
            "pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python==0.3.36"
        )
    if process.returncode:
        last = next((line.strip() for line in reversed(said) if line.strip()), "without a word")
        raise RigError(f"The measurement ended early ({process.returncode}): {last}")
    return findings


def _logical(box: boxes.Machine) -> int:
    """CPUs that may be used, hyper-threads and all; what the quota leaves."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus if box.quota is None else max(1, min(cpus, int(box.quota)))
