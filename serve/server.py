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

import click
import uvicorn

from rig.errors import RigError, WrongUse
from rig.server import running_servers, sd_notify
from serve.api.app import App
from serve.api.connections import ACCEPTED_AT_ONCE, WAITING_CONNECTIONS, limited_protocol
from serve.api.idle import IdleTimer
from serve.config import EngineConfig, ServerConfig
from serve.engine.supervisor import EngineSupervisor
from serve.log import configure_log

GRACE = 10
"""Seconds that requests in progress get when the server is told to leave."""


LAST_CALL = 1.5
"""Seconds for those who had just found us when we took our address back: a bot that comes every five
minutes meets a server that leaves after five minutes at its last instant."""


@dataclass(frozen=True)
class ListenAddress:
    """Where to listen; port 0 = any free one."""

    host: str
    port: int


class ModelServer:
    """Serves `model`, as the user calls it, on `address` until a signal, or until `idle` says so."""

    def __init__(
        self,
        model: str,
        address: ListenAddress,
        engine: EngineConfig,
        server: ServerConfig,
        idle: IdleTimer,
    ) -> None:
        self._model = model
        self._address = address
        self._host = EngineSupervisor(engine)
        self._app = App(self._host, server, idle)
        self._key = server.api_key
        self._announced: Path | None = None

    def serve_until_stopped(self) -> None:
        """Serve; returns when the service has left. Raises RigError when it can't begin."""
        configure_log()
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
            http=limited_protocol(),
            backlog=ACCEPTED_AT_ONCE,
        )
        server = UvicornServer(config)
        loop = asyncio.get_running_loop()
        for number in _stop_signals():
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, server.request_exit)
        serving = asyncio.create_task(server.serve(sockets=[line]))
        try:
            await self._load()
            line.listen(WAITING_CONNECTIONS)
            url = self._url(line)
            self._announce(url)
            sd_notify.notify_ready(f"serving {self._app.config.name} at {url}")
            click.echo(f"Serving {self._app.config.name} at {url}", err=True)
            await self._watch(server, serving, url)
        finally:
            sd_notify.notify_stopping()
            self._withdraw()
            server.request_exit()
            await serving
            await self._host.shut_down()

    async def _load(self) -> None:
        loading = asyncio.create_task(self._host.load_model())
        while not (await asyncio.wait({loading}, timeout=5))[0]:
            sd_notify.extend_timeout(30)
        await loading

    def _announce(self, url: str) -> None:
        self._announced = running_servers.announce_server(self._model, url=url, api_key=self._key)

    def _withdraw(self) -> None:
        if self._announced is not None:
            running_servers.withdraw_server(self._announced)
            self._announced = None

    async def _watch(self, server: UvicornServer, serving: asyncio.Task[None], url: str) -> None:
        """Wait for the end; meanwhile unload and leave when idle, and ping systemd's watchdog."""
        every = min(1.0, sd_notify.watchdog_seconds() or 1.0)
        pinged = time.monotonic()
        while not serving.done() and not server.should_exit:
            await asyncio.wait({serving}, timeout=every)
            match self._app.idle.due_action(self._host.is_loaded):
                case "exit":
                    self._withdraw()
                    await asyncio.wait({serving}, timeout=LAST_CALL)
                    if self._app.idle.due_action(self._host.is_loaded) == "exit":
                        click.echo("Nobody has asked for anything: leaving.", err=True)
                        return
                    self._announce(url)
                case "unload":
                    await self._host.unload_model()
            limit = sd_notify.watchdog_seconds()
            if limit and time.monotonic() - pinged >= limit and await self._answers(limit):
                sd_notify.ping_watchdog()
                pinged = time.monotonic()

    async def _answers(self, seconds: float) -> bool:
        """Whether the engine is well: it answers, or it is not there because nobody needs it."""
        if not self._host.is_loaded:
            return not self._host.failure
        try:
            await asyncio.wait_for(self._host.ask_engine("counts"), seconds)
        except (TimeoutError, RigError):
            return False
        return True

    def _url(self, line: socket.socket) -> str:
        host, port = line.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UvicornServer(uvicorn.Server):
    """uvicorn, with our own signals and a way to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `ModelServer`."""
        yield

    def request_exit(self) -> None:
        """Stop taking requests and finish those in progress."""
        self.should_exit = True


def _stop_signals() -> list[signal.Signals]:
    """The signals that end the server.

    A SIGINT that was ignored when the process began stays ignored: a shell does that to what runs in the
    background of a script, so that Ctrl-C ends the script and not the server.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM]


@contextlib.contextmanager
def _listening(address: ListenAddress) -> Iterator[socket.socket]:
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
