"""A model hub over real HTTP: its API, its redirect to another host for the bytes, and its bad days."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """`files[repo][name]` is what it has; the knobs below are its bad days. `served` counts bytes."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.breaks_after: list[int] = []
        """For the next requests: break the connection off after so many bytes."""
        self.answers: list[int] = []
        """For the next requests of bytes: this status instead."""
        self.ignores_ranges = False
        self.pace = 0.0
        """Seconds between two pieces of 64 KiB."""
        self.tampered: bytes | None = None
        """Sent in place of the real bytes."""
        self.without_hash = False
        self.served = 0
        self.ranges: list[str | None] = []
        self.keys: list[tuple[str, str | None]] = []
        """(api or cdn, the Authorization header) of every request."""
        self._api = _serve(self._api_handler())
        self._cdn = _serve(self._cdn_handler())
        self.url = f"http://127.0.0.1:{self._api.server_port}"
        self.cdn_url = f"http://localhost:{self._cdn.server_port}"

    def close(self) -> None:
        """Stop listening."""
        for server in (self._api, self._cdn):
            server.shutdown()
            server.server_close()

    def _listing(self, repo: str) -> dict[str, object]:
        rows = []
        for name, data in self.files[repo].items():
            digest = hashlib.sha256(data).hexdigest()
            row: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": digest[:40]}
            if not self.without_hash:
                row["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            rows.append(row)
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": rows, "tags": []}

    def _api_handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                hub.keys.append(("api", self.headers.get("authorization")))
                path = self.path.partition("?")[0]
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                    repo, revision = match.groups()
                    if repo in hub.gated:
                        self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
                    elif repo not in hub.files:
                        self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                    elif revision not in (None, "main", "v2", COMMIT):
                        self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                    else:
                        self.reply(200, json.dumps(hub._listing(repo)).encode())
                elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    assert match[2] == COMMIT, "bytes are asked for by commit"
                    self.reply(302, b"", {"Location": f"{hub.cdn_url}/{match[1]}/{match[3]}"})
                else:
                    self.reply(404, b"{}")

        return Handler

    def _cdn_handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                hub.keys.append(("cdn", self.headers.get("authorization")))
                hub.ranges.append(self.headers.get("range"))
                if hub.answers:
                    self.reply(hub.answers.pop(0), b"not now")
                    return
                org, repo, name = self.path[1:].split("/", 2)
                data = hub.tampered or hub.files[f"{org}/{repo}"][name]
                start = 0
                if (wanted := self.headers.get("range")) and not hub.ignores_ranges:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if start else 200)
                self.send_header("content-length", str(len(data) - start))
                self.end_headers()
                limit = hub.breaks_after.pop(0) if hub.breaks_after else len(data)
                for at in range(start, min(len(data), start + limit), 65536):
                    piece = data[at : min(at + 65536, start + limit)]
                    time.sleep(hub.pace)
                    try:
                        self.wfile.write(piece)
                    except OSError:  # the client was killed
                        return
                    hub.served += len(piece)
                self.close_connection = True

        return Handler


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub for the length of a `with` block."""
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()
