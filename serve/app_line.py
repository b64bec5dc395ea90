"""One reply on its way to its client: status, stream, signs of life, and who goes away is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rig.errors import RigError
from serve.app_guard import error_body
from serve.app_replies import Choice, Piece, Plan, Replies, event, pieces, whole
from serve.idle import Idle
from serve.metrics import Metrics

BEAT_SECONDS = 10.0
"""A stream that has nothing to say sends a comment this often, so that nobody takes it for dead."""


class Desk(Protocol):
    """What a reply needs of the server."""

    replies: Replies
    metrics: Metrics
    idle: Idle

    @property
    def time_limit(self) -> float:
        """Seconds that a request may take, waiting included."""

    def describe(self, error: Exception) -> tuple[int, str, dict[str, str]]:
        """Status, sentence and headers for what went wrong."""


class Reply:
    """The two completion endpoints as a bare ASGI application: it must notice who goes away."""

    def __init__(self, desk: Desk, plan: Callable[[Request], Awaitable[Plan]]) -> None:
        self._desk = desk
        self._plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        plan = await self._plan(request)
        with self._desk.idle.busy():
            work = asyncio.create_task(self._answer(plan, send))
            watch = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({work, watch}, return_when="FIRST_COMPLETED")
                if work.done():
                    await work
            finally:
                work.cancel()
                watch.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)

    async def _answer(self, plan: Plan, send: Send) -> None:
        began = time.monotonic()
        choices: dict[int, Choice] = {}
        line = Line(send)
        replies = self._desk.replies.run(plan)
        try:
            async with asyncio.timeout(self._desk.time_limit):
                if plan.stream:
                    await self._stream(plan, _noting(replies, choices), line)
                else:
                    async for _ in _noting(replies, choices):
                        pass
            if not plan.stream:
                await line.whole(whole(plan, [choices[i] for i in sorted(choices)]))
        except (RigError, TimeoutError) as error:
            if not line.started:
                raise
            status, message, _ = self._desk.describe(error)
            await line.piece(event(error_body(status, message)))
            await line.end()
        finally:
            await replies.aclose()
            self._count(plan, choices, began)

    async def _stream(self, plan: Plan, replies: Any, line: Line) -> None:
        beat = asyncio.create_task(line.beat())
        try:
            async with contextlib.aclosing(pieces(plan, replies)) as stream:
                async for piece in stream:
                    await line.piece(piece)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
        await line.end()

    def _count(self, plan: Plan, choices: dict[int, Choice], began: float) -> None:
        metrics = self._desk.metrics
        priority = "person" if plan.urgent else "bot"
        for index in range(len(plan.asked)):
            choice = choices.get(index)
            finish = choice.finish if choice else None
            metrics.requests.labels(finish or "cancelled", priority).inc()
            if choice is not None:
                metrics.note(choice.timings)
                if choice.first_at:
                    metrics.first.observe(choice.first_at - began)
        metrics.whole.observe(time.monotonic() - began)


async def _noting(
    replies: AsyncIterator[Piece], choices: dict[int, Choice]
) -> AsyncGenerator[Piece]:
    async for piece in replies:
        choices[piece.choice.index] = piece.choice
        yield piece


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Line:
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

    async def whole(self, body: dict[str, Any]) -> None:
        """Send one JSON object and be done."""
        data = json.dumps(body).encode()
        await self._start(b"application/json", len(data))
        await self._send({"type": "http.response.body", "body": data})

    async def piece(self, data: bytes) -> None:
        """Send the next piece of a stream."""
        if not self.started:
            await self._start(b"text/event-stream")
        self._spoke = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def beat(self) -> None:
        """Send a comment whenever there was nothing to say for a while."""
        while True:
            quiet = time.monotonic() - self._spoke
            if quiet >= BEAT_SECONDS:
                await self.piece(b": waiting\n\n")
            else:
                await asyncio.sleep(BEAT_SECONDS - quiet)

    async def end(self) -> None:
        """Send the end of a stream."""
        await self._send({"type": "http.response.body", "body": b""})
