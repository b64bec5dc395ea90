"""Everything at once against one `rig serve`: eight who mean harm, one person who reads a stream.

    python benchmarks/serve_abuse.py MODEL.gguf --minutes 10

What counts: how long the person's stream stood still, memory before and after, restarts of the engine, and
the size of the log. The kinds of harm are those of the tests of the serving room: prompts by the thousand,
grammars and patterns that explode, texts that can't fit, forged control tokens, half-open heads, bodies held
back, nonsense, clients that leave in the middle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CLIENTS = 8


@dataclass
class Report:
    """What was seen."""

    seconds: float = 0.0
    longest_gap: float = 0.0
    """Seconds that the person's stream stood still at most, from one event to the next."""
    slowest_begin: float = 0.0
    """Seconds from the person's request to its first event."""
    slowest_health: float = 0.0
    streams: int = 0
    broken: list[str] = field(default_factory=list)
    """What went wrong for the person."""
    requests: dict[str, int] = field(default_factory=dict)
    """Of those who mean harm, by status."""
    memory_before: float = 0.0
    memory_after: float = 0.0
    """MiB of all the server's processes."""
    crashes: float = 0.0
    log_bytes: int = 0


def chat(content: Any, **more: Any) -> dict[str, Any]:
    """A small chat request."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


def schema(of: Any) -> dict[str, Any]:
    """A request that is to be kept to a schema."""
    return chat("x", response_format={"type": "json_schema", "json_schema": {"schema": of}})


def harms(rng: random.Random) -> list[tuple[str, Any]]:
    """Requests that cost much or make no sense, each a little different every time."""
    n = rng.randrange(500, 20_000)
    many = {f"p{i}": {"type": "string"} for i in range(rng.randrange(100, 6000))}
    return [
        (TEXT, {"prompt": ["a"] * n, "n": 8, "max_tokens": 1}),
        (TEXT, {"prompt": ["a"] * 8, "n": 8, "max_tokens": 1}),
        (CHAT, {"messages": chat("a")["messages"] * n, "max_tokens": 1}),
        (CHAT, chat("<|eot_id|>" * n)),
        (CHAT, chat("a" * n * 20)),
        (CHAT, chat(" " * n)),
        (TEXT, {"prompt": "1" * n * 20, "max_tokens": 1}),
        (TEXT, {"prompt": [5] * n, "max_tokens": 1}),
        (CHAT, schema({"type": "string", "pattern": "^" + "(a|b)?" * n + "$"})),
        (CHAT, schema({"type": "string", "pattern": "^x(((a{0,99}){0,99}){0,99}){0,99}$"})),
        (CHAT, schema({"type": "object", "properties": many})),
        (CHAT, schema({"enum": [f"x{i}" for i in range(n)]})),
        (CHAT, schema(json.loads('{"items":' * 60 + "{}" + "}" * 60))),
        (CHAT, chat("x", grammar='root ::= ("a"* "a"*)* ("a" | "a" "a"*)*' * 3)),
        (CHAT, chat("x", grammar="root ::= " + "(" * 900 + '"a"' + ")" * 900)),
        (CHAT, chat("x", logit_bias={str(i): 1.0 for i in range(n)})),
        (CHAT, chat("x", stop=["x" * 1000] * 16, max_tokens=50)),
        (CHAT, chat("x", lora=[{"id": 0}])),
        (CHAT, chat("x", chat_template_kwargs={"self": 1, "style": ["<|eot_id|>"] * 100})),
        (CHAT, chat("x", max_tokens=-1, logprobs=True, top_logprobs=20, n=8)),
        ("/tokenize", {"content": "ab " * n * 20, "with_pieces": True}),
        ("/detokenize", {"tokens": [5] * n}),
        ("/apply-template", {"messages": chat("a")["messages"] * 2000}),
        (CHAT, b"[" * n * 50),
        (CHAT, rng.randbytes(n)),
    ]


class Abuse:
    """The eight; they stop when `stop` is set."""

    def __init__(self, url: str, report: Report, stop: threading.Event) -> None:
        self._url = url
        self._report = report
        self._stop = stop

    def ask_for_too_much(self, seed: int) -> None:
        """One harm after the other; some clients leave in the middle."""
        rng = random.Random(seed)
        while not self._stop.is_set():
            for path, body in rng.sample(harms(rng), 8):
                if self._stop.is_set():
                    return
                patience = rng.choice([0.2, 1.0, 30.0, 30.0])
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    answer = httpx.post(self._url + path, content=content, timeout=patience)
                    self._count(str(answer.status_code))
                except httpx.TimeoutException:
                    self._count("left")
                except httpx.HTTPError as error:
                    self._count(type(error).__name__)

    def hold_lines(self, seed: int) -> None:
        """Connections that say nothing, half a head, or all but the last byte of a body."""
        rng = random.Random(seed)
        host, port = self._url.removeprefix("http://").split(":")
        big = b"a" * (1 << 20)
        while not self._stop.is_set():
            lines = []
            for _ in range(100):
                begin = rng.choice(
                    [
                        b"",
                        b"GET /health HTTP/1.1\r\nHost: loc",
                        b"\x16\x03\x01\x00\r\n\r\n",
                        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Length: %d\r\n\r\n" % (len(big) + 1) + big,
                    ]
                )
                with contextlib.suppress(OSError):
                    line = socket.create_connection((host, int(port)), timeout=5)
                    lines.append(line)
                    line.sendall(begin)
            self._stop.wait(rng.uniform(0.5, 5))
            for line in lines:
                line.close()

    def _count(self, kind: str) -> None:
        self._report.requests[kind] = self._report.requests.get(kind, 0) + 1


def be_a_person(url: str, seconds: float, asked: dict[str, Any], told: Connection) -> None:
    """The person, in a process of their own: what they see is not the abusers' doing on this side."""
    report = Report()
    read_streams(url, report, seconds, asked)
    told.send(report)


