"""What the GPUs draw at the moment, as they report it, and what that costs; nothing where they don't.

A thread asks `nvidia-smi` every few seconds, so that a step never waits for it. What a kilowatt-hour costs
stands in rig.toml: `[train] price_per_kwh`, `currency`.
"""

from __future__ import annotations

import shutil
import subprocess
import threading

from rig.validation import FrozenModel, load_section

EVERY = 5.0
"""Seconds between two questions."""
KWH = 3.6e6
"""Joules."""


class TrainConfig(FrozenModel):
    """The table `[train]` of rig.toml."""

    price_per_kwh: float | None = None
    """Price of a kilowatt-hour; without one, energy is said and cost is not."""
    currency: str = "EUR"


class PowerMeter:
    """Knows what `gpus` GPUs draw together, from `start` to `stop`."""

    def __init__(self, gpus: int = 1, ask: str | None = None) -> None:
        self._program = ask or shutil.which("nvidia-smi")
        self._gpus = gpus
        self._watts: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask, where there is somebody to ask."""
        if self._program is not None:
            self._thread = threading.Thread(target=self._run, name="power meter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=EVERY)

    def latest_watts(self) -> float | None:
        """What the GPUs draw together at the moment; None where they do not say."""
        return self._watts

    def _run(self) -> None:
        while not self._stop.is_set():
            watts = self._read()
            if watts is None:
                return
            self._watts = round(watts, 1)
            self._stop.wait(EVERY)

    def _read(self) -> float | None:
        assert self._program is not None
        command = [self._program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=EVERY)
        except (OSError, subprocess.TimeoutExpired):
            return None
        figures = []
        for line in said.stdout.splitlines():
            try:
                figures.append(float(line))
            except ValueError:
                continue  # [N/A]: this GPU does not report it
        return sum(figures[: self._gpus]) if figures else None


def format_cost(kwh: float) -> str:
    """Say energy, and what it costs where a price is set.

    >>> format_cost(0.5)
    '0.50 kWh'
    """
    said = f"{kwh:.2f} kWh"
    settings = load_section("train", TrainConfig)
    if settings.price_per_kwh is None:
        return said
    return f"{said} = {kwh * settings.price_per_kwh:.2f} {settings.currency}"
