"""The door of the HTTP side: who may come in, and how much they may bring.

A page in the user's browser can send requests to 127.0.0.1 too: the Host header must be one of ours (else
a foreign name was pointed at this box), and an Origin must be this very machine. What a page can send without
asking, a body that calls itself plain text, is refused too.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rig.server.served_names import ServedNames
from serve.hardware.machine import trim_memory

OPEN = ("/health", "/v1/health")
"""Paths that need no key."""
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
"""What a form of a page sends. curl says so of any body too, but without the marks of a page."""
SMALL_BODY = 1 << 16
TRIM_SECONDS = 1.0
BODIES = 4
"""How many bodies of full length may be held at once; small ones always have room."""


class RequestGuard:
    """Wraps the application; `limit` is bytes of a body, `patience` seconds for it to arrive.

    All large bodies that are held at once may have `BODIES` times the limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] = (),
        api_key: str | None = None,
        limit: int,
        patience: float = 30.0,
    ) -> None:
        self._app = app
        self._names = ServedNames(hosts)
        self._key = api_key.encode() if api_key else None
        self._limit = limit
        self._patience = patience
        self._held = 0
        """Bytes of large bodies that have arrived and are not read yet."""
        self._trim_later: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        served = (scope.get("server") or ("",))[0]
        if (refusal := self._refusal(scope["path"], headers, served)) is not None:
            await send_error(send, *refusal)
            return
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        held = _Body()
        try:
            if (refusal := await self._read_body(receive, held)) is None:
                await self._app(scope, self._again(held, receive), send)
            elif refusal[0]:
                await send_error(send, *refusal)
        finally:
            self._release(held)

    async def _read_body(self, receive: Receive, held: _Body) -> tuple[int, str] | None:
        """Collect the body; why it isn't taken (0 when nobody is there any more), or None."""
        try:
            return await asyncio.wait_for(self._collect(receive, held), self._patience)
        except TimeoutError:
            return 408, f"The body did not arrive within {self._patience:.0f} s."

    async def _collect(self, receive: Receive, held: _Body) -> tuple[int, str] | None:
        size, whole = 0, False
        while not whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 0, ""
            part = message.get("body", b"")
            whole = not message.get("more_body", False)
            held.parts.append(part)
            size += len(part)
            if size > self._limit:
                return 413, f"The body is larger than {self._limit:,} bytes."
            if size > SMALL_BODY:
                more = len(part) if held.counted else size
                held.counted += more
                self._held += more
                if self._held > BODIES * self._limit:
                    return 503, "Other large requests are just arriving: try again in 5 s."
        return None

    def _again(self, held: _Body, receive: Receive) -> Receive:
        """What the application receives: the body, once, and then what the line says."""

        async def again() -> Message:
            if held.sent:
                return await receive()
            held.sent = True
            body = b"".join(held.parts)
            self._release(held)
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _release(self, held: _Body) -> None:
        if held.counted and self._trim_later is None:
            self._trim_later = asyncio.get_running_loop().call_later(TRIM_SECONDS, self._trim)
        self._held -= held.counted
        held.counted = 0
        held.parts.clear()

    def _trim(self) -> None:
        """Give the memory of large bodies back to the system: glibc would keep it for the next ones."""
        self._trim_later = None
        trim_memory()

    def _refusal(self, path: str, headers: dict[str, str], served: str) -> tuple[int, str] | None:
        if not self._names.has_host(headers.get("host", "")):
            return 421, (
                f"This server does not answer to the name {headers.get('host', '')[:100]!r}: use its "
                f"address, or start it with --allow-host NAME."
            )
        origin = headers.get("origin")
        if origin and not self._names.has_origin(origin, served):
            return 403, f"Pages of {origin[:100]!r} may not use this server."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/plain" or (kind in FORMS and _from_a_page(headers)):
            return 415, "The body must be JSON: send Content-Type: application/json."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._limit:
            return 413, f"The body is larger than {self._limit:,} bytes."
        if self._key is not None and path not in OPEN:
            scheme, _, given = headers.get("authorization", "").strip().partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
            given = given or headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
                return 401, "The API key is missing or wrong: send Authorization: Bearer KEY."
        return None


class _Body:
    """A body as it arrives."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.counted = 0
        self.sent = False


def _from_a_page(headers: dict[str, str]) -> bool:
    return "origin" in headers or any(name.startswith("sec-fetch-") for name in headers)


async def send_error(
    send: Send, status: int, message: str, headers: dict[str, str] | None = None
) -> None:
    """Answer with an error in OpenAI's form."""
    body = json.dumps(error_body(status, message)).encode()
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    if status == 503:
        fields["retry-after"] = "5"
    if status in (408, 413, 415, 503):
        fields["connection"] = "close"  # the rest of the body is not read
    raw = [(k.encode(), v.encode("latin-1")) for k, v in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    kind = KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
