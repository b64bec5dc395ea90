"""What this machine can do: each finding is looked at for real and says what to do next.

A library built for a better processor kills the process that imports it (SIGILL), so native libraries
are tried in a child process.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

OK, ABSENT, BROKEN = "ok", "absent", "broken"

INSTALL = "pip install -c constraints.txt -e '.[{}]'"

ROOMS = {
    "train": ("torch", "transformers", "trl", "peft", "datasets", "accelerate"),
    "export": ("gguf", "llama_cpp", "numpy", "safetensors"),
    "serve": ("llama_cpp", "starlette", "uvicorn", "psutil"),
    "bots": ("sqlalchemy", "apscheduler", "trafilatura", "tweepy"),
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: str
    """`ok`, `absent` (a choice) or `broken` (installed or configured, but does not work)."""
    found: str
    advice: str = ""


def examine_machine() -> list[Finding]:
    """Look at everything; takes a few seconds because native libraries are really loaded."""
    return [
        _python(),
        *_memory_and_disk(),
        _processor(),
        *_rooms(),
        _torch(),
        _llama(),
        _compiler(),
        _configuration(),
        *_servers(),
    ]


def print_findings(findings: list[Finding]) -> None:
    """Print one line for each finding, and what to do below those that need it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {OK: "[green]ok[/]", ABSENT: "[yellow]not here[/]", BROKEN: "[red]broken[/]"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in findings:
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        text = escape(finding.found) + advice
        table.add_row(finding.what, marks[finding.state], text)
    Console(highlight=False).print(table)


def run_probe(code: str, timeout: float = 60) -> tuple[bool, str]:
    """Run Python `code` in a child; return whether it ended well and the last line it printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout:.0f} s"
    if done.returncode < 0:
        import signal

        return False, f"killed by {signal.Signals(-done.returncode).name}"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", OK, found)


def _memory_and_disk() -> list[Finding]:
    findings = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        findings.append(Finding("memory", OK, f"{total:.1f} GiB"))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "An 8B model needs 16 GiB for its weights and 5 GiB for the GGUF." if free < 21 else ""
    findings.append(Finding("disk", OK, f"{free:.0f} GiB free here", advice))
    return findings


def _processor() -> Finding:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return Finding("processor", OK, platform.processor() or platform.machine())
    text = cpuinfo.read_text("utf-8", "replace")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    known = [f for f in ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni") if f in flags]
    found = f"{os.cpu_count()} threads, {' '.join(known) or 'no AVX2'}"
    if "avx2" in flags or platform.machine() not in ("x86_64", "AMD64"):
        return Finding("processor", OK, found)
    return Finding(
        "processor",
        ABSENT,
        found,
        "Ready-made llama-cpp-python wheels need AVX2: build it here (pip does so from source).",
    )


def _rooms() -> list[Finding]:
    findings = []
    for room, modules in ROOMS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if not missing:
            findings.append(Finding(f"room {room}", OK, "installed"))
        else:
            advice = INSTALL.format(room)
            findings.append(Finding(f"room {room}", ABSENT, f"lacks {', '.join(missing)}", advice))
    return findings


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", ABSENT, "not installed", INSTALL.format("train"))
    code = (
        "import torch\n"
        "gpu = 'without a GPU'\n"
        "if torch.cuda.is_available():\n"
        "    p = torch.cuda.get_device_properties(0)\n"
        "    gpu = f'with {p.name}, {p.total_memory / 2**30:.1f} GiB'\n"
        "else:\n"
        "    from train.model.backends import why_no_gpu\n"
        "    gpu += '. ' + why_no_gpu()\n"
        "print(torch.__version__, gpu)"
    )
    works, said = run_probe(code)
    if not works:
        return Finding("torch", BROKEN, said, "Install it again: " + INSTALL.format("train"))
    if "without a GPU" in said and shutil.which("nvidia-smi"):
        return Finding(
            "torch",
            BROKEN,
            f"{said}, though this machine has an NVIDIA driver",
            "pip brought the CPU build: install torch from PyTorch's CUDA index first (docs/windows.md).",
        )
    advice = "Training works on the CPU for the toy model only." if "without" in said else ""
    return Finding("torch", OK, said, advice)


def _llama() -> Finding:
    if importlib.util.find_spec("llama_cpp") is None:
        return Finding("llama.cpp", ABSENT, "not installed", INSTALL.format("serve"))
    works, said = run_probe(
        "import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.__version__)"
    )
    if works:
        return Finding("llama.cpp", OK, f"llama-cpp-python {said}")
    advice = (
        "Build it on this machine: pip install --force-reinstall --no-deps --no-cache-dir "
        "--no-binary :all: llama-cpp-python==0.3.36"
    )
    return Finding("llama.cpp", BROKEN, said, advice)


def _compiler() -> Finding:
    found = [name for name in ("cmake", "g++", "clang++", "cl") if shutil.which(name)]
    if len(found) > 1:
        return Finding("compiler", OK, ", ".join(found))
    return Finding(
        "compiler",
        ABSENT,
        ", ".join(found) or "none",
        "Only needed to build llama-cpp-python: apt install cmake g++ (Windows: Visual Studio Build Tools).",
    )


def _configuration() -> Finding:
    from rig import config
    from rig.errors import WrongUse

    try:
        values = config.load_config()
    except WrongUse as error:
        return Finding("configuration", BROKEN, error.message)
    files = ", ".join(map(str, config.config_files()))
    return Finding("configuration", OK, f"{files or 'no rig.toml'}: {len(values)} tables")


def _servers() -> list[Finding]:
    from rig.server.connect import find_running_server

    found = find_running_server(None)
    if found is None:
        return [
            Finding("model server", ABSENT, "none runs", "Started on demand, or: rig serve MODEL")
        ]
    return [Finding("model server", OK, f"{found['url']} serves {found['model']}")]
