"""What a log says about a run: a reward that never fires, signal lost, lengths and entropy gone wrong.

Pure: rows in, alarms out. A resumed run first feeds it the rows that it already has. A row is one line of
TRL's log; absent figures are simply not judged.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, pvariance
from typing import Any

KINDS = (
    "nan", "dead-reward", "constant-reward", "no-signal", "collapse", "explosion", "clipped",
    "entropy", "never-learns",
)  # fmt: skip
"""Every alarm there is, by the name that `watch.stop` takes."""

REWARD = re.compile(r"rewards/(.+?)(?:/mean)?")
WINDOW = 30
"""Rows over which a share of steps without signal is judged."""
START = 5
"""Rows that say how long completions were before training."""
SOLVED = 0.9
"""Accuracy from which lost signal and low entropy mean success, not trouble."""


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong, and since which step it is known."""

    kind: str
    """One of `KINDS`."""
    step: int
    subject: str
    """The reward it is about, or empty."""
    sentence: str

    def to_log_row(self) -> dict[str, Any]:
        """As a line of log.jsonl."""
        said = asdict(self)
        return {"step": said.pop("step"), "alarm": said.pop("kind"), **said}


class Alarms:
    """Remembers what it needs of the rows so far; each alarm sounds once per subject.

    Args:
        dead_reward: steps without any movement after which a reward is called dead (0 = never).
        no_signal: steps in a row without learning signal (0 = never).
        no_signal_share: share of the last 30 steps without learning signal.
        collapse: mean length below this share of the start's (0 = never).
        explosion: mean length above this many times the start's, at the limit (0 = never).
        clipped: mean share of cut off completions over ten steps (0 = never).
        entropy: nats per token below which entropy has collapsed (0 = never).
        never_learns: steps after which the reward must have risen (0 = never).
    """

    def __init__(
        self,
        *,
        dead_reward: int = 10,
        no_signal: int = 5,
        no_signal_share: float = 0.3,
        collapse: float = 0.25,
        explosion: float = 3.0,
        clipped: float = 0.5,
        entropy: float = 0.02,
        never_learns: int = 200,
    ) -> None:
        self._dead_after = dead_reward
        self._lost_after = no_signal
        self._lost_share = no_signal_share
        self._collapse = collapse
        self._explosion = explosion
        self._clipped_over = clipped
        self._entropy_under = entropy
        self._hopeless_after = never_learns
        self._sounded: set[tuple[str, str]] = set()
        self._still: dict[str, tuple[int, float]] = {}  # reward -> rows without movement, its value
        self._ever_moved: set[str] = set()
        self._lost_in_row = 0
        self._lost: deque[float] = deque(maxlen=WINDOW)
        self._lengths: list[float] = []
        self._clipped: deque[float] = deque(maxlen=10)
        self._entropies: deque[float] = deque(maxlen=START)
        self._accuracies: deque[float] = deque(maxlen=START)
        self._rewards: list[float] = []
        self._any_signal = False

    def check_row(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Take one row of the log and return what it reveals, most often nothing."""
        step = int(row.get("step", len(self._rewards) + 1))
        found = [*self._broken(row, step)]
        if _number(row, "reward") is None:
            return found  # it learnt from completions of an earlier step
        if (accuracy := _number(row, "accuracy")) is not None:
            self._accuracies.append(accuracy)
        found += self._rewards_of(row, step)
        found += self._signal(row, step)
        found += self._length(row, step)
        found += self._narrowing(row, step)
        found += self._learning(row, step)
        return found

    # ------------------------------------------------------------------------------------------------------

    def _sound(self, kind: str, step: int, sentence: str, subject: str = "") -> Iterable[Alarm]:
        if (kind, subject) not in self._sounded:
            self._sounded.add((kind, subject))
            yield Alarm(kind, step, subject, sentence)

    def _broken(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        for key in ("loss", "grad_norm", "reward"):
            value = row.get(key)
            if value not in (None, "") and not math.isfinite(float(value)):
                yield from self._sound(
                    "nan",
                    step,
                    f"{key} is {value} at step {step}: the weights are lost from here on. Resume from the "
                    "last checkpoint with a lower schedule.learning_rate.",
                )
                return

    def _rewards_of(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        for key in row:
            match = REWARD.fullmatch(key)
            skipped = _is_nan(row[key])  # it gave None to every completion
            mean = 0.0 if skipped else _number(row, key)
            if match is None or mean is None or key.endswith("/std"):
                continue
            name = match[1]
            spread = _number(row, f"rewards/{name}/std") or 0.0
            rows, value = self._still.get(name, (0, mean))
            still = spread < 1e-9 and abs(mean - value) < 1e-9
            self._still[name] = (rows + 1, mean) if still else (0, mean)
            if not still:
                self._ever_moved.add(name)
            if not self._dead_after or name in self._ever_moved or rows + 1 < self._dead_after:
                continue
            if abs(mean) < 1e-9:
                yield from self._sound(
                    "dead-reward",
                    step,
                    f"the reward {name} has not fired once in {rows + 1} steps: no completion can earn it, "
                    "or the model never tries. `rig rewards --check RECIPE` shows which.",
                    name,
                )
            else:
                yield from self._sound(
                    "constant-reward",
                    step,
                    f"the reward {name} gave {mean:g} to every completion of {rows + 1} steps: it tells "
                    "none apart and teaches nothing.",
                    name,
                )

    def _signal(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        lost = _number(row, "frac_reward_zero_std")
        if lost is None:
            spread = _number(row, "reward_std")
            if spread is None:
                return
            lost = float(spread < 1e-9)
        self._lost.append(lost)
        self._lost_in_row = self._lost_in_row + 1 if lost > 0.999 else 0
        self._any_signal = self._any_signal or lost <= 0.999
        if self._solved():
            return
        why = (
            "every completion of a group earned the same. Drop prompts that are always or never solved "
            "(probe.attempts = 4), use more grpo.num_generations, or a reward that comes in grades."
        )
        share = fmean(self._lost)
        if self._lost_after and self._lost_in_row >= self._lost_after:
            yield from self._sound(
                "no-signal",
                step,
                f"no learning signal for {self._lost_in_row} steps in a row: {why}",
            )
        elif len(self._lost) == WINDOW and self._lost_share and share >= self._lost_share:
            yield from self._sound(
                "no-signal",
                step,
                f"no learning signal in {share:.0%} of the groups of the last {WINDOW} steps: {why}",
            )

    def _length(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        length = _number(row, "completions/mean_length") or _number(row, "completion_length")
        clipped = _number(row, "completions/clipped_ratio")
        if clipped is not None:
            self._clipped.append(clipped)
        if length is None:
            return
        self._lengths.append(length)
        start, now = fmean(self._lengths[:START]), fmean(self._lengths[-START:])
        cut = fmean(self._clipped) if self._clipped else 1.0
        if len(self._lengths) >= 2 * START:
            if self._collapse and now < self._collapse * start:
                yield from self._sound(
                    "collapse",
                    step,
                    f"completions shrank from {start:.0f} to {now:.0f} tokens: the model gives up reasoning. "
                    "Look at samples.jsonl for what the rewards pay instead.",
                )
            if self._explosion and now > self._explosion * start and cut > 0.2:
                yield from self._sound(
                    "explosion",
                    step,
                    f"completions grew from {start:.0f} to {now:.0f} tokens and run into the limit: lower "
                    "schedule.learning_rate, or add the reward `length`.",
                )
        if len(self._clipped) == 10 and self._clipped_over and cut > self._clipped_over:
            yield from self._sound(
                "clipped",
                step,
                f"{cut:.0%} of the completions of the last ten steps were cut off before they ended: raise "
                "grpo.max_completion_length, or check that the model knows its end token.",
            )

    def _narrowing(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        entropy = _number(row, "entropy")
        if entropy is None or not self._entropy_under:
            return
        self._entropies.append(entropy)
        mean = fmean(self._entropies)
        if len(self._entropies) == START and mean < self._entropy_under and not self._solved():
            yield from self._sound(
                "entropy",
                step,
                f"entropy fell to {mean:.3f} nats a token: the model says one thing only and explores no "
                "more. Lower schedule.learning_rate, or raise grpo.epsilon_high or grpo.temperature.",
            )

    def _learning(self, row: Mapping[str, Any], step: int) -> Iterable[Alarm]:
        self._rewards.append(float(row["reward"]))
        rows, after = len(self._rewards), self._hopeless_after
        if not after or self._solved():
            return
        if rows >= max(10, after // 4) and not self._any_signal:
            yield from self._sound(
                "never-learns",
                step,
                f"not one of {rows} steps had a learning signal, so nothing was learnt and nothing can be: "
                "no reward tells two completions of one prompt apart.",
            )
        if rows >= after and rows % 10 == 0:
            part = max(5, rows // 4)
            early, late = self._rewards[:part], self._rewards[-part:]
            rise = fmean(late) - fmean(early)
            doubt = math.sqrt((pvariance(early) + pvariance(late)) / part)
            if rise <= 2 * doubt:
                yield from self._sound(
                    "never-learns",
                    step,
                    f"the mean reward went from {fmean(early):.3f} to {fmean(late):.3f} in {rows} steps, "
                    f"which is no rise beyond chance (±{2 * doubt:.3f}): try a higher "
                    "schedule.learning_rate, easier problems, or other rewards.",
                )

    def _solved(self) -> bool:
        return bool(self._accuracies) and fmean(self._accuracies) >= SOLVED


def _is_nan(value: Any) -> bool:
    """Whether the figure is not a number, as a float or in the words of log.jsonl."""
    return bool(value != value or value == "nan")


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite figure of the row; None for one that is absent, empty, or not finite."""
    value = row.get(key)
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None
