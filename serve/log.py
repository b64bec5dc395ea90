"""What the server and its engine say on stderr: never more than a file can bear, whatever comes in.

Who sends nonsense a thousand times a second must not fill a disk with it: each kind of line comes a few times
a minute, all lines together have a budget, and what was left out is counted.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

SAME_LINES = 5
"""Lines of one kind in a minute."""
BYTES_AT_ONCE = 128 << 10
BYTES_A_MINUTE = 32 << 10
"""Two megabytes in an hour, when somebody tries."""

logger = logging.getLogger("rig.serve")


def log_mistake(error: BaseException) -> None:
    """A mistake of ours: with its traceback, so that it can be mended."""
    logger.error(f"A mistake of rig's own: {type(error).__name__}", exc_info=error)


def configure_log() -> None:
    """Log to stderr from now on, within the limits."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LogLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk must not stop the work


class LogLimit(logging.Filter):
    """Lets a few lines of each kind through, and few bytes in all.

    >>> now = [0.0]
    >>> limit = LogLimit(clock=lambda: now[0])
    >>> record = logging.LogRecord("a", 30, "a.py", 1, "no %s", ("bread",), None)
    >>> [limit.filter(record) for _ in range(7)]
    [True, True, True, True, True, False, False]
    >>> now[0] = 61.0; limit.filter(record), record.getMessage()
    (True, 'no bread (and 2 lines like it that were left out)')
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._minute = clock()
        self._seen: dict[tuple[str, str, int], int] = {}
        self._left_out: dict[tuple[str, str, int], int] = {}
        self._budget = float(BYTES_AT_ONCE)
        self._budget_at = clock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        now = self._clock()
        if now - self._minute > 60:
            self._minute = now
            self._seen.clear()
        kind = (record.name, str(record.msg)[:100], record.lineno)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        gained = (now - self._budget_at) / 60 * BYTES_A_MINUTE
        self._budget, self._budget_at = min(self._budget + gained, float(BYTES_AT_ONCE)), now
        if self._seen[kind] > SAME_LINES or self._budget <= 0 or len(self._seen) > 1000:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            if len(self._left_out) > 1000:
                self._left_out.clear()
            return False
        if more := self._left_out.pop(kind, 0):
            record.msg = f"{record.getMessage()} (and {more} lines like it that were left out)"
            record.args = ()
        self._budget -= len(record.getMessage()) + (4000 if record.exc_info else 100)
        return True
