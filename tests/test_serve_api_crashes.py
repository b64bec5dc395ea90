"""pytest tests/test_serve_api_crashes.py: deaths, storms of requests, leaving and coming back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support import serve_gguf
from support.serve_server import Server

SCHEMA = {
    "type": "object",
    "properties": {"post": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}},
    "required": ["post", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    serve_gguf.write(folder / "plain.gguf")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Server]:
    with Server(folder / "plain.gguf", folder / "home") as server:
        yield server


# Crashes ----------------------------------------------------------------------------------------


def test_a_killed_engine_is_replaced_and_nobody_notices(plain: Server) -> None:
    asked = {"max_tokens": 400, "logit_bias": {"264": -100}}
    expected = plain.chat("count", **asked).json()["choices"][0]["message"]["content"]
    for stream in (False, True):
        assert plain.chat("x", max_tokens=1).status_code == 200  # the engine is loaded, not loading
        crashes = plain.metric("crashes")
        result: list[httpx.Response] = []
        client = threading.Thread(
            target=lambda s=stream, r=result: r.append(plain.chat("count", **asked, stream=s))
        )
        client.start()
        time.sleep(0.05)
        plain.kill_engine()
        client.join(60)
        assert result[0].status_code == 200
        if stream:
            lines = [
                json.loads(x[6:]) for x in result[0].text.splitlines() if x.startswith("data: {")
            ]
            text = "".join(line["choices"][0]["delta"].get("content", "") for line in lines)
        else:
            text = result[0].json()["choices"][0]["message"]["content"]
        assert text == expected
        deadline = time.monotonic() + 20  # the kill may have come after the last word
        while plain.metric("crashes") == crashes and time.monotonic() < deadline:
            time.sleep(0.05)
        assert plain.metric("crashes") == crashes + 1


def engine(script: Path) -> tuple[str, ...]:
    """`rig serve` with another program as its engine."""
    start = (
        f"from serve.engine import supervisor; supervisor.PROGRAM = ({str(script)!r},); "
        "from rig.cli import main; main()"
    )
    return (sys.executable, "-P", "-c", start, "serve")


FAULTY = """
import ctypes, sys
import llama_cpp
from serve.engine import llama
real = llama.LlamaContext.decode
POISON = {poison}
def decode(self, n):
    if POISON in self.token[:n]:
        abort = ctypes.CDLL(llama_cpp.llama_cpp._lib._name.replace("libllama", "libggml-base")).ggml_abort
        abort(b"test.c", 1, b"GGML_ASSERT(%s) failed", b"token is fine")
    return real(self, n)
llama.LlamaContext.decode = decode
from serve.engine import worker
worker.main()
"""


def test_a_failed_assertion_ends_one_request_and_not_the_service(
    folder: Path, tmp_path: Path
) -> None:
    """llama.cpp's own abort(), in the middle of a batch of four, when one certain token is computed."""
    (tmp_path / "faulty.py").write_text(FAULTY.format(poison=ord("~")))
    program = engine(tmp_path / "faulty.py")
    options = {"max_tokens": 150, "logit_bias": {"264": -100}}
    with Server(folder / "plain.gguf", tmp_path, program=program) as server:
        expected = {text: server.chat(text, **options).json() for text in ("one", "two", "three")}
        results: dict[str, httpx.Response] = {}

        def ask(text: str) -> None:
            results[text] = server.chat(text, **options)

        threads = [threading.Thread(target=ask, args=(text,)) for text in expected]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        poisoned = server.chat("~~~~", **options)
        for thread in threads:
            thread.join(60)
        assert poisoned.status_code == 500
        assert "SIGABRT" in poisoned.json()["error"]["message"]
        for text, whole in expected.items():
            assert results[text].status_code == 200, results[text].text
            assert results[text].json()["choices"] == whole["choices"]
        assert server.metric("crashes") >= 1
        assert server.chat("five").is_success


KILLED = """
import os, signal
from pathlib import Path
tries = Path({tries!r})
tries.open("a").write("x")
if len(tries.read_text()) <= {times}:
    os.kill(os.getpid(), signal.SIGKILL)
from serve.engine import worker
worker.main()
"""


