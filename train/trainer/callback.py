"""Sits in the trainer: writes the log and the samples, shows progress, sounds alarms, and asks to stop.

The trainer's own callbacks are the only way in, so the method is the same with and without it. One optimiser
step costs it a few writes; `benchmarks/train_step.py` measures that.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rig.notify import tell_person
from train.monitor import log
from train.monitor.alarms import Alarm, Alarms
from train.monitor.progress import ProgressBar

Look = Callable[[int], tuple[dict[str, Any], str | None]]
"""Judge the held-out problems at a step: figures, and why to stop early (or None)."""


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Everything rig does at the end of a step.

    Args:
        folder: the run folder.
        alarms: fed with every row; on resume with the rows of the past first.
        stop_on: kinds of alarm that end the run.
        progress: what the person sees.
        look: judges held-out problems in mid-run, every `look_every` steps.
        watts: returns the GPUs' power draw, or None.
        first: whether this process writes (rank 0).
    """

    def __init__(
        self,
        folder: Path,
        *,
        alarms: Alarms,
        stop_on: Sequence[str],
        progress: ProgressBar,
        look: Look | None = None,
        look_every: int = 0,
        watts: Callable[[], float | None] | None = None,
        first: bool = True,
    ) -> None:
        self.folder = folder
        self.alarms = alarms
        self.stop_on = set(stop_on)
        self.progress = progress
        self.stopped: Alarm | None = None
        self.early: str | None = None
        """Why the run ended before `max_steps` with success."""
        self.interrupted = False
        self.step = 0
        self.before_training: Callable[[], None] | None = None
        """Called once the trainer has wrapped the model, before the first step."""
        self.trainer: Any = None
        self._look, self._look_every = look, look_every
        self._watts = watts
        self._log = log.JsonlLog(folder / log.LOG) if first else None
        self._samples = log.JsonlLog(folder / log.SAMPLES) if first else None
        self._began = self._step_began = time.perf_counter()
        self._old_handlers: dict[int, Any] = {}
        self._name, self._rang = folder.name, False

    def attach_to(self, trainer: Any) -> None:
        """Listen to `trainer` from here on."""
        self.trainer = trainer
        trainer.add_callback(self)

    # ------------------------------------------------------------------------------------------------------
    # The trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Preflight; then start the clock and the bar, and take over Ctrl-C."""
        if self.before_training is not None:
            self.before_training()
        self.progress.start()
        self._began = self._step_began = time.perf_counter()
        self._catch_signals()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Once a person asked to stop, save this step and end."""
        self.step = state.global_step
        if self._agreed(self.interrupted):
            self.interrupted = True
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One optimiser step is done and its figures are there."""
        if not logs or "loss" not in logs:
            return  # the summary at the end
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        row = {"step": state.global_step, **{key: _plain(value) for key, value in logs.items()}}
        row.pop("total_flos", None)
        row["seconds"] = round(now - self._began, 3)
        if (peak := _peak_gib()) is not None:
            row["memory_gib"] = peak
        if self._watts is not None and (watts := self._watts()) is not None:
            row["watts"] = watts
        self._write(row)
        self.progress.show_step(row, seconds)
        for alarm in self.alarms.check_row(row):
            self._sound(alarm, control)
        if self._look and self._look_every and state.global_step % self._look_every == 0:
            self._judge(state.global_step, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give Ctrl-C back."""
        self.close()

    def close(self) -> None:
        """Give Ctrl-C and the terminal back; also after an error."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()
        self.progress.close()
        for file in (self._log, self._samples):
            if file is not None:
                file.close()

    # ------------------------------------------------------------------------------------------------------

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is None:
            return
        self._log.append_row(row)
        if self._samples is not None and self.trainer is not None and row.get("reward") is not None:
            for sample in _best_and_worst(self.trainer, row["step"]):
                self._samples.append_row(sample)

    def _sound(self, alarm: Alarm, control: Any) -> None:
        if self._log is not None:
            self._log.append_row(alarm.to_log_row())
        self.progress.print_line(f"! step {alarm.step}: {alarm.sentence}", "yellow")
        if self._log is not None and not self._rang and alarm.kind not in self.stop_on:
            tell_person(f"rig: {self._name} rang at step {alarm.step}", alarm.sentence)
        self._rang = True
        if alarm.kind in self.stop_on and self.stopped is None:
            self.stopped = alarm
            control.should_training_stop = True
            # A checkpoint of lost weights would stand in the way of the good one before it.
            control.should_save = alarm.kind != "nan"

    def _judge(self, step: int, control: Any) -> None:
        figures, reason = self._looked(step)
        if self._log is not None:
            self._log.append_row({"step": step, "held_out": figures})
        strict = figures.get("strict", {})
        if "share" in strict:
            self.progress.print_line(f"  step {step}: held-out accuracy {strict['share']:.1%}")
        if reason:
            self.early = reason
            self.progress.print_line(f"  {reason}")
            control.should_training_stop = True
            control.should_save = True
        self._step_began = time.perf_counter()

    def _looked(self, step: int) -> tuple[dict[str, Any], str | None]:
        """The first process looks, and tells the others what it saw."""
        assert self._look is not None
        if self.trainer is None or self.trainer.accelerator.num_processes == 1:
            return self._look(step)
        from accelerate.utils import broadcast_object_list

        seen: list[Any] = [self._look(step) if self._log is not None else None]
        figures, reason = broadcast_object_list(seen)[0]
        return figures, reason

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._asked)

    def _asked(self, number: int, _frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.progress.print_line(
            "Stopping after this step, with a checkpoint. Once more to stop at once (and lose the "
            "steps since the last one)."
        )

    def _agreed(self, wish: bool) -> bool:
        """Whether any process was asked to stop: all must leave after the same step."""
        if self.trainer is None or self.trainer.accelerator.num_processes == 1:
            return wish
        import torch

        votes = torch.tensor([float(wish)], device=self.trainer.accelerator.device)
        return bool(self.trainer.accelerator.reduce(votes, "sum").item())


def _best_and_worst(trainer: Any, step: int) -> list[dict[str, Any]]:
    """The best and the worst completion of the latest generation, with what each reward gave."""
    logs = trainer.latest_completions()
    names = list(logs["rewards"])
    count = len(logs["completion"])
    if not count:
        return []
    weights = trainer.reward_weights.tolist()

    def total(at: int) -> Any:
        given = (logs["rewards"][name][at] for name in names)
        return sum(w * mark for w, mark in zip(weights, given, strict=True) if mark == mark)

    best, worst = max(range(count), key=total), min(range(count), key=total)
    return [
        {
            "step": step,
            "prompt": logs["prompt"][at],
            "completion": logs["completion"][at],
            "reward": round(total(at), 4),
            "rewards": {name: logs["rewards"][name][at] for name in names},
        }
        for at in dict.fromkeys((best, worst))
    ]


def _plain(value: Any) -> Any:
    """A figure as JSON knows it; log.jsonl says NaN in words."""
    if hasattr(value, "item"):
        value = value.item()
    return value


def _peak_gib() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_reserved() / 2**30, 3)
