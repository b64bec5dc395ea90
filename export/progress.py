"""What a person sees while an export works: a bar where it can be counted, else the stage; on stderr."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def show_stages(title: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done, for as long as it takes; the block is given a function that takes the stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status(title) as status:
        yield lambda stage: status.update(f"{title}: {stage}")


class ProgressBar:
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
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            title, total=max(1, numbers), done=0, tensors=tensors, rate=""
        )
        self._done = 0
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressBar:
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
