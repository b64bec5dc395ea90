"""Find the server that answers, or start one: the way every shell command and bot comes to a model.

Order: the address that was given (flag, `RIG_URL`, `[model] url`), else the server that already serves
the model (a running `rig serve` leaves its address in the state folder), else a new `rig serve` of
`[model] name` that leaves by itself when idle.

Two callers at the same moment start one server: the second waits at a lock and then finds the first one's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rig.errors import RigError, WrongUse
from rig.runs import find_run
from rig.server import running_servers
from rig.server.client import ModelClient
from rig.validation import FrozenModel, load_section


class ModelConfig(FrozenModel):
    """The table `[model]`: which model answers when a command names none."""

    name: str | None = None
    """A run folder, a GGUF file, or a hub reference."""
    url: str | None = None
    """A server that runs already, such as http://nuc:8377."""
    idle: int = 300
    """Seconds without a request after which a server started on demand leaves (0 = never)."""
    start_timeout: float = 180.0
    """Seconds that a server may take to load its model."""


def connect_model(
    url: str | None = None,
    model: str | None = None,
    *,
    api_key: str | None = None,
    priority: str = "person",
    timeout: float = 600.0,
) -> ModelClient:
    """Return a client of a server that is ready, started if need be.

    `url` wins over `model`; without both, the table `[model]` decides, then any running `rig serve`. With
    an address, a `model` that is no file here is the name by which that server knows its model.
    """
    settings = load_section("model", ModelConfig)
    name = model or settings.name
    url = url or (None if model else settings.url)
    if url:
        called = name if name and not find_run(name).exists() else None
        return ModelClient(url, api_key=api_key, priority=priority, timeout=timeout, model=called)
    found = find_running_server(name)
    if found is None:
        if name is None:
            raise WrongUse(
                "No model is named and none is running: give --model RUN|FILE or --url, "
                "or set [model] name in rig.toml."
            )
        found = start_server(name, idle=settings.idle, timeout=settings.start_timeout)
    return ModelClient(
        found["url"],
        api_key=api_key or found.get("api_key"),
        priority=priority,
        timeout=timeout,
    )


def find_running_server(name: str | None) -> dict[str, Any] | None:
    """The announced server of the model that really answers; any server when `name` is None."""
    for found in running_servers.live_servers(name):
        with ModelClient(found["url"], api_key=found.get("api_key")) as client:
            if client.is_ready():
                return found
    return None


def start_server(name: str, *, idle: int, timeout: float) -> dict[str, Any]:
    """Start `rig serve NAME` in the background and wait until it answers; or find that somebody did."""
    import filelock

    deadline = time.monotonic() + timeout
    running_servers.servers_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = filelock.FileLock(
        running_servers.servers_folder() / f"{running_servers.model_key(name)}.lock"
    )
    try:
        with lock.acquire(timeout=timeout):
            return _awaited(name, deadline) or _started(name, idle, deadline, timeout)
    except filelock.Timeout:
        raise RigError(
            f"Another process has been starting {name} for {timeout:.0f} s: see {_log(name)}."
        ) from None


def stop_server(found: dict[str, Any]) -> None:
    """Ask an announced server to leave: it finishes what it has begun."""
    with contextlib.suppress(ProcessLookupError):  # it has just left
        os.kill(int(found["pid"]), signal.SIGTERM)


def serve_command(name: str, idle: int) -> list[str]:
    """What starts a server that takes any free port and leaves after `idle` seconds without work."""
    serve = [sys.executable, "-P", "-m", "rig", "serve", running_servers.model_identity(name)]
    return [*serve, "--port", "0", "--idle-exit", str(idle)]


def _awaited(name: str, deadline: float) -> dict[str, Any] | None:
    """The server that is there; one that lives and does not answer yet is given time, not a rival."""
    while True:
        if found := find_running_server(name):
            return found
        living = running_servers.live_servers(name)
        if not living:
            return None
        if time.monotonic() > deadline:
            raise RigError(
                f"{living[0]['url']} serves {name} and does not answer: "
                f"stop it with `rig serve stop`, or wait."
            )
        time.sleep(0.2)


def _started(name: str, idle: int, deadline: float, timeout: float) -> dict[str, Any]:
    click.echo(f"Loading {name} ...", err=True)
    log = _log(name)
    with _background(serve_command(name, idle), log) as process:
        while time.monotonic() < deadline:
            if found := find_running_server(name):
                return found
            if process.poll() is not None:
                said = log.read_text("utf-8", "replace").strip().splitlines()
                last = said[-1].removeprefix("Error: ") if said else "it said nothing."
                raise RigError(f"{name} could not be served: {last}")
            time.sleep(0.05)
        raise RigError(
            f"`rig serve {name}` was not ready after {timeout:.0f} s: see {log}, "
            "or raise [model] start_timeout."
        )


@contextlib.contextmanager
def _background(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that outlives this one; stopped only if the block ends badly, Ctrl-C included."""
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, **apart
        )
    try:
        yield process
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    # whoever started it may live for months: it must not be left as a zombie when it leaves
    threading.Thread(target=process.wait, daemon=True).start()


def _log(name: str) -> Path:
    return running_servers.servers_folder() / f"{running_servers.model_key(name)}.log"
