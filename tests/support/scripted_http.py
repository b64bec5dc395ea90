"""A server that says exactly what the script says, byte for byte if need be; it remembers who asked what."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """One answer: a JSON object, or pieces of raw text that are sent one after the other."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    """Seconds before each piece."""
    cut: bool = False
    """Break the connection off after the last piece, in the middle of the answer."""


def events(*chunks: Any, done: bool = True) -> list[str]:
    """Chunks as server-sent events."""
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return [*lines, "data: [DONE]\n\n"] if done else lines


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One streamed piece of a chat completion."""
    said = {} if content is None else {"content": content}
    return {"model": "m", "choices": [{"index": 0, "delta": said | more, "finish_reason": finish}]}


class ScriptedServer:
    """`will_say(path, ...)` fills a queue for each path; the last answer stays."""

    def __init__(self) -> None:
        self.queues: dict[str, list[Say]] = {"/health": [Say({"status": "ok"})]}
        self.history: list[tuple[str, dict[str, str], Any]] = []
        """(path, headers in lower case, body) of every request."""
        self.gone = threading.Event()
        """Set once a client left before the last piece."""
        self.connections: list[socket.socket] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections.append(self.connection)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.history.append((self.path, headers, json.loads(raw) if raw else None))
                queue = server.queues.get(self.path) or [Say({"error": {"message": "no"}}, 404)]
                self.say(queue.pop(0) if len(queue) > 1 else queue[0])

            do_GET = do_POST = answer

            def say(self, say: Say) -> None:
                raw = isinstance(say.body, list) and all(isinstance(p, str) for p in say.body)
                pieces = say.body if raw else [json.dumps(say.body)]
                self.send_response(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    for piece in pieces:
                        time.sleep(say.pause)
                        data = piece.encode()
                        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                        self.wfile.flush()
                    if say.cut:
                        self.close_connection = True
                    else:
                        self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    server.gone.set()
                    self.close_connection = True

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that leaves is what some tests are about."""
                if not isinstance(sys.exception(), ConnectionError):
                    super().handle_error(request, client_address)

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def will_say(self, path: str, *answers: Say) -> None:
        """Answer requests for `path` with these, in turn; the last one again and again."""
        self.queues[path] = list(answers)

    def will_chat(self, *answers: Say) -> None:
        """The same for chat completions."""
        self.will_say("/v1/chat/completions", *answers)

    @property
    def asked(self) -> list[Any]:
        """The bodies of the chat requests."""
        return [body for path, _, body in self.history if path == "/v1/chat/completions"]

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections:  # a server that is gone keeps nobody on the line
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
