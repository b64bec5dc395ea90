"""A model that costs nothing: an OpenAI-compatible server over real HTTP that remembers every request.

Its tokens are words and marks, its summaries are the leading sentences of the text, as asked for.
`queue` holds replies to give first (a string, or (status, body)); `requests` is the history.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = re.compile(r"<text>\n(.*)\n</text>\Z", re.DOTALL)


def tokens(text: str) -> list[str]:
    """Words and marks."""
    return re.findall(r"\w+|[^\w\s]", text)


class CountingServer:
    """Runs on loopback in a thread while the `with` block lasts; every knob may be turned meanwhile."""

    def __init__(self, context: int | None = 4096, name: str = "fake") -> None:
        self.context = context
        self.name = name
        self.can_count = True
        self.reads_at_most: int | None = None
        """Tokens after which the prompt is silently cut, as some servers do."""
        self.delay = 0.0
        """Seconds that each answer takes."""
        self.queue: list[str | tuple[int, dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> CountingServer:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def texts(self) -> list[str]:
        """What stood between the marks, request by request."""
        found = [TEXT.search(request["messages"][-1]["content"]) for request in self.requests]
        return [match[1] if match else "" for match in found]

    @property
    def tasks(self) -> list[str]:
        """The system prompts, request by request."""
        return [request["messages"][0]["content"] for request in self.requests]

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body for one chat request; the reply stands at `reply`."""
        with self._lock:
            self.requests.append(body)
            said = self.queue.pop(0) if self.queue else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.delay)
            if isinstance(said, tuple):
                return said
            prompt = rendered(body["messages"])
            size = len(tokens(prompt))
            if self.context is not None and size + (body.get("max_tokens") or 0) > self.context:
                return 400, {"error": {"message": "the prompt exceeds the context size"}}
            if self.reads_at_most is not None:
                size = min(size, self.reads_at_most)
            reply = said if said is not None else leading(body["messages"])
            cut = len(tokens(reply)) > (body.get("max_tokens") or 10**9)
            if cut:
                reply = "".join(re.findall(r"\s*(?:\w+|[^\w\s])", reply)[: body["max_tokens"]])
            return 200, {"reply": reply, "size": size, "finish": "length" if cut else "stop"}
        finally:
            with self._lock:
                self.at_once -= 1

    def card(self) -> dict[str, Any]:
        """The answer of /v1/models."""
        meta = {} if self.context is None else {"n_ctx": self.context}
        return {"object": "list", "data": [{"id": self.name, "object": "model", "meta": meta}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                known = {"/v1/models": server.card(), "/health": {"status": "ok"}}
                self._send(200 if self.path in known else 404, known.get(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/chat/completions":
                    self._chat(body)
                elif self.path == "/tokenize" and server.can_count:
                    self._send(200, {"tokens": list(range(len(tokens(body["content"]))))})
                elif self.path == "/apply-template" and server.can_count:
                    self._send(200, {"prompt": rendered(body["messages"])})
                else:
                    self._send(404, {"error": {"message": "unknown path"}})

            def _chat(self, body: dict[str, Any]) -> None:
                status, found = server.answer(body)
                if status != 200:
                    self._send(status, found)
                    return
                usage = {
                    "prompt_tokens": found["size"],
                    "completion_tokens": len(tokens(found["reply"])),
                }
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                pieces = re.findall(r"\s*\S+", found["reply"])
                deltas: list[dict[str, Any]] = [
                    {"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces
                ]
                deltas.append(
                    {"choices": [{"index": 0, "delta": {}, "finish_reason": found["finish"]}]}
                )
                deltas.append({"choices": [], "usage": usage})
                for delta in deltas:
                    told = json.dumps({"model": server.name, **delta})
                    self.wfile.write(f"data: {told}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def _send(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After", "0.1")
                self.end_headers()
                self.wfile.write(content)

        return Handler


def rendered(messages: list[dict[str, str]]) -> str:
    """The prompt in a template of its own."""
    return "".join(f"[{m['role']}]\n{m['content']}\n" for m in messages) + "[assistant]\n"


def leading(messages: list[dict[str, str]]) -> str:
    """The first sentences of the text, as many as the task names."""
    found = TEXT.search(messages[-1]["content"])
    wanted = re.search(r"(\d+) (sentence|bullet)", messages[0]["content"])
    count = int(wanted[1]) if wanted else 3
    blocks = [
        block
        for block in (found[1] if found else "").split("\n\n")
        if block.rstrip().endswith((".", "!", "?"))
    ]
    sentences = [one for block in blocks for one in re.findall(r"\S[^.!?]*[.!?]+", block)][:count]
    cleaned = [" ".join(sentence.split()) for sentence in sentences]
    if wanted and wanted[2] == "bullet":
        return "\n".join(f"- {sentence}" for sentence in cleaned)
    return " ".join(cleaned) or "Nothing."
