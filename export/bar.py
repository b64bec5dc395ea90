"""The progress bar of an export: tensors, megabytes a second, time left; on stderr, and only for a person."""

from __future__ import annotations

import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """Counts what the pass has written; `numbers` weights of two bytes in `tensors` tensors."""

    def __init__(self, numbers: int, tensors: int, *, title: str = "exporting") -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[done]}/{task.fields[tensors]} tensors"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            title, total=max(1, numbers), done=0, tensors=tensors, rate=""
        )
        self._done = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, numbers: int, tensor: str, done: bool) -> None:
        """Hear of `numbers` weights more; `done`: their tensor is whole."""
        with self._lock:
            self._done += done
            speed = self._bar.tasks[0].speed
            rate = f"{speed * 2 / 1e6:.0f} MB/s" if speed else ""
            self._bar.update(self._task, advance=numbers, done=self._done, rate=rate)
