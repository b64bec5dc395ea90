"""A real `rig serve` for the serving room's tests: the command itself, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


class Server:
    """`rig serve MODEL ...` on a free port; use with `with`."""

    def __init__(
        self,
        model: Path,
        home: Path,
        *options: str,
        program: tuple[str, ...] = (),
        wait: bool = True,
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._log = home / f"serve-{time.monotonic_ns()}.log"
        command = program or (sys.executable, "-P", "-m", "rig", "serve")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RIG_")}
        with self._log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, str(model), "--port", "0", "--threads", "1", *options],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment | {"RIG_HOME": str(home)},
            )
        self.url = self._address() if wait else ""
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def _address(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := re.search(r"Serving .* at (http://\S+)", self.said()):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"rig serve did not start: {self.said()}")

    def said(self) -> str:
        """What it printed."""
        return self._log.read_text("utf-8", "replace")

    def workers(self) -> list[int]:
        """Process ids of the engine: its children."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    def kill_engine(self, how: int = signal.SIGKILL) -> None:
        """Kill the process that holds the model."""
        for pid in self.workers():
            os.kill(pid, how)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The engine stands still, so that what is on its way stays there."""
        for pid in self.workers():
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in self.workers():
                os.kill(pid, signal.SIGCONT)

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + 30
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.01)

    def chat(self, text: str, **asked: Any) -> httpx.Response:
        """One chat completion."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        return self.http.post("/v1/chat/completions", json=body | asked)

    def metric(self, name: str) -> float:
        """The sum of one metric over its labels."""
        rows = self.http.get("/metrics").text.splitlines()
        found = [
            row.rsplit(" ", 1)[1] for row in rows if re.match(rf"rig_serve_{name}(\{{|\s)", row)
        ]
        return sum(map(float, found))

    def stop(self) -> int:
        """End it; returns its exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
