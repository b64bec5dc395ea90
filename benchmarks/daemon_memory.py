"""Memory of the daemon, idle and after a week of slots: `python benchmarks/daemon_memory.py [SLOTS]`.

A real `rig daemon run` with its ledger, /health and an outlet on this box; a week of two-hour slots is 84,
run here in as many seconds. Its rival is the claim itself: 80 MB resident, and no growth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

BOT = """
import random
from bots.bot import Draft

def tick(context):
    rng = random.Random(str(context.slot))
    words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 8))) for _ in range(12)]
    return Draft(" ".join(words))
"""
IDLE = '[daemon]\nlisten = "127.0.0.1:0"\n[bots.cards]\nschedule = "0 0 1 1 *"\n'
BUSY = """
[daemon]
listen = "127.0.0.1:0"
heartbeat = "1s"
[bots.tick]
run = "tick.py:tick"
schedule = "every 1s"
outlets = ["file", "screen"]
"""


def start(folder: Path, toml: str) -> subprocess.Popen[bytes]:
    """A daemon with a home of its own in `folder`."""
    (folder / "rig.toml").write_text(toml)
    (folder / "tick.py").write_text(BOT)
    environment = {**os.environ, "RIG_HOME": str(folder / "home"), "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-P", "-m", "rig", "daemon", "run"]
    sink = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=sink)


def resident(process: subprocess.Popen[bytes]) -> float:
    """Megabytes resident."""
    return float(psutil.Process(process.pid).memory_info().rss) / 1e6


def main() -> None:
    """Measure and print one JSON object."""
    slots = int(sys.argv[1]) if len(sys.argv) > 1 else 84
    found: dict[str, float] = {"slots": slots}
    with tempfile.TemporaryDirectory() as name:
        idle = start(Path(name), IDLE)
        time.sleep(20)
        found["idle_mb"] = round(resident(idle), 1)
        idle.terminate()
        idle.wait()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        busy = start(folder, BUSY)
        posts = folder / "posts.jsonl"
        for label, wanted in (("after_10_slots_mb", 10), ("after_all_slots_mb", slots)):
            while not posts.exists() or len(posts.read_text().splitlines()) < wanted:
                time.sleep(0.2)
            found[label] = round(resident(busy), 1)
        busy.terminate()
        busy.wait()
    found["claim_mb"] = 80
    print(json.dumps(found))


if __name__ == "__main__":
    main()