def test_an_engine_that_is_killed_while_it_loads_is_started_again(
    folder: Path, tmp_path: Path
) -> None:
    """What a kernel without memory does: it comes back when there is some again."""
    tries = tmp_path / "tries"
    (tmp_path / "killed.py").write_text(KILLED.format(tries=str(tries), times=2))
    with Server(folder / "plain.gguf", tmp_path, program=engine(tmp_path / "killed.py")) as server:
        assert server.chat("one").is_success
        assert server.metric("crashes") == 2
        assert server.metric("loads") == 1
    assert tries.read_text() == "xxx"


def test_the_engine_goes_when_its_parent_is_killed(folder: Path, tmp_path: Path) -> None:
    server = Server(folder / "plain.gguf", tmp_path)
    (worker,) = server.workers()
    server.process.kill()
    server.process.wait()
    server.http.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()


def test_a_signal_ends_it_well(folder: Path, tmp_path: Path) -> None:
    """Begun in the background of a script, Ctrl-C is not meant for it: there SIGTERM ends it."""
    plain = (sys.executable, "-P", "-m", "rig", "serve")
    background = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh", *plain)
    for program, number in ((plain, signal.SIGINT), (background, signal.SIGTERM)):
        server = Server(folder / "plain.gguf", tmp_path, program=program)
        assert list((tmp_path / "state/servers").glob("*.json"))
        result: list[httpx.Response] = []
        ask = threading.Thread(
            target=lambda s=server, r=result: r.append(s.chat("x", max_tokens=300))
        )
        if program is background:
            server.process.send_signal(signal.SIGINT)
            assert server.chat("still there?").status_code == 200
        ask.start()
        time.sleep(0.1)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        ask.join(30)
        server.http.close()
        assert result[0].status_code == 200, "what was begun is finished"
        assert not list((tmp_path / "state/servers").glob("*.json"))


def test_it_leaves_when_idle(folder: Path, tmp_path: Path) -> None:
    server = Server(folder / "plain.gguf", tmp_path, "--idle-exit", "1")
    for _ in range(3):
        assert server.chat("x").is_success
        time.sleep(0.5)
    assert server.process.poll() is None
    assert server.process.wait(20) == 0
    server.http.close()


def test_memory_is_given_back_when_idle_and_the_prefix_is_still_there(
    folder: Path, tmp_path: Path
) -> None:
    with Server(folder / "plain.gguf", tmp_path, "--idle-unload", "1") as server:
        long = "the hat in on an the he " * 40
        first = server.chat(long).json()
        assert first["timings"]["cache_n"] == 0
        deadline = time.monotonic() + 20
        while server.workers() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.workers(), "the process that held the model is gone"
        assert server.http.get("/health").json() == {"status": "ok", "loaded": False}
        assert server.http.get("/v1/models").is_success
        assert not server.workers(), "looking does not load it"
        again = server.chat(long).json()
        assert again["timings"]["cache_n"] > 300
        assert again["choices"] == first["choices"]


# Endurance --------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Memory of a process that is its own and nobody's file, in bytes."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith(("RssAnon", "VmSwap")))


async def storm(url: str, requests: int, *, seed: int) -> dict[str, int]:
    """Many requests, some of which go away at a random moment; how each of them ended."""
    rng = random.Random(seed)
    ends = {"whole": 0, "left": 0, "busy": 0}
    limits = httpx.Limits(max_connections=24)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        gate = asyncio.Semaphore(16)

        async def one(i: int) -> None:
            async with gate:
                text = "the hat " * rng.randrange(1, 60) + str(i % 50)
                asked = {
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": rng.randrange(1, 80),
                    "stream": rng.random() < 0.6,
                    "seed": i,
                }
                if rng.random() < 0.2:
                    asked["response_format"] = {
                        "type": "json_schema",
                        "json_schema": {"schema": SCHEMA},
                    }
                headers = {"X-Rig-Priority": rng.choice(["person", "bot"])}
                patience = rng.choice([None, 0.01, 0.05, 0.2])
                try:
                    async with asyncio.timeout(patience):
                        answer = await client.post(
                            "/v1/chat/completions", json=asked, headers=headers
                        )
                    assert answer.status_code in (200, 429), answer.text
                    ends["whole" if answer.status_code == 200 else "busy"] += 1
                except TimeoutError:
                    ends["left"] += 1

        await asyncio.gather(*(one(i) for i in range(requests)))
    return ends


