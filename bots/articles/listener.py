"""Who is told while a text is read; apart, so that a summary from the cache loads nothing else."""

from __future__ import annotations


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
