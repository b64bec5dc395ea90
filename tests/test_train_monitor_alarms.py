"""What a log gives away about a run: `pytest tests/test_train_monitor_alarms.py`."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train.monitor.alarms import KINDS, Alarm, Alarms

Row = dict[str, Any]


def replay(rows: Iterable[Row], **limits: Any) -> list[Alarm]:
    """Feed a whole log, and return its alarms in order."""
    alarms = Alarms(**limits)
    return [alarm for row in rows for alarm in alarms.check_row(row)]


def steps(count: int, **change: Any) -> Iterator[Row]:
    """A run that goes well; `change` maps a column to a function of the step (or to a value)."""
    rng = random.Random(7)
    for step in range(1, count + 1):
        mean = min(0.8, 0.1 + 0.01 * step) + rng.uniform(-0.05, 0.05)
        row: Row = {
            "step": step,
            "loss": 0.001,
            "grad_norm": 0.2,
            "reward": mean,
            "reward_std": 0.3,
            "frac_reward_zero_std": 0.1,
            "rewards/correct/mean": mean,
            "rewards/correct/std": 0.4,
            "completions/mean_length": 60.0,
            "completions/clipped_ratio": 0.02,
            "entropy": 0.5,
            "accuracy": mean,
        }
        for column, value in change.items():
            row[column.replace("__", "/")] = value(step) if callable(value) else value
        yield row


def kinds(alarms: list[Alarm]) -> list[tuple[str, str]]:
    return [(alarm.kind, alarm.subject) for alarm in alarms]


def read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_log_of_the_well_known_notebook_names_both_dead_rewards_and_the_lost_signal(
    shared: Path,
) -> None:
    rows = read_csv(shared / "data" / "grpo" / "unsloth_llama31_8b_t4_log.csv")
    assert len(rows) == 250
    alarms = replay(rows)
    assert kinds(alarms) == [
        ("dead-reward", "soft_format_reward_func"),
        ("dead-reward", "strict_format_reward_func"),
        ("no-signal", ""),
    ]
    assert [alarm.step for alarm in alarms[:2]] == [10, 10]
    assert alarms[2].step < 50


def test_a_run_that_goes_well_raises_no_alarm() -> None:
    assert replay(steps(400)) == []


@pytest.mark.parametrize(
    ("change", "kind", "subject", "by_step"),
    [
        ({"rewards__shape__mean": 0.0, "rewards__shape__std": 0.0}, "dead-reward", "shape", 10),
        ({"rewards__shape": 0.0}, "dead-reward", "shape", 10),  # tables carry the mean alone
        ({"rewards__length__mean": 1.0, "rewards__length__std": 0.0}, "constant-reward", "length", 10),
        ({"frac_reward_zero_std": 1.0, "accuracy": 0.0}, "no-signal", "", 5),
        ({"frac_reward_zero_std": lambda s: float(s % 3 == 0), "accuracy": 0.2}, "no-signal", "", 30),
        ({"completions__mean_length": lambda s: 60 / s}, "collapse", "", 12),
        (
            {"completions__mean_length": lambda s: 20.0 * s, "completions__clipped_ratio": 0.4},
            "explosion", "", 12,
        ),
        ({"completions__clipped_ratio": 0.9}, "clipped", "", 10),
        ({"entropy": lambda s: 0.5 / s**2, "accuracy": 0.3}, "entropy", "", 12),
        ({"loss": lambda s: math.nan if s == 7 else 0.1}, "nan", "", 7),
        ({"grad_norm": lambda s: math.inf if s == 3 else 0.1}, "nan", "", 3),
        ({"reward": 0.25, "accuracy": 0.2}, "never-learns", "", 200),
        ({"reward": 0.0, "frac_reward_zero_std": 1.0, "accuracy": 0.0}, "never-learns", "", 50),
    ],
)  # fmt: skip
def test_each_trouble_has_its_alarm(
    change: dict[str, Any], kind: str, subject: str, by_step: int
) -> None:
    found = [a for a in replay(steps(260, **change)) if (a.kind, a.subject) == (kind, subject)]
    assert len(found) == 1, "an alarm sounds once"
    assert found[0].step <= by_step
    assert found[0].sentence.endswith(".")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rewards__rare__mean": lambda s: float(s == 9) / 64, "rewards__rare__std": 0.0},
         "a reward that fires once in nine steps is rare, not dead"),
        ({"rewards__shape__mean": lambda s: min(1.0, s / 5), "rewards__shape__std": 0.0},
         "a format that was learnt and then always kept is success"),
        ({"frac_reward_zero_std": 1.0, "accuracy": 0.97}, "a solved task gives no signal either"),
        ({"entropy": 0.001, "accuracy": 0.97}, "nor does it leave much to choose"),
        ({"completions__mean_length": lambda s: 10.0 * s, "completions__clipped_ratio": 0.0},
         "a model that starts to reason speaks longer, and that is wanted"),
    ],
)  # fmt: skip
def test_what_looks_like_trouble_and_is_none(change: dict[str, Any], reason: str) -> None:
    quiet = ("dead-reward", "constant-reward", "no-signal", "entropy", "explosion")
    assert not [a for a in replay(steps(100, **change)) if a.kind in quiet], reason


def test_zero_switches_an_alarm_off() -> None:
    limits = {"dead_reward": 0, "no_signal": 0, "no_signal_share": 0, "collapse": 0, "explosion": 0,
              "clipped": 0, "entropy": 0, "never_learns": 0}  # fmt: skip
    dead: Row = {"rewards/x/mean": 0.0, "rewards/x/std": 0.0, "reward": 0.0, "reward_std": 0.0,
                 "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0, "entropy": 0.0,
                 "completions/mean_length": 1.0, "accuracy": 0.0}  # fmt: skip
    assert replay(({"step": n, **dead} for n in range(1, 300)), **limits) == []


def test_a_resumed_run_hears_the_same_alarms_as_one_that_was_never_cut() -> None:
    rows = list(steps(120, rewards__x__mean=0.0, rewards__x__std=0.0, frac_reward_zero_std=0.6))
    resumed = Alarms()
    before = [alarm for row in rows[:60] for alarm in resumed.check_row(row)]
    after = [alarm for row in rows[60:] for alarm in resumed.check_row(row)]
    assert before + after == replay(rows)


def test_rows_without_a_reward_are_steps_that_learnt_from_earlier_completions() -> None:
    rows = [{"step": n, "loss": 0.1} for n in range(1, 100)]
    assert replay(rows) == []


def test_every_kind_is_known_to_the_recipe() -> None:
    found = {alarm.kind for alarm in replay(steps(5, loss=math.nan))}
    assert found <= set(KINDS)
