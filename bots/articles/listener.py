"""Who is told while a text is read; apart, so that a summary from the cache loads nothing else."""

from __future__ import annotations


class Listener:
    """Told of what happens while a text is read; this one does nothing with it."""

    def say(self, sentence: str) -> None:
        """Something the reader should know."""

    def begin(self, chunks: int, tokens: int) -> None:
        """The parts are cut and will be read."""

    def read(self, done: int, chunks: int) -> None:
        """`done` of the parts are read."""

    def piece(self, text: str) -> None:
        """A piece of the final summary has come, safe to print."""
