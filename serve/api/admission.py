"""Who may use the engine next: a person before a bot, in order of arrival, and not without end.

When every place is taken by bots and a person comes, the bot that came last rests until one is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from rig.errors import RigError


class QueueFull(RigError):
    """The queue is full; `retry_after` is how many seconds to wait."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False)
class Admission:
    """A request that waits, works, or rests."""

    urgent: bool
    go: asyncio.Event = field(default_factory=asyncio.Event)
    on_rest: Callable[[bool], None] = lambda resting: None
    """Called with True when the request must rest and with False when it goes on."""
    resting: bool = False
    began: float = 0.0


class AdmissionQueue:
    """`places` requests at a time; at most `limit` wait."""

    def __init__(self, places: int, limit: int) -> None:
        self._places = places
        self._limit = limit
        self._waiting: list[Admission] = []
        self._working: list[Admission] = []
        self._arriving = 0
        self._typical = 5.0

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def num_working(self) -> int:
        """Requests that have begun and not ended, the resting ones included."""
        return len(self._working)

    @property
    def num_resting(self) -> int:
        """Requests of bots that made room for a person."""
        return sum(turn.resting for turn in self._working)

    @property
    def capacity(self) -> int:
        """Replies that can be on their way at all, those that wait included."""
        return self._places + self._limit

    @contextlib.contextmanager
    def announce_request(self, replies: int, *, urgent: bool) -> Iterator[None]:
        """Keep room for so many replies while their request is read. Raises QueueFull."""
        if replies > self._room(urgent):
            seconds = self._typical * (1 + len(self._waiting) / self._places)
            raise QueueFull(
                f"{len(self._waiting) + self._arriving} requests are waiting already, and "
                f"{self._limit} may: try again in {max(1, round(seconds))} s.",
                max(1, round(seconds)),
            )
        self._arriving += replies
        try:
            yield
        finally:
            self._arriving -= replies

    def _room(self, urgent: bool) -> int:
        """How many more replies may come: places that are free (for a person also those of bots)."""
        busy = [turn for turn in self._working if not turn.resting]
        free = self._places - sum(turn.urgent or not urgent for turn in busy)
        return max(0, free) + self._limit - len(self._waiting) - self._arriving

    @contextlib.asynccontextmanager
    async def admit_request(self, *, urgent: bool) -> AsyncIterator[Admission]:
        """Wait for a place and hold it for the length of the block; announce it before."""
        turn = Admission(urgent)
        self._waiting.append(turn)
        self._next()
        try:
            await turn.go.wait()
            yield turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn in self._working:
                self._working.remove(turn)
                self._typical += 0.2 * (time.monotonic() - turn.began - self._typical)
            self._next()

    def _next(self) -> None:
        """Give away free places: to persons, then to those who rest, then to bots."""
        while True:
            busy = [turn for turn in self._working if not turn.resting]
            persons = [turn for turn in self._waiting if turn.urgent]
            resting = [turn for turn in self._working if turn.resting]
            free = len(busy) < self._places
            if persons and free:
                self._begin(persons[0])
            elif persons and (bots := [turn for turn in busy if not turn.urgent]):
                self._rest(bots[-1], True)
                self._begin(persons[0])
            elif resting and free:
                self._rest(resting[0], False)
            elif self._waiting and free:
                self._begin(self._waiting[0])
            else:
                return

    def _begin(self, turn: Admission) -> None:
        self._waiting.remove(turn)
        self._working.append(turn)
        turn.began = time.monotonic()
        turn.go.set()

    def _rest(self, turn: Admission, resting: bool) -> None:
        turn.resting = resting
        turn.on_rest(resting)
