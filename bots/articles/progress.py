"""Who is told while a text is read; what a person sees: progress on stderr, the summary alone on stdout."""

from __future__ import annotations

import sys
import time

import click


class SummaryListener:
    """Told of what happens while a text is read; this one does nothing with it."""

    def on_remark(self, sentence: str) -> None:
        """Something the reader should know."""

    def on_start(self, chunks: int, tokens: int) -> None:
        """The parts are cut and will be read."""

    def on_part_read(self, done: int, chunks: int) -> None:
        """`done` of the parts are read."""

    def on_text(self, text: str) -> None:
        """A piece of the final summary has come, safe to print."""


class SummaryProgress(SummaryListener):
    """Says on stderr how far the reading is; streams the summary to a terminal when asked."""

    def __init__(self, *, quiet: bool, stream: bool) -> None:
        self._quiet = quiet
        self._stream = stream
        self._start = time.monotonic()
        self._rewrite = sys.stderr.isatty() and not quiet
        self.streamed = False
        """Whether anything of the summary has been printed already."""

    def on_remark(self, sentence: str) -> None:
        """A remark, unless quiet."""
        if not self._quiet:
            click.echo(sentence, err=True)

    def on_start(self, chunks: int, tokens: int) -> None:
        """How much there is to read."""
        self._start = time.monotonic()
        if chunks > 1:
            self.on_remark(f"[{tokens:,} tokens in {chunks} parts]")

    def on_part_read(self, done: int, chunks: int) -> None:
        """A part more; the time left is told from the parts so far."""
        if self._quiet:
            return
        left = (time.monotonic() - self._start) / done * (chunks - done)
        text = f"[{done} of {chunks} parts read" + (
            f", about {left:.0f} s left]" if left >= 1 else "]"
        )
        if self._rewrite:
            click.echo(f"\r\x1b[2K{text}" + ("\n" if done == chunks else ""), err=True, nl=False)
        else:
            click.echo(text, err=True)

    def on_text(self, text: str) -> None:
        """A piece of the summary, at once."""
        if self._stream and text:
            self.streamed = True
            click.echo(text, nl=False)
            sys.stdout.flush()
