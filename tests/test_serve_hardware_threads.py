"""How many threads compute: `pytest tests/test_serve_hardware_threads.py`."""

from __future__ import annotations

from serve.hardware.threads import ThreadTuner


class Box:
    """A machine with a clock of its own: what a step takes with n threads, and the time they get."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.n = most
        self.cost: dict[int, float] = {}
        self.share: dict[int, float] = {}
        self.usual: float | None = None
        self.threads = ThreadTuner(self._use, most, lambda: self.now)

    def _use(self, n: int) -> None:
        self.n = n

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            took = self.cost[self.n]
            self.now += took
            trying = self.threads.in_trial
            if self.threads.record_step(
                took, took * self.share[self.n] * self.n, self.usual or took
            ):
                self.usual = None
            elif not trying:
                self.usual = took


def test_threads_give_way_while_another_program_runs_and_come_back() -> None:
    box = Box(4)
    box.cost, box.share = {4: 0.02, 3: 0.026, 2: 0.04, 1: 0.08}, dict.fromkeys(range(1, 5), 1.0)
    box.run(20)
    assert (box.threads.num_threads, box.threads.changes) == (4, 0)
    box.cost, box.share = {4: 0.2, 3: 0.027, 2: 0.04, 1: 0.08}, {4: 0.85, 3: 1.0, 2: 1.0, 1: 1.0}
    box.run(20)
    assert box.threads.num_threads == 3
    box.cost, box.share = {4: 0.02, 3: 0.026, 2: 0.04, 1: 0.08}, dict.fromkeys(range(1, 5), 1.0)
    box.run(130)
    assert box.threads.num_threads == 4


def test_a_blip_costs_one_long_step_and_not_a_whole_prompt() -> None:
    box = Box(2)
    box.cost, box.share = {2: 1.0, 1: 2.0}, {2: 0.85, 1: 1.0}
    box.run(6)
    assert (box.threads.num_threads, box.n, box.threads.in_trial) == (2, 2, False)
    assert box.now == 6.0, "two trials of one step of two seconds, two steps of one"
    box.cost, box.share = {2: 9.0, 1: 2.0}, {2: 0.6, 1: 1.0}
    box.run(30)
    assert box.threads.num_threads == 1
    box.cost, box.share = {2: 1.0, 1: 2.0}, {2: 1.0, 1: 1.0}
    box.run(5)
    assert (box.threads.num_threads, box.threads.in_trial) == (2, False), "and back at once"


def test_trials_that_change_nothing_become_rare() -> None:
    box = Box(2)
    box.cost, box.share = {2: 0.02, 1: 0.02}, {2: 0.5, 1: 1.0}
    box.run(600)
    assert box.threads.num_threads == 2
    assert box.threads._pause == 60.0
