"""The door of the HTTP side: who may come in, and how much they may bring.

A page in the user's browser can send requests to 127.0.0.1 too: the Host header must be one of ours (else
a foreign name was pointed at this box), and a foreign Origin is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/v1/health")
"""Paths that need no key."""


class RequestGuard:
    """Wraps the application; `limit` is bytes of a body, `patience` seconds for it to arrive."""

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
        self._hosts = {"localhost", socket.gethostname().lower(), *(h.lower() for h in hosts)}
        self._key = api_key.encode() if api_key else None
        self._limit = limit
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if (refusal := self._refusal(scope["path"], headers)) is not None:
            await send_error(send, *refusal)
            return
        body = b""
        if scope["method"] in ("POST", "PUT", "PATCH"):
            try:
                body = await asyncio.wait_for(self._body(receive), self._patience)
            except TimeoutError:
                await send_error(
                    send, 408, f"The body did not arrive within {self._patience:.0f} s."
                )
                return
            except ValueError:
                await send_error(send, 413, f"The body is larger than {self._limit:,} bytes.")
                return
            except ConnectionError:
                return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        if not self._is_ours(headers.get("host", "")):
            return 421, (
                f"This server does not answer to the name {headers.get('host', '')[:100]!r}: use its "
                f"address, or start it with --allow-host NAME."
            )
        origin = headers.get("origin")
        if origin and not self._is_ours(origin.partition("://")[2]):
            return 403, f"Pages of {origin[:100]!r} may not use this server."
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limit:
            return 413, f"The body is larger than {self._limit:,} bytes."
        if self._key is not None and path not in OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            given = given or headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
                return 401, "The API key is missing or wrong: send Authorization: Bearer KEY."
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.strip("[]").rstrip(".").lower()
        if name in self._hosts or name.removesuffix(".local") in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address can't be pointed elsewhere as a name can

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise ValueError
            if not message.get("more_body", False):
                return b"".join(parts)


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
    if status in (408, 413):
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
