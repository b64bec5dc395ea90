"""How an answer appears as it comes: the answer on stdout, the thought and everything else on stderr."""

from __future__ import annotations

import re
import sys
import threading
import time

import click

from rig.server.client import ChatCompletion

WAITING = "\r\x1b[K"
"""Back to the start of the line, and wipe it."""
CONTROL = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
"""A model that repeats what a web page says must not steer the terminal."""


class AnswerPrinter:
    """Takes (thought, text) pieces; white space at both ends of the answer is not shown.

    Without `thinking` a person at a terminal sees that the model thinks, and not what.
    """

    def __init__(self, *, thinking: bool, live: bool = True) -> None:
        """With `live` the answer is written piece by piece; otherwise `finish_answer` returns it."""
        self.thinking = thinking
        self.live = live
        self._kept = ""
        self._begun = False
        self._thought_open = False
        self._status = not thinking and sys.stderr.isatty()
        self._came = threading.Event()
        self._patience = threading.Thread(target=self._wait, daemon=True)
        if sys.stderr.isatty():
            self._patience.start()
        self._status_shown = 0.0
        self._pieces = 0

    def print_piece(self, thought: str, text: str) -> None:
        """Write what has come."""
        self._stop_waiting()
        if thought:
            self._think(CONTROL.sub("", thought))
        if text and self.live:
            self._write(CONTROL.sub("", text) if sys.stdout.isatty() else text)

    def finish_answer(self) -> None:
        """Finish the lines that are open."""
        self._stop_waiting()
        self._wipe()
        self._close_thought()
        if self._begun:
            click.echo()

    def _wait(self) -> None:
        """A long prompt takes minutes to read on a small box: show that something happens."""
        begun = time.monotonic()
        while not self._came.wait(1.0):
            self._status_shown = time.monotonic()
            click.echo(f"\rreading ... {self._status_shown - begun:.0f} s", nl=False, err=True)

    def _stop_waiting(self) -> None:
        if not self._came.is_set():
            self._came.set()
            if self._patience.is_alive():
                self._patience.join()
            self._wipe()

    def _think(self, piece: str) -> None:
        self._pieces += 1
        if self.thinking:
            piece = piece if self._thought_open else piece.lstrip()
            self._thought_open = self._thought_open or bool(piece)
            click.secho(piece, dim=True, italic=True, nl=False, err=True)
            sys.stderr.flush()
        elif self._status and time.monotonic() - self._status_shown > 0.2:
            self._status_shown = time.monotonic()
            click.echo(f"\rthinking ... {self._pieces}", nl=False, err=True)

    def _write(self, piece: str) -> None:
        said = self._kept + piece
        if not self._begun:
            said = said.lstrip()
        shown = said.rstrip()
        self._kept = said[len(shown) :]
        if shown:
            if not self._begun:
                self._wipe()
                self._close_thought()
            self._begun = True
            click.echo(shown, nl=False)
            sys.stdout.flush()

    def _wipe(self) -> None:
        if self._status_shown:
            click.echo(WAITING, nl=False, err=True)
            self._status_shown = 0.0

    def _close_thought(self) -> None:
        if self._thought_open:
            click.echo("\n", err=True)
            self._thought_open = False


def format_stats(answer: ChatCompletion, seconds: float, context: int | None = None) -> str:
    """One line of metrics, with the server's own speeds where it tells them.

    >>> format_stats(ChatCompletion(prompt_tokens=9, completion_tokens=30), 2.0)
    '9 tokens read, 30 written, 2.0 s'
    """
    line = (
        f"{answer.prompt_tokens} tokens read, {answer.completion_tokens} written, {seconds:.1f} s"
    )
    read, write = (answer.timings.get(f"{kind}_per_second") for kind in ("prompt", "predicted"))
    if read and write:
        line += f" ({read:.0f} and {write:.1f} tokens/s)"
    if context:
        line += f"; {answer.prompt_tokens + answer.completion_tokens} of {context} in the context"
    return line
