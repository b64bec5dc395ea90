"""Find the server that answers, or start one: the way every shell command and bot comes to a model.

Order: the address that was given (flag, `RIG_URL`, `[model] url`), else the server that already serves
the model (a running `rig serve` leaves its address in the state folder), else a new `rig serve` of
`[model] name` that leaves by itself when idle.

Two callers at the same moment start one server: the second waits at a lock and then finds the first one's.
A server holds a lock of its own for as long as it lives, so what a killed one left behind is known for
what it is, whoever has its process id or its port by now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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

from rig import places
from rig.client import Client
from rig.errors import RigError, WrongUse
from rig.runs import RECORD, Run, find
from rig.validation import Frozen, section


class ModelConfig(Frozen):
    """The table `[model]`: which model answers when a command names none."""

    name: str | None = None
    """A run folder, a GGUF file, or a hub reference."""
    url: str | None = None
    """A server that runs already, such as http://nuc:8377."""
    idle: int = 300
    """Seconds without a request after which a server started on demand leaves (0 = never)."""
    start_timeout: float = 180.0
    """Seconds that a server may take to load its model."""


def connect(
    url: str | None = None,
    model: str | None = None,
    *,
    api_key: str | None = None,
    priority: str = "person",
    timeout: float = 600.0,
) -> Client:
    """Return a client of a server that is ready, started if need be.

    `url` wins over `model`; without both, the table `[model]` decides, then any running `rig serve`. With
    an address, a `model` that is no file here is the name by which that server knows its model.
    """
    settings = section("model", ModelConfig)
    name = model or settings.name
    url = url or (None if model else settings.url)
    if url:
        called = name if name and not find(name).exists() else None
        return Client(url, api_key=api_key, priority=priority, timeout=timeout, model=called)
    found = running(name)
    if found is None:
        if name is None:
            raise WrongUse(
                "No model is named and none is running: give --model RUN|FILE or --url, "
                "or set [model] name in rig.toml."
            )
        found = start(name, idle=settings.idle, timeout=settings.start_timeout)
    return Client(
        found["url"],
        api_key=api_key or found.get("api_key"),
        priority=priority,
        timeout=timeout,
    )


def identity(name: str) -> str:
    """One string for one model, however it was written: the resolved GGUF file, or the reference.

    A run is known by its last export: after a new one, the server of the old one is another model's.
    """
    path = find(name)
    if (path / RECORD).is_file() and (exported := Run.open(path).ggufs()):
        path = exported[0]
    return str(path.resolve()) if path.exists() else name


# ---------------------------------------------------------------------------------------------
# for the server

_alive: dict[Path, Any] = {}


def announce(name: str, **facts: Any) -> Path:
    """Leave a ready server's address (`url=`, `api_key=`) for others to find, until `withdraw`.

    Only the user may read it. Call it in the process that lives as long as the server does.
    """
    from rig.writing import write_text

    folder = _servers()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{_key(name)}-{os.getpid()}.json"
    withdraw(path)
    lock = _life(path)
    lock.acquire(
        timeout=5
    )  # for an instant, somebody may be looking whether an earlier one is dead
    _alive[path] = lock
    write_text(path, json.dumps({"model": identity(name), "pid": os.getpid(), **facts}))
    path.chmod(0o600)
    return path


def withdraw(path: Path) -> None:
    """Take the address back: first thing when leaving, so that nobody comes to a closing door."""
    lock = _alive.pop(path, None)
    path.unlink(missing_ok=True)
    if lock is not None:
        lock.release()
        path.with_suffix(".alive").unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------
# for those who ask


def running(name: str | None) -> dict[str, Any] | None:
    """The announced server of the model that really answers; any server when `name` is None."""
    for found in announced(name):
        with Client(found["url"], api_key=found.get("api_key")) as client:
            if client.healthy():
                return found
    return None


def announced(name: str | None = None) -> list[dict[str, Any]]:
    """What living servers of the model (of any, when None) say of themselves, the newest first.

    Keys: `model`, `url`, `pid`, perhaps `api_key`. What dead ones left is swept away.
    """
    pattern = "*.json" if name is None else f"{_key(name)}-*.json"
    found = []
    for path in _servers().glob(pattern):
        if path not in _alive and _is_dead(path):
            path.unlink(missing_ok=True)
            path.with_suffix(".alive").unlink(missing_ok=True)
            continue
        with contextlib.suppress(
            OSError, ValueError
        ):  # it left between the listing and the reading
            found.append((path.stat().st_mtime, dict(json.loads(path.read_text("utf-8")))))
    return [facts for _, facts in sorted(found, key=lambda pair: -pair[0])]


def start(name: str, *, idle: int, timeout: float) -> dict[str, Any]:
    """Start `rig serve NAME` in the background and wait until it answers; or find that somebody did."""
    import filelock

    deadline = time.monotonic() + timeout
    _servers().mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = filelock.FileLock(_servers() / f"{_key(name)}.lock")
    try:
        with lock.acquire(timeout=timeout):
            return _awaited(name, deadline) or _started(name, idle, deadline, timeout)
    except filelock.Timeout:
        raise RigError(
            f"Another process has been starting {name} for {timeout:.0f} s: see {_log(name)}."
        ) from None


def stop(found: dict[str, Any]) -> None:
    """Ask an announced server to leave: it finishes what it has begun."""
    with contextlib.suppress(ProcessLookupError):  # it has just left
        os.kill(int(found["pid"]), signal.SIGTERM)


def command(name: str, idle: int) -> list[str]:
    """What starts a server that takes any free port and leaves after `idle` seconds without work."""
    serve = [sys.executable, "-P", "-m", "rig", "serve", identity(name)]
    return [*serve, "--port", "0", "--idle-exit", str(idle)]


def _awaited(name: str, deadline: float) -> dict[str, Any] | None:
    """The server that is there; one that lives and does not answer yet is given time, not a rival."""
    while True:
        if found := running(name):
            return found
        living = announced(name)
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
    with _background(command(name, idle), log) as process:
        while time.monotonic() < deadline:
            if found := running(name):
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


def _is_dead(path: Path) -> bool:
    import filelock

    lock = _life(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    lock.release()
    return True


def _life(path: Path) -> Any:
    """The lock that the server of the announcement `path` holds while it lives."""
    import filelock

    return filelock.FileLock(path.with_suffix(".alive"), thread_local=False)


def _servers() -> Path:
    return places.state_dir() / "servers"


def _log(name: str) -> Path:
    return _servers() / f"{_key(name)}.log"


def _key(name: str) -> str:
    known = identity(name)
    path = Path(known)
    if path.is_file():  # the same name over other weights is another model
        stat = path.stat()
        known += f" {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(known.encode()).hexdigest()[:16]