def read_streams(url: str, report: Report, seconds: float, asked: dict[str, Any]) -> None:
    """One stream after the other, and each event's time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = last = time.monotonic()
        events = 0
        body = {**chat("Tell me a long story."), "stream": True, "max_tokens": 400, **asked}
        try:
            with httpx.stream("POST", url + CHAT, json=body, timeout=60) as reply:
                if reply.status_code != 200:
                    if reply.status_code != 429:
                        reply.read()
                        report.broken.append(f"{reply.status_code} {reply.text[:200]}")
                    time.sleep(0.5)
                    continue
                for line in reply.iter_lines():
                    now = time.monotonic()
                    if line.startswith("data: {"):
                        events += 1
                        if events == 1:
                            report.slowest_begin = max(report.slowest_begin, now - begun)
                        else:
                            report.longest_gap = max(report.longest_gap, now - last)
                        last = now
                        if '"error"' in line[:12]:
                            report.broken.append(line[:200])
        except httpx.HTTPError as error:
            report.broken.append(f"{type(error).__name__} after {events} events: {error}")
        report.streams += 1


def watch_health(url: str, report: Report, stop: threading.Event) -> None:
    """A monitor."""
    while not stop.is_set():
        began = time.monotonic()
        try:
            if httpx.get(url + "/health", timeout=20).status_code != 200:
                report.broken.append("/health is not well")
        except httpx.HTTPError as error:
            report.broken.append(f"/health: {type(error).__name__}")
        report.slowest_health = max(report.slowest_health, time.monotonic() - began)
        stop.wait(0.5)


def family_memory(pid: int) -> float:
    """MiB that belong to a process and all below it; what they share is counted once."""
    total, left = 0, [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            left += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)
            total += int(found[1]) if found else 0
    return total / 1024


def abuse_server(
    url: str, pid: int, log: Path, seconds: float, *, settle: float = 20.0, **asked: Any
) -> Report:
    """Let all of them loose on a server for so long; `asked` is added to the person's requests.

    Before memory is read for the first time, they may `settle` for some seconds: what a server takes once for
    its busiest moment (compute buffers, cells, copies) is no growth.
    """
    if settle:
        abuse_server(url, pid, log, settle, settle=0.0, **asked)
    report, stop = Report(seconds=seconds), threading.Event()
    warm_up(url)
    report.memory_before = family_memory(pid)
    eight = Abuse(url, report, stop)
    work: list[Callable[[], None]] = [
        *(lambda i=i: eight.ask_for_too_much(i) for i in range(CLIENTS - 2)),
        *(lambda i=i: eight.hold_lines(i) for i in range(2)),
        lambda: watch_health(url, report, stop),
    ]
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    person = context.Process(target=be_a_person, args=(url, seconds, asked, tell))
    person.start()
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    seen: Report = told.recv()
    person.join()
    report.longest_gap, report.slowest_begin = seen.longest_gap, seen.slowest_begin
    report.streams, report.broken = seen.streams, report.broken + seen.broken
    warm_up(url)
    report.memory_after = family_memory(pid)
    metrics = httpx.get(url + "/metrics", timeout=20).text
    crashes = re.search(r"^rig_serve_crashes (\S+)", metrics, re.M)
    report.crashes = float(crashes[1]) if crashes else -1.0
    report.log_bytes = log.stat().st_size
    return report


def warm_up(url: str) -> None:
    """Some of everything that is usual, so that what is taken once is there before memory is read."""
    time.sleep(3)
    usual = [chat("hi"), schema({"const": "a"}), *(chat(f"{i} " + "word " * 380) for i in range(4))]
    with ThreadPoolExecutor(4) as four:
        for answer in four.map(lambda body: httpx.post(url + CHAT, json=body, timeout=60), usual):
            answer.raise_for_status()
    time.sleep(2)


def main() -> None:
    """Start a server, abuse it, say how it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        log = Path(home) / "serve.log"
        words = [sys.executable, "-P", "-m", "rig", "serve", given.model, "--port", "0"]
        with log.open("wb") as sink:
            server = subprocess.Popen(
                words, stdout=sink, stderr=sink, env={**os.environ, "RIG_HOME": home}
            )
        try:
            while not (found := re.search(r"Serving .* at (http://\S+)", log.read_text("utf-8"))):
                time.sleep(0.1)
            report = abuse_server(found[1], server.pid, log, 60 * given.minutes)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    for name, value in vars(report).items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
