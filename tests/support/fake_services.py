"""Bluesky, Mastodon, Telegram and a webhook on loopback: real HTTP, the endpoints that an outlet needs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl

from support.fake_x import Server

Answer = tuple[int, Any]


class Service:
    """A server whose answers a function makes; `will` queues what happens instead of the next answers.

    A queued int is a status code, `"drop"` a connection cut after the request took effect, `"lost"` one
    cut before, `"hang"` silence.
    """

    def __init__(self, answer: Callable[[str, str, Any, Any], Answer]) -> None:
        self.queue: deque[int | str] = deque()
        self.history: list[tuple[str, str, Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def handle_any(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                kind = self.headers.get("content-type", "")
                body: Any = raw
                if "json" in kind:
                    body = json.loads(raw)
                elif "urlencoded" in kind:
                    body = dict(parse_qsl(raw.decode()))
                service.history.append((self.command, self.path, body))
                posting = self.command == "POST" and not self.path.endswith(QUIET)
                event = service.queue.popleft() if service.queue and posting else None
                if event == "lost":
                    self.close_connection = True
                    return
                if event == "hang":
                    time.sleep(2)
                    return
                if isinstance(event, int):
                    self.reply(event, {"error": "told to", "description": "told to", "ok": False})
                    return
                status, found = answer(self.command, self.path, body, self.headers)
                if event == "drop":
                    self.close_connection = True
                    return
                self.reply(status, found)

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = handle_any

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def will(self, *events: int | str) -> None:
        """Queue what happens to the next posts."""
        self.queue.extend(events)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


QUIET = ("createSession", "refreshSession", "uploadBlob")
"""Requests that are part of logging in: events are for the post itself."""


def token(did: str, seconds: int) -> str:
    """A JWT in form; nobody checks its signature."""
    head, body = {"typ": "at+jwt", "alg": "ES256K"}, {"sub": did, "exp": int(time.time()) + seconds}
    parts = (json.dumps(head), json.dumps(body), "signature")
    return ".".join(base64.urlsafe_b64encode(p.encode()).decode().rstrip("=") for p in parts)


def bluesky() -> Service:
    """A PDS: sessions, blobs, and records that exist once under their key."""
    records: dict[str, Any] = {}
    did = "did:plc:abcdefghijklmnopqrstuvwx"
    tokens = {"accessJwt": token(did, 7200), "refreshJwt": token(did, 86400 * 60)}
    session = {**tokens, "handle": "rig.test", "did": did}

    def answer(method: str, path: str, body: Any, headers: Any) -> Answer:
        name = path.partition("?")[0].rpartition("/")[2]
        if name == "com.atproto.server.createSession":
            right = body["password"] == "right-app-password"
            return (
                (200, session)
                if right
                else (401, {"error": "AuthenticationRequired", "message": "Invalid"})
            )
        if headers.get("authorization") != f"Bearer {tokens['accessJwt']}":
            return 401, {"error": "AuthMissing", "message": "Authentication Required"}
        if name == "com.atproto.server.getSession":
            return 200, {key: session[key] for key in ("handle", "did")}
        if name == "com.atproto.repo.uploadBlob":
            ref = {"$link": "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"}
            return 200, {
                "blob": {"$type": "blob", "ref": ref, "mimeType": "image/jpeg", "size": len(body)}
            }
        if name == "com.atproto.repo.createRecord":
            key = f"at://{body['repo']}/{body['collection']}/{body['rkey']}"
            if key in records:
                return 400, {"error": "InvalidRequest", "message": "Record already exists"}
            records[key] = body["record"]
            cid = "bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"
            return 200, {"uri": key, "cid": cid}
        if name == "com.atproto.repo.getRecord":
            options = dict(parse_qsl(path.partition("?")[2]))
            key = f"at://{options['repo']}/{options['collection']}/{options['rkey']}"
            if key not in records:
                return 400, {
                    "error": "RecordNotFound",
                    "message": f"Could not locate record: {key}",
                }
            return 200, {"uri": key, "value": records[key]}
        return 404, {"error": "NotFound", "message": name}

    service = Service(answer)
    service.records = records  # type: ignore[attr-defined]
    return service


def mastodon() -> Service:
    """A server that answers the same idempotency key with the same status."""
    statuses: dict[str, Any] = {}

    def answer(method: str, path: str, body: Any, headers: Any) -> Answer:
        if headers.get("authorization") != "Bearer right-token-0123456789":
            return 401, {"error": "The access token is invalid"}
        name = path.partition("?")[0]
        if name == "/api/v1/accounts/verify_credentials":
            return 200, {"id": "7", "acct": "rig", "username": "rig"}
        if name == "/api/v1/statuses":
            key = headers.get("idempotency-key")
            if key not in statuses:
                text = body["status"].replace("&", "&amp;").replace("<", "&lt;")
                made = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
                number = str(100 + len(statuses))
                statuses[key] = {"id": number, "content": f"<p>{text}</p>", "created_at": made}
            return 200, statuses[key]
        if name == "/api/v1/accounts/7/statuses":
            return 200, list(reversed(statuses.values()))
        if name in ("/api/v2/media", "/api/v1/media"):
            return 200, {
                "id": "55",
                "type": "image",
                "url": "https://x.invalid/a.jpg",
                "description": None,
            }
        return 404, {"error": "Record not found"}

    service = Service(answer)
    service.statuses = statuses  # type: ignore[attr-defined]
    return service


def telegram() -> Service:
    """One chat."""
    messages: list[Any] = []

    def answer(method: str, path: str, body: Any, headers: Any) -> Answer:
        _, bot, name = path.split("/")
        if bot != "bot123456:right-token-of-telegram":
            return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}
        if name == "getMe":
            return 200, {"ok": True, "result": {"id": 123456, "username": "rig_bot"}}
        messages.append(body)
        return 200, {"ok": True, "result": {"message_id": len(messages)}}

    service = Service(answer)
    service.messages = messages  # type: ignore[attr-defined]
    return service


def webhook() -> Service:
    """Takes everything once under its key."""
    taken: dict[str, Any] = {}

    def answer(method: str, path: str, body: Any, headers: Any) -> Answer:
        taken.setdefault(headers["idempotency-key"], body)
        return 200, {"id": f"hook-{len(taken)}"}

    service = Service(answer)
    service.taken = taken  # type: ignore[attr-defined]
    return service