def accounted(server: Server, requests: int) -> None:
    before = {name: server.metric(name) for name in ("requests_total", "refused_total")}
    ends = asyncio.run(storm(server.url, requests, seed=requests))
    server.until("working", 0)
    done = server.metric("requests_total") - before["requests_total"]
    refused = server.metric("refused_total") - before["refused_total"]
    assert sum(ends.values()) == requests
    assert ends["whole"] <= done <= requests
    assert refused == ends["busy"]
    assert done + refused <= requests


def test_a_hundred_requests_with_cancellations_are_all_accounted_for(plain: Server) -> None:
    accounted(plain, 100)


@pytest.mark.slow
def test_a_thousand_requests_with_cancellations_leave_memory_flat(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of prefixes fill their room, as much as the context takes, before the count begins.

    Without huge pages: the heap of a process of 40 MB would grow by 5 % or not at all.
    """
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    with Server(folder / "plain.gguf", tmp_path, "--ctx", "2048") as server:
        accounted(server, 900)  # caches fill, pools grow to their size
        (worker,) = server.workers()
        pids = {"engine": worker, "http": server.process.pid}
        before = {name: resident(pid) for name, pid in pids.items()}
        accounted(server, 1000)
        assert server.workers() == [worker], "the same process still"
        after = {name: resident(pid) for name, pid in pids.items()}
        growth = {name: after[name] / before[name] - 1 for name in pids}
        print("growth of memory:", growth, before, after)
        assert sum(after.values()) <= 1.03 * sum(before.values()), growth


def kill_under_load(folder: Path, home: Path, times: int) -> None:
    """Kill the engine, or the whole service, again and again while clients ask."""
    rng = random.Random(times)
    port = free_port()
    options = ("--port", str(port), "--ctx", "2048")
    server = Server(folder / "plain.gguf", home, *options)
    stop = threading.Event()
    longest, answers, errors = [0.0], [0], [0]

    def client(n: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            i = 0
            while not stop.is_set():
                i += 1
                began = time.monotonic()
                body = {"prompt": f"the hat {n} {i}", "max_tokens": 60, "stream": i % 2 == 0}
                try:
                    http.post("/v1/completions", json=body).raise_for_status()
                    answers[0] += 1
                except httpx.TimeoutException:
                    raise
                except httpx.HTTPError:  # the service itself was killed: the connection broke
                    errors[0] += 1
                    time.sleep(0.05)
                longest[0] = max(longest[0], time.monotonic() - began)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in clients:
        thread.start()
    try:
        for i in range(times):
            time.sleep(rng.uniform(0.05, 0.5))
            if i % 2:
                server.process.kill()
                server.process.wait()
                server.http.close()
                server = Server(folder / "plain.gguf", home, *options)
            elif server.workers():
                with contextlib.suppress(ProcessLookupError):
                    server.kill_engine(rng.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV]))
            before = answers[0]
            deadline = time.monotonic() + 30
            while answers[0] == before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert answers[0] > before, f"back after death number {i + 1}: {server.said()[-500:]}"
    finally:
        stop.set()
        for thread in clients:
            thread.join(60)
        server.stop()
    assert not any(thread.is_alive() for thread in clients), "no client hangs"
    print(f"{times} deaths: {answers[0]} answers, {errors[0]} errors, slowest {longest[0]:.1f} s")
    assert longest[0] < 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return int(line.getsockname()[1])


def test_the_service_comes_back_after_two_deaths(folder: Path, tmp_path: Path) -> None:
    kill_under_load(folder, tmp_path, 2)


@pytest.mark.slow
def test_the_service_comes_back_after_fifty_deaths(folder: Path, tmp_path: Path) -> None:
    kill_under_load(folder, tmp_path, 50)
