"""What `benchmarks/serve.py` lets run: servers, what a client sees of them, and turns that are fair."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import psutil

OTHERS = 0.02
"""Share of the processor that others may take while something is measured."""
LIBRARIES = str(Path(llama_cpp.__file__).parent / "lib")


@dataclass
class Took:
    """One reply, as its client saw it; times in seconds since the request was sent."""

    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    longest: float = 0.0
    """The longest pause between two pieces."""
    text: str = ""
    timings: dict[str, Any] = field(default_factory=dict)

    @property
    def decode(self) -> float:
        """Tokens per second after the first piece."""
        return (self.tokens - 1) / max(self.last - self.first, 1e-9)


class Contender:
    """A server on a free port; use with `with`."""

    def __init__(self, name: str, command: list[str], ready: str, home: Path) -> None:
        self.name, self._command, self._ready, self._home = name, command, ready, home

    def __enter__(self) -> Contender:
        with socket.create_server(("127.0.0.1", 0)) as line:
            self.port = line.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RIG_")}
        environment["RIG_HOME"] = str(self._home)
        environment["LD_LIBRARY_PATH"] = LIBRARIES
        self._log = self._home / f"{self.name}.log"
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return self
            time.sleep(0.05)
        sys.exit(f"{self.name} did not start: {self._log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def get(self, path: str) -> tuple[int, bytes]:
        """One GET."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status, answer.read()

    def ask(self, prompt: Any, n: int, **more: Any) -> Took:
        """Stream a completion of `n` tokens."""
        body = {"prompt": prompt, "max_tokens": n, "stream": True, "temperature": 0,
                "ignore_eos": True, "stream_options": {"include_usage": True}} | more  # fmt: skip
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        began = time.perf_counter()
        line.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer, took = line.getresponse(), Took()
        if answer.status != 200:
            sys.exit(f"{self.name}: {answer.read().decode()}")
        while row := answer.readline():
            if not row.startswith(b"data: {"):
                continue
            now = time.perf_counter() - began
            found = json.loads(row[6:])
            took.timings = found.get("timings") or took.timings
            if usage := found.get("usage"):
                took.tokens = usage["completion_tokens"]
            if any(choice.get("text") for choice in found.get("choices", ())):
                took.longest = max(took.longest, now - took.last) if took.first else 0.0
                took.first, took.last = took.first or now, now
                took.text += found["choices"][0]["text"]
        line.close()
        return took


class Race:
    """The machines, the models and the rounds of one run."""

    def __init__(self, asked: argparse.Namespace, model: Path) -> None:
        self.asked, self.model = asked, model
        self.rng = random.Random(asked.seed)
        self.home = Path(tempfile.mkdtemp(prefix="rig-benchmark-serve-"))
        self.results: dict[str, dict[str, Any]] = {}
        self.turns = self.repeated = self.crowded = 0

    def toy(self) -> Path:
        """The toy model as a GGUF file, made by `rig export`."""
        path = self.home / "toy.gguf"
        words = ["export", "toy", "--gguf", "--quant", "Q8_0", "--no-check", "--out", path]
        if not path.exists():
            subprocess.run([sys.executable, "-P", "-m", "rig", *map(str, words)], check=True)
        return path

    def rig(
        self, *more: str, ctx: int = 4096, cache: bool = False, model: Path | None = None
    ) -> Contender:
        """A `rig serve` of the model."""
        path = str(model or self.model)
        command = [sys.executable, "-P", "-m", "rig", "serve", path, "--ctx", str(ctx)]
        command += ["--threads", str(self.asked.threads), *more]
        return Contender(
            "rig", [*command, *([] if cache else ["--prefix-cache", "0"])], "", self.home
        )

    def llama(self, *more: str, ctx: int = 4096, slots: int = 1) -> Contender:
        """A llama-server of the model, all its slots sharing the context."""
        command = [str(self.asked.llama / "llama-server"), "-m", str(self.model), "-c", str(ctx)]
        command += ["-t", str(self.asked.threads), "-np", str(slots), "-kvu", "--cache-ram", "0"]
        return Contender("llama-server", [*command, "--no-webui", *more], "", self.home)

    def prompt(self, n: int) -> list[int]:
        """`n` tokens that nobody has seen before."""
        return [self.rng.randrange(300, 2000) for _ in range(n)]

    def bench(self) -> tuple[float, float]:
        """Tokens per second by llama-bench: written (128, empty context) and read (512)."""
        command = [str(self.asked.llama / "llama-bench"), "-m", str(self.model), "-o", "json"]
        command += ["-t", str(self.asked.threads), "-p", "512", "-n", "128", "-r", "1"]
        environment = {**os.environ, "LD_LIBRARY_PATH": LIBRARIES}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        speeds = {row["n_gen"]: row["avg_ts"] for row in json.loads(done.stdout)}
        return speeds[128], speeds[0]

    def turn(self, job: Callable[[], Any]) -> Any:
        """What `job` returns, from a time when others left the processor to us."""
        for _ in range(6):
            began, ours, all_of_it = time.perf_counter(), _processor_ours(), _processor()
            found = job()
            seconds = (time.perf_counter() - began) * (os.cpu_count() or 1)
            others = (_processor() - all_of_it - (_processor_ours() - ours)) / seconds
            self.turns += 1
            if others <= OTHERS:
                return found
            self.repeated += 1
            print(f"  others took {others:.0%}: once more", file=sys.stderr, flush=True)
        print("  others never leave: it counts all the same", file=sys.stderr, flush=True)
        self.crowded += 1
        return found

    def note(self, name: str, wanted: str, **figures: Any) -> None:
        """Keep and print one line."""
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
        self.results[name] = {"wanted": wanted, **shown}
        print(f"{name:28} {shown}  (wanted: {wanted})", file=sys.stderr, flush=True)


def _processor() -> float:
    """Seconds that any program or another guest has had of the processor, all cores together."""
    found = psutil.cpu_times()
    idle = found.idle + found.iowait + found.guest + found.guest_nice
    return float(sum(found) - idle)


def _processor_ours() -> float:
    """Seconds of this program, its servers, and the rivals that have ended."""
    found = os.times()
    total = found.user + found.system + found.children_user + found.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def ratio(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of both sides, and the median of the paired ratios with its spread."""
    found = sorted(a / b for a, b in pairs)
    return {
        "rig": statistics.median(a for a, _ in pairs),
        "rival": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(found),
        "ratios": f"{found[0]:.2f} to {found[-1]:.2f}",
    }


def at_once(jobs: Sequence[Callable[[], Took]]) -> list[Took]:
    """Run all of them at the same time."""
    found: dict[int, Took] = {}
    threads = [
        threading.Thread(target=lambda i=i, job=job: found.__setitem__(i, job()))
        for i, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(jobs))]
