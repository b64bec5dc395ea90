"""What a step costs on this box, learnt as it runs: how much of a prompt to read in it, and how far to guess.

Nobody's text may stand still while another's prompt is read, and a request that has just arrived, or one
that is cancelled, may not wait for a whole prompt either: both are limits on the seconds of a step. A
guessed token pays when the rows it adds cost less than the tokens it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve.engine.llama import FLASH_TILE

STEP_ALONE = 1.2
"""Seconds of a step that only reads prompts: how long a newcomer may have to wait."""
STEP_TOGETHER = 0.4
"""Seconds that reading may add to a step in which others write, or twice their own step if that is more."""
SMALLEST = 16
"""Rows below which reading wastes the machine."""
FORGET = 0.2
RETRY = 0.002
"""How fast a bad experience with guesses fades, for each step without any."""


class CostModel:
    """Moving averages of the seconds that steps take."""

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._read_row: float | None = None
        self._write: dict[int, float] = {}
        """Seconds of a step that only writes, by its number of rows."""

    def record_step(self, seconds: float, decode_rows: int, prefill_rows: int) -> None:
        """Take in one step: its rows of replies and its rows of prompts."""
        if prefill_rows == 0:
            self._write[decode_rows] = _mean(self._write.get(decode_rows), seconds)
        elif prefill_rows >= SMALLEST:
            alone = self.step_seconds(decode_rows) if decode_rows else 0.0
            if alone is not None:
                self._read_row = _mean(self._read_row, max(seconds - alone, 1e-7) / prefill_rows)

    def expected_seconds(self, decode_rows: int, prefill_rows: int) -> float | None:
        """Seconds that such a step has taken lately; None when nothing like it was seen."""
        alone = self.step_seconds(decode_rows) if decode_rows else 0.0
        if alone is None or (prefill_rows and self._read_row is None):
            return None
        return alone + prefill_rows * (self._read_row or 0.0)

    def reset_averages(self) -> None:
        """Start again: steps take another time now."""
        self._read_row = None
        self._write.clear()

    def prefill_chunk_size(self, writers: int) -> int:
        """Rows of prompts that the next step may read beside `writers` rows of replies."""
        if self._read_row is None:
            return min(2 * FLASH_TILE, self._n_batch)
        alone = self.step_seconds(writers) or 0.0
        seconds = max(STEP_TOGETHER, 2 * alone) if writers else STEP_ALONE
        rows = int(seconds / self._read_row)
        if rows >= FLASH_TILE:
            rows -= rows % FLASH_TILE
        return max(min(rows, self._n_batch), min(SMALLEST, self._n_batch))

    def step_seconds(self, rows: int) -> float | None:
        """Seconds of a step of `rows` rows of replies; where it was not seen yet, from its neighbours."""
        if rows in self._write or not self._write:
            return self._write.get(rows)
        below = max((n for n in self._write if n < rows), default=None)
        above = min((n for n in self._write if n > rows), default=None)
        if below is None:
            return self._write[above] if above is not None else None
        if above is not None:
            share = (rows - below) / (above - below)
            return self._write[below] + share * (self._write[above] - self._write[below])
        return self._write[below] + (rows - below) * (self._read_row or self._write[below])

    def draft_lengths(self, writers: int, chances: Sequence[Sequence[float]]) -> list[int]:
        """How many guessed tokens to try for each reply.

        `chances[i][j]` is how likely the first j+1 guesses of reply i are all right. Rows are added, the
        likeliest first, as long as the tokens to be expected per second grow.
        """
        rows = sorted(((c, i) for i, row in enumerate(chances) for c in row), reverse=True)
        expected, best, taken = float(writers), 0.0, 0
        base = self.step_seconds(writers)
        if base is None:
            return [0] * len(chances)
        best = expected / base
        for n, (chance, _) in enumerate(rows, 1):
            expected += chance
            seconds = self.step_seconds(writers + n)
            assert seconds is not None
            if expected / seconds > best * 1.02:
                best, taken = expected / seconds, n
        counts = [0] * len(chances)
        for _, i in rows[:taken]:
            counts[i] += 1
        if not taken:
            self._fade(writers)
        return counts

    def _fade(self, writers: int) -> None:
        """Let the memory of slow steps with guesses fade towards what reading costs."""
        if self._read_row is None:
            return
        base = self._write.get(writers, 0.0)
        for rows in [n for n in self._write if n > writers]:
            guess = base + (rows - writers) * self._read_row
            self._write[rows] += RETRY * (guess - self._write[rows])


def _mean(old: float | None, new: float) -> float:
    """A moving average that believes good news faster: a slow step may have had other causes."""
    if old is None:
        return new
    return old + (2 * FORGET if new < old else FORGET) * (new - old)
