"""Which servers run here: each leaves its address in the state folder for as long as it lives.

A server holds a lock of its own while it lives, so what a killed one left behind is known for what it is,
whoever has its process id or its port by now. Nothing is asked over the network here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rig import paths
from rig.runs import RECORD, Run, find_run

_alive: dict[Path, Any] = {}


def announce_server(name: str, **facts: Any) -> Path:
    """Leave a ready server's address (`url=`, `api_key=`) for others to find, until `withdraw_server`.

    Only the user may read it. Call it in the process that lives as long as the server does.
    """
    from rig.atomic import write_text

    servers_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    path = servers_folder() / f"{model_key(name)}-{os.getpid()}.json"
    withdraw_server(path)
    lock = _life(path)
    lock.acquire(timeout=5)  # somebody may be looking whether an earlier one is dead
    _alive[path] = lock
    write_text(path, json.dumps({"model": model_identity(name), "pid": os.getpid(), **facts}))
    path.chmod(0o600)
    return path


def withdraw_server(path: Path) -> None:
    """Take the address back: first thing when leaving, so that nobody comes to a closing door."""
    lock = _alive.pop(path, None)
    path.unlink(missing_ok=True)
    if lock is not None:
        lock.release()
        path.with_suffix(".alive").unlink(missing_ok=True)


def live_servers(name: str | None = None) -> list[dict[str, Any]]:
    """What living servers of the model (of any, when None) say of themselves, the newest first.

    Keys: `model`, `url`, `pid`, perhaps `api_key`. What dead ones left is swept away.
    """
    pattern = "*.json" if name is None else f"{model_key(name)}-*.json"
    found = []
    for path in servers_folder().glob(pattern):
        if path not in _alive and _is_dead(path):
            path.unlink(missing_ok=True)
            path.with_suffix(".alive").unlink(missing_ok=True)
            continue
        with contextlib.suppress(OSError, ValueError):  # it left since they were listed
            found.append((path.stat().st_mtime, dict(json.loads(path.read_text("utf-8")))))
    return [facts for _, facts in sorted(found, key=lambda pair: -pair[0])]


def model_identity(name: str) -> str:
    """One string for one model, however it was written: the resolved GGUF file, or the reference.

    A run is known by its last export: after a new one, the server of the old one is another model's.
    """
    path = find_run(name)
    if (path / RECORD).is_file() and (exported := Run.open(path).gguf_files()):
        path = exported[0]
    return str(path.resolve()) if path.exists() else name


def model_fingerprint(name: str) -> str:
    """The same for a model as it is now: one name over other weights is another model."""
    known = model_identity(name)
    path = Path(known)
    if not path.is_file():
        return known
    stamp = path.stat()
    return f"{known} {stamp.st_size} {stamp.st_mtime_ns}"


def model_key(name: str) -> str:
    """The same as part of a file's name."""
    return hashlib.sha256(model_fingerprint(name).encode()).hexdigest()[:16]


def servers_folder() -> Path:
    """Where the addresses lie, and the logs of servers that were started on demand."""
    return paths.state_dir() / "servers"


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
