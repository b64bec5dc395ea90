"""Daemons for tests: settings as rig.toml would give them, one in this process, or one as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bots.daemon.scheduler import Daemon
from bots.ledger.store import Ledger
from bots.settings import BotSettings, DaemonSettings, Settings
from support.fake_x import SECRETS
from support.simulated import ByHand, Clock

TICK = '''
"""A bot that never says the same twice."""

import random

from bots.bot import Draft


def tick(context):
    rng = random.Random(str(context.slot))
    words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 8))) for _ in range(12)]
    return Draft(" ".join(words).capitalize() + ".", subject=context.slot.isoformat())
'''


@contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where thousands of commits cost nothing; else the given one."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def tick(folder: Path) -> str:
    """Write the bot `tick` and return its name for `run`."""
    path = folder / "tick.py"
    path.write_text(TICK)
    return f"{path}:tick"


def settings(
    bots: dict[str, dict[str, Any]],
    outlets: dict[str, dict[str, Any]] | None = None,
    **daemon: Any,
) -> Settings:
    """The room's settings, without a file."""
    return Settings(
        daemon=DaemonSettings.model_validate({"listen": "", **daemon}),
        bots={name: BotSettings.model_validate(values) for name, values in bots.items()},
        outlets=outlets or {},
    )


def keep_x_secrets(home: Path) -> None:
    """What `rig auth x` would leave behind."""
    path = home / "config" / "credentials" / "x.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(SECRETS))
    path.chmod(0o600)


def by_hand(found: Settings, ledger: Ledger, clock: Clock, **more: Any) -> tuple[Daemon, ByHand]:
    """A daemon in this process that lives by `clock`."""
    scheduler = ByHand(clock)
    daemon = Daemon(found, ledger, clock=clock, scheduler=scheduler, **more)
    scheduler.start(paused=False)
    daemon.schedule_jobs()
    return daemon, scheduler


class Process:
    """`rig daemon run` as a process of its own, in `folder`, with a home of its own."""

    def __init__(
        self, folder: Path, home: Path, *options: str, background: bool = False, **more: str
    ) -> None:
        # what a shell does to a command with `&` in a script
        shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if background else []
        self.log = folder / f"{home.name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RIG_")}
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [*shell, sys.executable, "-P", "-m", "rig", "daemon", "run", *options],
                cwd=folder,
                env={**environment, "RIG_HOME": str(home), **more},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    def ready(self, home: Path, timeout: float = 30.0) -> None:
        """Wait until it works."""
        end = time.monotonic() + timeout
        while not (home / "state" / "daemon.json").exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM, and wait."""
        self.process.terminate()
        return self.process.wait(timeout)
