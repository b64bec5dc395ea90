"""An HTTP service whose every answer, headers included, is one function's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.fake_x import Server


class Scripted:
    """What was asked (path and body), and where."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.history: list[tuple[str, Any]] = []


@contextmanager
def serve(answer: Callable[[str, Any], tuple[int, Any, dict[str, str]]]) -> Iterator[Scripted]:
    """Answer each POST with `answer(path, body)`: status, JSON, headers."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"null")
            service.history.append((self.path, body))
            status, found, headers = answer(self.path, body)
            data = json.dumps(found).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = Server(("127.0.0.1", 0), Handler)
    service = Scripted(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
