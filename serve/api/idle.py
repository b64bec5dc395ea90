"""When a server that nobody uses gives its memory back, and when it leaves altogether.

Only work on the model counts as use: a metrics scraper or a health check that comes every ten seconds must
not keep five gigabytes in memory. A clock and two numbers; what to do about it is the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal


class IdleTimer:
    """Counts who is at work; safe to call from several threads.

    >>> now = [0.0]
    >>> idle = IdleTimer(unload_after=60, exit_after=300, clock=lambda: now[0])
    >>> with idle.track_request():
    ...     now[0] = 1000.0
    ...     idle.due_action(loaded=True)
    >>> now[0] = 1060.0; idle.due_action(loaded=True)
    'unload'
    >>> idle.due_action(loaded=False)
    >>> now[0] = 1300.0; idle.due_action(loaded=False)
    'exit'
    """

    def __init__(
        self,
        unload_after: float,
        exit_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both in seconds without work; 0 means never."""
        self.unload_after = unload_after
        self.exit_after = exit_after
        self._clock = clock
        self._lock = threading.Lock()
        self._at_work = 0
        self._since = clock()

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Hold around one request that needs the model, from its arrival to its last byte."""
        with self._lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
                self._since = self._clock()

    def idle_seconds(self) -> float:
        """How long nobody has been at work; 0 while somebody is."""
        with self._lock:
            return 0.0 if self._at_work else self._clock() - self._since

    def due_action(self, loaded: bool) -> Literal["unload", "exit"] | None:
        """What to do now; leaving wins over unloading. Ask about once a second."""
        quiet = self.idle_seconds()
        if self.exit_after and quiet >= self.exit_after:
            return "exit"
        if loaded and self.unload_after and quiet >= self.unload_after:
            return "unload"
        return None
