"""A model server that says what it is told to: real HTTP on loopback, a queue and a history."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeModel:
    """Answers `/v1/chat/completions`; `will_say` fills the queue, `history` holds the requests.

    With an empty queue it answers what `otherwise` makes of the request. `delay` is in seconds.
    """

    def __init__(
        self, otherwise: Callable[[dict[str, Any]], str | tuple[int, str]] = lambda body: ""
    ) -> None:
        self.queue: deque[str | tuple[int, str]] = deque()
        self.history: list[dict[str, Any]] = []
        self.priorities: list[str] = []
        self.otherwise = otherwise
        self.finish = "stop"
        self.delay = 0.0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def reply(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(200, {"status": "ok", "data": [{"id": "fake", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/chat/completions":
                    self.reply(404, {"error": {"message": "not here"}})
                    return
                fake.history.append(body)
                fake.priorities.append(self.headers.get("x-rig-priority", ""))
                said = fake.queue.popleft() if fake.queue else fake.otherwise(body)
                time.sleep(fake.delay)
                if isinstance(said, tuple):
                    self.reply(said[0], {"error": {"message": said[1]}})
                    return
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "message": message, "finish_reason": fake.finish}
                usage = {"prompt_tokens": 10, "completion_tokens": 10}
                self.reply(200, {"model": "fake", "choices": [choice], "usage": usage})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def will_say(self, *replies: str | tuple[int, str]) -> None:
        """Queue replies: a text, or a status code and its error message."""
        self.queue.extend(replies)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def about_the_card(body: dict[str, Any]) -> str:
    """A good post about the card in the prompt."""
    facts = dict(
        line.split(": ", 1) for line in body["messages"][1]["content"].splitlines() if ": " in line
    )
    figures = ", ".join(f"{facts[k]} {k}" for k in ("ATK", "DEF") if facts.get(k, "?") != "?")
    post = (
        f"Say hello to {facts['Name']} today. {facts['Card']}{': ' + figures if figures else ''}."
    )
    return json.dumps({"post": post}, ensure_ascii=False)


if __name__ == "__main__":
    with FakeModel(about_the_card) as model:
        print(model.url, flush=True)
        threading.Event().wait()
