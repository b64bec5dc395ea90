"""What the person sees on stderr while a run goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from statistics import median
from typing import Any

from train.monitor.power import KWH, format_cost

PLAIN_EVERY = 10.0
"""Seconds between two plain lines, and the first three steps always."""


class ProgressBar:
    """Shows steps out of `total`; `say` prints a line above the bar without tearing it."""

    def __init__(self, total: int, done: int = 0, quiet: bool = False) -> None:
        self._total, self._done, self._quiet = total, done, quiet
        self._times: deque[float] = deque(maxlen=20)
        self._last_plain = 0.0
        self._shown = 0
        self._bar: Any = None
        self._task: Any = None
        self._console: Any = None
        if quiet:
            return
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]step[/]"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=False,
            )
            self._task = self._bar.add_task("", total=total, completed=done, figures="")

    def start(self) -> None:
        """Show the bar from here on."""
        if self._bar is not None:
            self._bar.start()

    def show_step(self, row: dict[str, Any], seconds: float) -> None:
        """One step is done: its line of the log, and how long it took."""
        self._done = int(row["step"])
        self._shown += 1
        if self._shown > 1:  # the first one pays for start-up and compilation
            self._times.append(seconds)
        if self._quiet:
            return
        figures = self.format_figures(row)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=figures)
            return
        now = time.monotonic()
        last = self._done >= self._total
        if self._shown <= 3 or last or now - self._last_plain >= PLAIN_EVERY:
            self._last_plain = now
            print(f"step {self._done}/{self._total}  {figures}", file=sys.stderr, flush=True)

    def format_figures(self, row: dict[str, Any]) -> str:
        """Reward, accuracy, format, groups without signal, clipped share, time left; what there is."""
        parts = []
        for key, label, form in (
            ("reward", "reward", "{:.2f}"),
            ("accuracy", "accuracy", "{:.0%}"),
            ("format", "format", "{:.0%}"),
            ("frac_reward_zero_std", "no signal", "{:.0%}"),
            ("completions/clipped_ratio", "clipped", "{:.0%}"),
        ):
            if isinstance(row.get(key), int | float):
                parts.append(f"{label} {form.format(row[key])}")
        if (left := self.seconds_left()) is not None:
            parts.append(f"{format_duration(left)} left")
            if watts := row.get("watts"):
                parts.append(
                    f"{format_cost(watts * median(self._times) * self._total / KWH)} in all"
                )
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """The median of the last steps, times the steps to go; the first step never counts."""
        if not self._times:
            return None
        return median(self._times) * (self._total - self._done)

    def print_line(self, text: str, style: str = "") -> None:
        """Print one line for the person."""
        if self._console is not None and not self._quiet:
            self._console.print(text, style=style or None, markup=False)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def format_duration(seconds: float) -> str:
    """Say a time as a person would.

    >>> format_duration(9), format_duration(75), format_duration(7260)
    ('9 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
