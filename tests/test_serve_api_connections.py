"""pytest tests/test_serve_api_connections.py: connections that say nothing take nobody's place."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from serve.api.connections import HEAD_SECONDS
from serve.log import BYTES_AT_ONCE, LogLimit
from support import serve_gguf
from support.serve_server import Server

FEW = ("bash", "-c", 'ulimit -n 256; exec "$0" -P -m rig serve "$@"', sys.executable)
"""A server that may have 256 descriptors."""
ENDLESS = {"logit_bias": {"264": -100}, "max_tokens": 1200, "stream": True}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("few")
    with Server(serve_gguf.write(folder / "a.gguf"), folder / "home", program=FEW) as server:
        yield server


def open_lines(server: Server, number: int, begin: bytes) -> list[socket.socket]:
    """Many connections that each send the beginning of something."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = []
    for _ in range(number):
        line = socket.create_connection((host, int(port)), timeout=20)
        lines.append(line)
        with contextlib.suppress(OSError):  # it may be closed again at once
            line.sendall(begin)
    return lines


def is_closed(line: socket.socket, seconds: float) -> bool:
    """Whether the server closes a connection within so many seconds."""
    line.settimeout(seconds)
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


BEGINNINGS = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nHost: loc",
    "a body that does not come": b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_more_connections_than_there_are_descriptors_keep_nobody_out(
    few: Server, kind: str
) -> None:
    said: list[bytes] = []

    def read_stream() -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], **ENDLESS}
        with httpx.stream("POST", f"{few.url}/v1/chat/completions", json=body, timeout=30) as reply:
            said.extend(reply.iter_bytes())

    reader = threading.Thread(target=read_stream)
    reader.start()
    few.until("working", 1)
    before = len(few.said())
    lines = open_lines(few, 400, BEGINNINGS[kind])
    try:
        for _ in range(5):
            assert httpx.get(f"{few.url}/health", timeout=10).status_code == 200
            assert few.chat("hi").status_code == 200
        assert len(os.listdir(f"/proc/{few.process.pid}/fd")) < 250
        assert sum(is_closed(line, 0.001) for line in lines) >= 400 - 256
    finally:
        for line in lines:
            line.close()
    reader.join()
    assert b"".join(said).endswith(b"data: [DONE]\n\n"), "a reply in progress is never cut off"
    assert len(few.said()) - before < 10_000


def test_a_head_has_to_arrive_in_time_and_a_reply_has_all_the_time_it_takes(few: Server) -> None:
    silent, half, second = open_lines(few, 3, b"")
    half.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
    second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert second.recv(65536).startswith(b"HTTP/1.1 200")
    second.sendall(b"GET /he")  # the second request on the same connection
    for line in (silent, half, second):
        line.settimeout(HEAD_SECONDS + 20)
        with contextlib.suppress(ConnectionResetError):
            while line.recv(4096):  # the rest of the first answer, then the end
                pass
        line.close()
    (kept,) = open_lines(few, 1, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    said = b""
    while b'"ok"' not in said:
        more = kept.recv(65536)
        assert more, f"closed after {said!r}"
        said += more
    assert not is_closed(kept, 0.2), "a connection may be used again"
    kept.close()


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET  \r\n\r\n"]
)
def test_nonsense_a_thousand_times_is_a_few_lines_in_the_log(few: Server, nonsense: bytes) -> None:
    before = len(few.said())
    for _ in range(20):
        for line in open_lines(few, 50, nonsense):
            line.close()
    assert httpx.get(f"{few.url}/health", timeout=10).status_code == 200
    assert len(few.said()) - before < 5000


def test_the_log_has_a_budget_and_counts_what_it_left_out() -> None:
    now = [0.0]
    limit = LogLimit(clock=lambda: now[0])
    size = 0
    for i in range(60_000):
        now[0] += 0.01
        record = logging.LogRecord("x", 30, "x.py", i, f"{i}: " + "y" * 200, (), None)
        size += len(record.msg) if limit.filter(record) else 0
    assert size < BYTES_AT_ONCE + 11 * (32 << 10)


def test_what_breaks_a_thousand_times_is_shown_a_few_times() -> None:
    now = [0.0]
    limit = LogLimit(clock=lambda: now[0])
    shown = []
    for kind in ("ValueError", "TypeError"):
        for _ in range(1000):
            record = logging.LogRecord("x", 40, "x.py", 1, f"A mistake: {kind}", (), None)
            shown += [record.msg] if limit.filter(record) else []
    assert len(shown) == 10
    now[0] = 61.0
    record = logging.LogRecord("x", 40, "x.py", 1, "A mistake: TypeError", (), None)
    assert limit.filter(record)
    assert "(and 995 lines like it that were left out)" in record.getMessage()
