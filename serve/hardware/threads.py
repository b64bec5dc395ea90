"""How many threads to use right now: fewer while something else wants the cores.

llama.cpp's threads wait for each other by spinning, several hundred times in a token. On a box of its own
that is the fastest way. When another program takes one of the cores, all threads wait for the one that
lost it, and a model that wrote 40 tokens a second writes 3 (benchmarks/serve.py --only busy); with one thread
less it writes 11. So: when the threads do not get the processor time they could use, try with fewer; when
they do, try with more; keep what proves faster, and ask less and less often while nothing changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STARVED = 0.9
"""Share of the possible processor time below which fewer threads are tried."""
GAIN = 0.95
"""Share of the former time per step that a change must reach to be kept."""
CLEAR, LONG = 1.3, 0.1
"""A trial is decided by the first step of LONG seconds or more that takes CLEAR times as long as usual, or as
little: a prompt is read in a few steps of a second each, and a blip must not cost the whole of it."""
TRIAL_STEPS = 4
FIRST_PAUSE, LAST_PAUSE = 0.5, 60.0
"""Seconds between two trials: doubled after each one that changed nothing."""


class ThreadTuner:
    """Sets the number of threads, between 1 and `most`, by what each step took."""

    def __init__(
        self, apply: Callable[[int], None], most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._apply = apply
        self._most = most
        self._clock = clock
        self.num_threads = most
        self.changes = 0
        self._share = 1.0
        self._trial: int | None = None
        self._steps = 0
        self._cost = 0.0
        self._pause = FIRST_PAUSE
        self._next = clock() + FIRST_PAUSE

    @property
    def in_trial(self) -> bool:
        """Whether this step is part of a trial, so that its time tells nothing about usual steps."""
        return self._trial is not None

    def record_step(self, seconds: float, processor: float, usual: float | None) -> bool:
        """Take in one step: wall time, processor time of all threads, and what such a step usually takes.

        Returns True when the number of threads has changed for good: usual times no longer hold.
        """
        if self._most == 1 or not usual or seconds <= 0:
            return False
        if self._trial is not None:
            return self._go_on(seconds, seconds / usual)
        share = processor / (seconds * self.num_threads)
        weight = min(1.0, seconds / 0.1)  # about the last tenth of a second counts
        self._share += weight * (share - self._share)
        if self._clock() < self._next:
            return False
        if self._share < STARVED and self.num_threads > 1:
            self._begin(self.num_threads - 1)
        elif self._share >= STARVED and self.num_threads < self._most:
            self._begin(self.num_threads + 1)
        return False

    def _begin(self, trial: int) -> None:
        self._trial, self._steps, self._cost = trial, 0, 0.0
        self._apply(trial)

    def _go_on(self, seconds: float, cost: float) -> bool:
        self._steps += 1
        if seconds >= LONG and not 1 / CLEAR <= cost <= CLEAR:
            return self._decide(cost < 1)
        if self._steps == 1:
            return False  # the first one also pays for making or stopping a thread
        self._cost += cost
        if self._steps <= TRIAL_STEPS:
            return False
        return self._decide(self._cost / TRIAL_STEPS < GAIN)

    def _decide(self, kept: bool) -> bool:
        trial, self._trial = self._trial, None
        assert trial is not None
        self._pause = FIRST_PAUSE if kept else min(2 * self._pause, LAST_PAUSE)
        self._next = self._clock() + self._pause
        if kept:
            self.num_threads = trial
            self.changes += 1
            self._share = 1.0
        else:
            self._apply(self.num_threads)
        return kept
