"""Progress of a long transfer on stderr: a bar at a terminal, a line every ten per cent without one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from serve.hardware.machine import format_bytes


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function of (name, bytes there, bytes in all)."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = ("{task.description}", BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {}

        def show(name: str, have: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=size)
            progress.update(tasks[name], completed=have)

        yield show


def _lines() -> Callable[[str, int, int], None]:
    told: dict[str, int] = {}

    def show(name: str, have: int, size: int) -> None:
        tenth = have * 10 // max(1, size)
        if told.get(name) != tenth:
            told[name] = tenth
            click.echo(f"{name}: {tenth * 10} % of {format_bytes(size)}", err=True)

    return show
