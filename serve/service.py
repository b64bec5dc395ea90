"""The life of one `rig serve`: open the port, load, say where it is, leave when told or idle."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvicorn

from rig import notify, servers
from rig.errors import RigError, WrongUse
from serve import header
from serve.app import App, AppSettings
from serve.engine_host import EngineHost, Settings
from serve.idle import Idle

GRACE = 10
"""Seconds that requests in progress get when the server is told to leave."""


LAST_CALL = 1.5
"""Seconds for those who had just found us when we took our address back: a bot that comes every five
minutes meets a server that leaves after five minutes at its last instant."""


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 = any free one."""

    host: str
    port: int


class Service:
    """Runs `app` on `address` until a signal, or until `idle` says so."""

    def __init__(
        self, model: str, address: Address, host: EngineHost, app: App, announced_key: str | None
    ) -> None:
        self._model = model
        self._address = address
        self._host = host
        self._app = app
        self._key = announced_key
        self._announced: Path | None = None

    def run(self) -> None:
        """Serve; returns when the service has left. Raises RigError when it can't begin."""
        with _listening(self._address) as line:
            asyncio.run(self._run(line))

    async def _run(self, line: socket.socket) -> None:
        config = uvicorn.Config(
            self._app.asgi,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=75,
        )
        server = Server(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, server.leave)
        serving = asyncio.create_task(server.serve(sockets=[line]))
        try:
            await self._load()
            url = self._url(line)
            self._announce(url)
            notify.ready(f"serving {self._app.settings.name} at {url}")
            click.echo(f"Serving {self._app.settings.name} at {url}", err=True)
            await self._watch(server, serving, url)
        finally:
            notify.stopping()
            self._withdraw()
            server.leave()
            await serving
            await self._host.close()

    async def _load(self) -> None:
        loading = asyncio.create_task(self._host.load())
        while not (await asyncio.wait({loading}, timeout=5))[0]:
            notify.extend(30)
        await loading

    def _announce(self, url: str) -> None:
        self._announced = servers.announce(self._model, url=url, api_key=self._key)

    def _withdraw(self) -> None:
        if self._announced is not None:
            servers.withdraw(self._announced)
            self._announced = None

    async def _watch(self, server: Server, serving: asyncio.Task[None], url: str) -> None:
        """Wait for the end; meanwhile unload and leave when idle, and ping systemd's watchdog."""
        every = min(1.0, notify.watchdog_seconds() or 1.0)
        pinged = time.monotonic()
        while not serving.done() and not server.should_exit:
            await asyncio.wait({serving}, timeout=every)
            match self._app.idle.due(self._host.loaded):
                case "exit":
                    self._withdraw()
                    await asyncio.wait({serving}, timeout=LAST_CALL)
                    if self._app.idle.due(self._host.loaded) == "exit":
                        click.echo("Nobody has asked for anything: leaving.", err=True)
                        return
                    self._announce(url)
                case "unload":
                    await self._host.unload()
            limit = notify.watchdog_seconds()
            if limit and time.monotonic() - pinged >= limit and await self._answers(limit):
                notify.alive()
                pinged = time.monotonic()

    async def _answers(self, seconds: float) -> bool:
        """Whether the engine is well: it answers, or it is not there because nobody needs it."""
        if not self._host.loaded:
            return not self._host.failure
        try:
            await asyncio.wait_for(self._host.ask("counts"), seconds)
        except (TimeoutError, RigError):
            return False
        return True

    def _url(self, line: socket.socket) -> str:
        host, port = line.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, with our own signals and a way to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `Service`."""
        yield

    def leave(self) -> None:
        """Stop taking requests and finish those in progress."""
        self.should_exit = True


def make(
    *,
    model: str,
    path: Path,
    name: str,
    address: Address,
    engine: dict[str, Any],
    app: dict[str, Any],
    idle: Idle,
) -> Service:
    """Put the parts together; `engine` and `app` are fields of `Settings` and `AppSettings`."""
    settings = Settings(model=str(path), **engine)
    stat = path.stat()
    family = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    host = EngineHost(settings, family)
    mark, parallel = header.fingerprint(path), settings.parallel
    made = App(host, AppSettings(name=name, fingerprint=mark, parallel=parallel, **app), idle)
    return Service(model, address, host, made, made.settings.api_key)


@contextlib.contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        line = socket.socket(family, kind, protocol)
        if hasattr(socket, "SO_REUSEPORT"):  # not on Windows, where it would let two servers in
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            line.bind(where)
        except BaseException:
            line.close()
            raise
    except socket.gaierror as error:
        raise WrongUse(f"--host {address.host}: there is no such address ({error}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RigError(
                f"Port {address.port} on {address.host} is in use: give another one with --port, "
                f"or 0 for any."
            ) from error
        raise RigError(
            f"Can't listen on {address.host} port {address.port}: {error.strerror}."
        ) from error
    with line:
        yield line
