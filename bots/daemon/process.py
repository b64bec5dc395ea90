"""The daemon as a process: one on a box, with a lock that the kernel gives back whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bots import credentials, settings
from bots.daemon import logs
from bots.daemon.health import HealthServer
from bots.daemon.scheduler import Daemon
from bots.ledger.store import Ledger
from bots.settings import Settings
from rig import paths
from rig.atomic import write_text
from rig.errors import RigError

log = logging.getLogger("rig.bots")


def run_daemon(*, now: bool, verbose: bool) -> bool:
    """Run the daemon; False when a call still hangs at the end."""
    logs.configure_logging(logging.DEBUG if verbose else logging.INFO)
    found = settings.read_settings()
    lock = FileLock(state_folder() / "daemon.lock")
    state_folder().mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        said = running_daemon()
        who = f" (process {said['pid']}, since {said['started']})" if said else ""
        raise RigError(
            f"A daemon is running on this box already{who}: stop it, or tell it to read rig.toml "
            "again with `rig daemon reload`."
        ) from None
    with lock:
        ledger = Ledger.open(ledger_url(found))
        ledger.renew_login(lambda: ledger_url(found))
        daemon = Daemon(found, ledger, read=settings.read_settings)
        health = HealthServer(daemon, found.daemon.listen) if found.daemon.listen else None
        daemon.handle_signals()
        write_text(state_folder() / "daemon.json", json.dumps(_about(daemon, health)))
        try:
            _introduce(daemon)
            return daemon.run_until_stopped(now=now)
        finally:
            (state_folder() / "daemon.json").unlink(missing_ok=True)
            if health:
                health.close()


def ledger_url(found: Settings) -> str:
    """The ledger's address: of the credential `database` if there is one, else of [daemon]."""
    secret, _ = credentials.find_credentials("database", {"url": "address of the ledger"})
    return secret.get("url") or found.daemon.database


def open_ledger() -> Ledger:
    """The ledger that the settings name, for a command that looks into it."""
    return Ledger.open(ledger_url(settings.read_settings()))


def state_folder() -> Path:
    """Where the daemon leaves its lock and its whereabouts."""
    return paths.state_dir()


def running_daemon() -> dict[str, Any] | None:
    """What the running daemon says of itself; None when none runs."""
    try:
        found: dict[str, Any] = json.loads((state_folder() / "daemon.json").read_text("utf-8"))
        os.kill(int(found["pid"]), 0)
    except PermissionError:  # it lives, and is another user's
        return found
    except (OSError, ValueError, KeyError):
        return None
    return found


def daemon_owner() -> int | None:
    """The number of the user that runs the daemon; None when none runs, or the system can't tell."""
    found = running_daemon()
    try:
        return Path(f"/proc/{found['pid']}").stat().st_uid if found else None
    except OSError:
        return None


def daemon_status() -> dict[str, Any]:
    """What the running daemon's /health says; `none` when none runs."""
    import httpx

    found = running_daemon()
    if found is None:
        return {
            "status": "none",
            "wrong": ["No daemon runs on this box; `rig daemon run` starts one."],
        }
    if not found["listen"]:
        return {"status": "well", "wrong": [], "pid": found["pid"], "started": found["started"]}
    try:
        answer = httpx.get(f"http://{found['listen']}/health", timeout=10.0)
        return {**answer.json(), "pid": found["pid"]}
    except (httpx.HTTPError, ValueError) as error:
        wrong = f"process {found['pid']} does not answer on {found['listen']} ({error})"
        return {"status": "ill", "wrong": [wrong], "pid": found["pid"]}


def signal_reload() -> str:
    """Send SIGHUP to the running daemon."""
    found = running_daemon()
    if found is None:
        raise RigError("No daemon runs on this box: `rig daemon run`.")
    if not hasattr(signal, "SIGHUP"):
        raise RigError("There are no such signals on Windows: stop the daemon and start it again.")
    try:
        os.kill(int(found["pid"]), signal.SIGHUP)
    except PermissionError:
        raise RigError(
            f"Process {found['pid']} belongs to another user: say it as that user, or as root."
        ) from None
    return f"Process {found['pid']} reads rig.toml again."


def _about(daemon: Daemon, health: HealthServer | None) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "id": daemon.daemon_id,
        "started": daemon.started.isoformat(timespec="seconds"),
        "listen": health.address if health else "",
    }


def _introduce(daemon: Daemon) -> None:
    """Say what will happen, so that nobody waits two hours to learn it."""
    now = datetime.now(UTC)
    for name, bot in daemon.settings.bots.items():
        schedule = daemon.drafter.schedules[name]
        due = schedule.due_time(schedule.next_slot(now))
        live, outlets = daemon.drafter.choose_outlets(name)
        names = ", ".join(outlet.name for outlet in outlets)
        dry = (
            ""
            if live or names == ", ".join(bot.outlets)
            else f"; dry run, see `rig bot enable {name}`"
        )
        log.info("%s: next post %s UTC, on %s%s", name, f"{due:%a %d %b %H:%M:%S}", names, dry)
