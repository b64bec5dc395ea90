"""The engine as the HTTP side sees it: a process that is started, watched, and started again.

When it dies, every request that it was working on is handed to its successor with the tokens that were
already written, so its reader sees a pause and not an error; only the request that was at fault, or that
was there at two crashes, ends. `unload_model` ends the process: that is the one way to give all memory back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig.errors import RigError
from serve.config import EngineConfig
from serve.hardware import machine
from serve.log import log_mistake

PROGRAM: tuple[str, ...] = ("-m", "serve.engine.worker")
"""What Python runs as the engine."""
LINE_LIMIT = 1 << 28
CRASHES_ALLOWED = 5
"""A request that was there when the process was killed this many times ends."""
LEAVE_SECONDS = 15.0
"""An engine that is told to leave may take this long to write its prefixes to disk."""
RETRY_SECONDS = 5.0
"""After a failed load, requests are refused at once for this long."""
KILLED_LOADING_SECONDS = 60.0
"""A process that is killed while it loads is started again for this long."""


class EngineDown(RigError):
    """The model can't be loaded or keeps dying; the message says why."""


class EngineRefused(RigError):
    """The request can't be served as it is asked (it does not fit, its grammar is wrong)."""


@dataclass
class Ticket:
    """One request on its way: what was asked, and what has come so far."""

    id: int
    asked: dict[str, Any]
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    tokens: list[int] = field(default_factory=list)
    crashes: int = 0
    submitted: bool = False
    paused: bool = False


