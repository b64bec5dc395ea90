"""A clock that is moved by hand, and APScheduler run by it: its own triggers and jobs, nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import apscheduler.schedulers.base as base
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.base import BaseScheduler


class Clock:
    """The time, as the test says."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class WrongClock(Clock):
    """A box's clock, off by `error`; `true` is what the rest of the world goes by."""

    def __init__(self, now: datetime) -> None:
        self.error = timedelta(0)
        super().__init__(now)

    @property
    def now(self) -> datetime:
        """What the box believes."""
        return self.moment + self.error

    @now.setter
    def now(self, believed: datetime) -> None:
        self.moment = believed - self.error

    def true(self) -> datetime:
        """What it is."""
        return self.moment


class ByHand(BaseScheduler):  # type: ignore[misc]
    """Runs due jobs in the caller's thread when told to; `until` moves the clock from job to job."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        super().__init__(timezone=UTC, executors={"default": DebugExecutor()})

    def wakeup(self) -> None:
        """Nobody sleeps."""

    def shutdown(self, wait: bool = True) -> None:
        """Stop."""
        super().shutdown(wait)

    def step(self) -> float:
        """Run what is due now; return the seconds until something is due again."""
        return float(self._process_jobs() or 0.0)

    def until(self, end: datetime, still: Any = lambda: True) -> None:
        """Let time pass until `end`, as long as `still` says so."""
        while still():
            wait = timedelta(seconds=self.step())
            if self.clock.now + wait >= end:
                self.clock.now = end
                return
            self.clock.now += wait


@contextmanager
def simulated(clock: Clock) -> Iterator[None]:
    """While this lasts, APScheduler takes the time from `clock`."""

    class Simulated(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return clock.now.astimezone(tz or UTC)

    real = base.datetime
    base.datetime = Simulated
    try:
        yield
    finally:
        base.datetime = real
