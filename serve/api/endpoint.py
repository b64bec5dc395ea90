"""One reply on its way to its client: status, stream, signs of life, and who goes away is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rig.errors import RigError
from serve.api.idle import IdleTimer
from serve.api.metrics import ServerMetrics
from serve.api.middleware import error_body
from serve.api.responses import (
    Choice,
    ChoiceDelta,
    CompletionPlan,
    CompletionRunner,
    full_response,
    sse_event,
    stream_response,
)

BEAT_SECONDS = 10.0
"""A stream that has nothing to say sends a comment this often, so that nobody takes it for dead."""


class ServerContext(Protocol):
    """What a reply needs of the server."""

    runner: CompletionRunner
    metrics: ServerMetrics
    idle: IdleTimer

    @property
    def time_limit(self) -> float:
        """Seconds that a request may take, waiting included."""

    def describe_error(self, error: Exception) -> tuple[int, str, dict[str, str]]:
        """Status, sentence and headers for what went wrong."""


class CompletionEndpoint:
    """The two completion endpoints as a bare ASGI application: it must notice who goes away."""

    def __init__(
        self,
        server: ServerContext,
        plan: Callable[[bytes, Headers], Awaitable[CompletionPlan]],
    ) -> None:
        self._server = server
        self._plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = await Request(scope, receive).body()
        with self._server.idle.track_request():
            work = asyncio.create_task(self._answer(body, Headers(scope=scope), send))
            del body  # the reply may take an hour
            watch = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({work, watch}, return_when="FIRST_COMPLETED")
                if work.done():
                    await work
            finally:
                work.cancel()
                watch.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)

    async def _answer(self, body: bytes, headers: Headers, send: Send) -> None:
        began = time.monotonic()
        async with asyncio.timeout(self._server.time_limit):
            plan = await self._plan(body, headers)
        del body
        choices: dict[int, Choice] = {}
        line = ResponseSender(send)
        replies = self._server.runner.stream_deltas(plan)
        try:
            async with asyncio.timeout(self._server.time_limit):
                if plan.stream:
                    await self._stream(plan, _noting(replies, choices), line)
                else:
                    async for _ in _noting(replies, choices):
                        pass
            if not plan.stream:
                await line.send_json(full_response(plan, [choices[i] for i in sorted(choices)]))
        except (RigError, TimeoutError) as error:
            if not line.started:
                raise
            status, message, _ = self._server.describe_error(error)
            await line.send_chunk(sse_event(error_body(status, message)))
            await line.send_end()
        finally:
            await replies.aclose()
            self._count(plan, choices, began)

    async def _stream(self, plan: CompletionPlan, replies: Any, line: ResponseSender) -> None:
        beat = asyncio.create_task(line.send_heartbeats())
        try:
            async with contextlib.aclosing(stream_response(plan, replies)) as stream:
                async for piece in stream:
                    await line.send_chunk(piece)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
        await line.send_end()

    def _count(self, plan: CompletionPlan, choices: dict[int, Choice], began: float) -> None:
        metrics = self._server.metrics
        priority = "person" if plan.urgent else "bot"
        for index in range(len(plan.asked)):
            choice = choices.get(index)
            finish = choice.finish if choice else None
            metrics.requests.labels(finish or "cancelled", priority).inc()
            if choice is not None:
                metrics.add_timings(choice.timings)
                if choice.first_at:
                    metrics.first_token_seconds.observe(choice.first_at - began)
        metrics.request_seconds.observe(time.monotonic() - began)


async def _noting(
    replies: AsyncIterator[ChoiceDelta], choices: dict[int, Choice]
) -> AsyncGenerator[ChoiceDelta]:
    async for piece in replies:
        choices[piece.choice.index] = piece.choice
        yield piece


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ResponseSender:
    """The way back to the client; `started` once the status is out and can't be changed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._spoke = time.monotonic()

    async def _start(self, kind: bytes, length: int | None = None) -> None:
        self.started = True
        headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_json(self, body: dict[str, Any]) -> None:
        """Send one JSON object and be done."""
        data = json.dumps(body).encode()
        await self._start(b"application/json", len(data))
        await self._send({"type": "http.response.body", "body": data})

    async def send_chunk(self, data: bytes) -> None:
        """Send the next piece of a stream."""
        if not self.started:
            await self._start(b"text/event-stream")
        self._spoke = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def send_heartbeats(self) -> None:
        """Send a comment whenever there was nothing to say for a while."""
        while True:
            quiet = time.monotonic() - self._spoke
            if quiet >= BEAT_SECONDS:
                await self.send_chunk(b": waiting\n\n")
            else:
                await asyncio.sleep(BEAT_SECONDS - quiet)

    async def send_end(self) -> None:
        """Send the end of a stream."""
        await self._send({"type": "http.response.body", "body": b""})