class EngineSupervisor:
    """Owns the engine process. All methods belong to one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.model_info: dict[str, Any] | None = None
        """What the engine said of its model; kept while it is unloaded."""
        self.crashes = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.failure = ""
        self.on_output: Callable[[dict[str, Any]], None] = lambda event: None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._loading = asyncio.Lock()
        self._tickets: dict[int, Ticket] = {}
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._suspects: list[Ticket] = []
        """Requests that were in the batch at a failed assertion: each runs alone, so that the one
        at fault is found."""
        self._retry_at = 0.0
        self._last_id = 0
        handle, self._crumb = tempfile.mkstemp(prefix="rig-crumb-")
        os.write(handle, bytes(16))
        os.close(handle)

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory and answers."""
        return self._ready.is_set()

    @property
    def num_requests(self) -> int:
        """Requests on their way."""
        return len(self._tickets)

    @property
    def engine_pid(self) -> int | None:
        """The process that holds the model."""
        return self._process.pid if self._process else None

    async def load_model(self) -> None:
        """Bring the model into memory; at once when it is there. Raises EngineDown."""
        async with self._loading:
            if self.is_loaded:
                return
            began = time.monotonic()
            if began < self._retry_at:
                raise EngineDown(self.failure)
            try:
                while not await self._start():
                    self.crashes += 1
                    if time.monotonic() - began > KILLED_LOADING_SECONDS:
                        raise EngineDown(self.failure)
            except EngineDown:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                raise
            self.load_seconds = time.monotonic() - began
            self.loads += 1

    async def unload_model(self) -> None:
        """Give the memory back; what is still being written is cut off with an error."""
        async with self._loading:
            process, self._process = self._process, None
            self._ready.clear()
            if process is None:
                return
            with contextlib.suppress(OSError, RuntimeError):
                self._write(process, {"do": "quit"})
            try:
                await asyncio.wait_for(process.wait(), LEAVE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
            if self._reader is not None:
                await self._reader

    async def shut_down(self) -> None:
        """Unload for good."""
        await self.unload_model()
        for ticket in list(self._tickets.values()):
            self._finish(ticket, "error", "The server is shutting down.")
        Path(self._crumb).unlink(missing_ok=True)

    def new_ticket(self, asked: dict[str, Any]) -> Ticket:
        """A number for a request that `stream_outputs` will submit."""
        self._last_id += 1
        return Ticket(self._last_id, asked)

    async def stream_outputs(self, ticket: Ticket) -> AsyncGenerator[dict[str, Any]]:
        """Submit a request and yield its events; leaving the loop early cancels it.

        Raises EngineDown when there is no engine, Refused when the engine does not take the request.
        """
        self._tickets[ticket.id] = ticket
        try:
            await self.load_model()
            self._submit(ticket)
            while True:
                event = await ticket.events.get()
                if event.get("finish") == "refused":
                    raise EngineRefused(event["error"])
                yield event
                if event.get("finish"):
                    return
        finally:
            if ticket.id in self._tickets:
                self._cancel(ticket)
                self._forget(ticket)

    async def ask_engine(self, do: str, **what: Any) -> dict[str, Any]:
        """Ask a question that is answered in one piece. Raises EngineDown, EngineRefused."""
        for _ in range(CRASHES_ALLOWED):
            await self.load_model()
            self._last_id += 1
            id = self._last_id
            future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._questions[id] = future
            assert self._process is not None
            self._write(self._process, {"do": do, "id": id, **what})
            try:
                found = await future
            except ConnectionError:
                continue
            except asyncio.CancelledError:
                if self._process is not None and self.is_loaded:
                    self._write(self._process, {"do": "cancel", "id": id})
                raise
            finally:
                self._questions.pop(id, None)
            if "refused" in found:
                raise EngineRefused(found["refused"])
            return found
        raise EngineDown("The model process stopped while it worked on this request.")

    def pause_request(self, ticket: Ticket, paused: bool) -> None:
        """Let a reply rest where it is, or go on."""
        ticket.paused = paused
        if ticket.submitted and self._process is not None and self.is_loaded:
            self._write(self._process, {"do": "pause", "id": ticket.id, "paused": paused})

    # The process ------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Start the process and wait for its model; False when it was killed before that.

        Raises EngineDown when it ended for a reason of its own, which a second try would not mend.
        """
        Path(self._crumb).write_bytes(bytes(16))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            *PROGRAM,
            self.config.to_json(),
            self._crumb,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            env=machine.model_environment(),
        )
        assert process.stdout is not None
        try:
            line = await process.stdout.readline()
        except BaseException:
            process.kill()
            raise
        hello = json.loads(line) if line else {}
        if "ready" not in hello:
            code = await process.wait()
            self.failure = hello.get("failed") or (
                f"The model process ended while loading ({_how(code)})."
            )
            if -code == signal.SIGKILL and "failed" not in hello:
                return False
            raise EngineDown(self.failure)
        self.failure = ""
        self.model_info = hello["ready"]
        self._process = process
        self._ready.set()
        self._reader = asyncio.create_task(self._read(process))
        return True

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._take_message(json.loads(line))
        except Exception as error:  # a line that can't be read: what it was about is not known
            log_mistake(error)
            process.kill()
        code = await process.wait()
        for future in self._questions.values():
            if not future.done():
                future.set_exception(ConnectionError())
        if self._process is process:
            self._ready.clear()
            self._process = None
            await self._after_crash(code)
        else:
            for ticket in list(self._tickets.values()):
                self._finish(ticket, "error", "The model was unloaded while it wrote.")

    def _take_message(self, message: dict[str, Any]) -> None:
        for event in message.get("events", ()):
            try:
                self._route(event)
            except Exception as error:  # it ends the request that it is about, and no other
                log_mistake(error)
                if (ticket := self._tickets.get(event.get("id"))) is not None:
                    self._cancel(ticket)
                    self._finish(ticket, "error", f"The reply was lost ({type(error).__name__}).")
        future = self._questions.get(message.get("answer", 0))
        if future is not None and not future.done():
            future.set_result(message)

    def _cancel(self, ticket: Ticket) -> None:
        if self._process is not None and self.is_loaded:
            self._write(self._process, {"do": "cancel", "id": ticket.id})

    def _route(self, event: dict[str, Any]) -> None:
        ticket = self._tickets.get(event["id"])
        if ticket is None:
            return
        ticket.tokens += event.get("tokens", ())
        self.on_output(event)
        ticket.events.put_nowait(event)
        if event.get("finish"):
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """A request has left; when it was the suspect that runs alone, the next one follows."""
        self._tickets.pop(ticket.id, None)
        if ticket not in self._suspects:
            return
        alone = self._suspects[0] is ticket
        self._suspects.remove(ticket)
        if alone and self.is_loaded:
            for other in self._suspects[:1] or list(self._tickets.values()):
                if other.submitted:
                    self._submit(other)

    def _submit(self, ticket: Ticket) -> None:
        """Hand a request to the process; while a culprit is looked for, only the first suspect."""
        ticket.submitted = True
        if self._suspects and ticket is not self._suspects[0]:
            return
        assert self._process is not None
        message = {"do": "submit", "id": ticket.id, "already": ticket.tokens, **ticket.asked}
        self._write(self._process, message)
        if ticket.paused and not self._suspects:
            self._write(self._process, {"do": "pause", "id": ticket.id, "paused": True})

    def _write(self, process: asyncio.subprocess.Process, message: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _finish(self, ticket: Ticket, finish: str, error: str) -> None:
        self._forget(ticket)
        ticket.events.put_nowait({"id": ticket.id, "finish": finish, "error": error})

    async def _after_crash(self, code: int) -> None:
        """End the request that was at fault, load again, and hand over the others."""
        self.crashes += 1
        handed = [t for t in self._tickets.values() if t.submitted]
        how = f"The model process ended while it worked on this request ({_how(code)})."
        guilty = {id for id in struct.unpack("qq", Path(self._crumb).read_bytes()) if id}
        if self._suspects:
            guilty.add(self._suspects[0].id)
        if -code != signal.SIGKILL:  # an assertion, not the kernel or a person
            for ticket in handed:
                if ticket.id in guilty or len(handed) == 1:
                    self._finish(ticket, "error", how)
            if not guilty:
                self._suspects = [t for t in handed if t.id in self._tickets]
        for ticket in handed:
            ticket.crashes += 1
            if ticket.id in self._tickets and ticket.crashes >= CRASHES_ALLOWED:
                self._finish(ticket, "error", how)
        if not self._tickets:
            return  # the next request loads it
        try:
            await self.load_model()
        except EngineDown as error:
            for ticket in list(self._tickets.values()):
                self._finish(ticket, "error", error.message)
            return
        for ticket in list(self._tickets.values()):
            if ticket.submitted:
                self._submit(ticket)


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
