"""TensorBoard, Weights & Biases, trackio: the trainer's own `report_to`, told where to write, and harmless.

transformers' callbacks do the reporting. Left to themselves they mix up two runs of one process or of one
name, ask for a login in the middle of a script, and end a run of many hours when they fail. So a tracker that
can't begin is a sentence before the model is loaded; one that fails later loses its own figures, never the
run. log.jsonl has all of them in any case.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.runs import Run

Say = Callable[[str], None]


class Trackers:
    """The trackers of one run in one process; as a context it closes them, whichever way the run ends.

    Args:
        run: its folder takes what TensorBoard and wandb write.
        names: the recipe's `schedule.report_to`.
        first: whether this process reports (rank 0).
        say: tells the person.
    """

    def __init__(self, run: Run, names: tuple[str, ...], *, first: bool, say: Say) -> None:
        self._run, self._say = run, say
        self._names = names if first else ()
        self._begun = False

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._begun and "wandb" in self._names:
            _end_wandb(self._say, failed=error is not None)
        if self._begun and "trackio" in self._names:
            import trackio

            with contextlib.suppress(RuntimeError):  # ended already, with the training
                trackio.finish()

    def start_trackers(self) -> None:
        """Begin what may need a login or a network, before anything slow is done."""
        if "wandb" in self._names:
            _begin_wandb(self._run, self._say)
        self._begun = True

    def guard_callbacks(self, trainer: Any, done: int) -> None:
        """Put a guard before each tracker of `trainer`, which goes on after step `done`."""
        from transformers import integrations as theirs

        classes = {
            "tensorboard": theirs.TensorBoardCallback,
            "trackio": theirs.TrackioCallback,
            "wandb": theirs.WandbCallback,
        }
        trainer.args.run_name = _name(self._run)
        callbacks = trainer.callback_handler.callbacks
        for name in self._names:
            at = next(at for at, one in enumerate(callbacks) if type(one) is classes[name])
            if name == "tensorboard":
                with _beginning(name):
                    callbacks[at].tb_writer = _tensorboard_writer(self._run, done)
            callbacks[at] = GuardedCallback(callbacks[at], name, self._say)
        # TRL would send its timings past the guard: rows of their own, and an error that ends the run.
        trainer.args.report_to = []


class GuardedCallback:
    """Stands before a tracker's callback: what it raises at the beginning is a sentence, later a warning."""

    def __init__(self, tracker: Any, name: str, say: Say) -> None:
        self._tracker, self._name, self._say = tracker, name, say
        self._lost = False

    def __getattr__(self, event: str) -> Callable[..., None]:
        """The tracker's own answer to `event`, made harmless."""
        answer = getattr(self._tracker, event)

        def guarded(*given: Any, **more: Any) -> None:
            if self._lost:
                return
            if event == "on_train_begin":
                with _beginning(self._name):
                    answer(*given, **more)
                return
            try:
                answer(*given, **more)
            except Exception as error:
                self._lost = True
                self._say(
                    f"! {self._name} failed ({_first_line(error)}) and hears no more of this run; "
                    "log.jsonl has every figure."
                )

        return guarded


@contextlib.contextmanager
def _beginning(name: str, advice: str = "Mend that") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RigError(
            f"schedule.report_to: {name} can't begin ({_first_line(error)}). {advice}, or leave "
            f"{name} out."
        ) from error


def _name(run: Run) -> str:
    """What trackers call the run; trackio joins runs of one name, so the name says when it was begun.

    >>> from pathlib import Path
    >>> _name(Run(Path("runs/mine"), {"created": "2026-11-23T21:12:06+00:00"}))
    'mine-20261123-211206'
    """
    began = re.sub(r"\D", "", str(run.record["created"]))
    return f"{run.path.resolve().name}-{began[:8]}-{began[8:14]}"


def _tensorboard_writer(run: Run, done: int) -> Any:
    """Steps after the checkpoint, which will be lived again, are taken back."""
    from torch.utils.tensorboard import SummaryWriter

    folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(run.path.resolve() / "tensorboard")
    return SummaryWriter(folder, purge_step=done + 1 if done else None)


def _begin_wandb(run: Run, say: Say) -> None:
    """Open the run that the callback will find; a resumed run goes on under its old id."""
    import wandb

    ours = {"silent": True, "console": "off"}  # no questions asked, and the terminal stays as it is
    kept = {key: ours[key] for key in ours if f"WANDB_{key.upper()}" not in os.environ}
    wandb.setup(settings=wandb.Settings(**kept))
    advice = "Run wandb login once, or set WANDB_MODE=offline (wandb sync uploads it later)"
    with _beginning("wandb", advice):
        found = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rig"),
            name=_name(run),
            dir=os.environ.get("WANDB_DIR") or str(run.path.resolve()),
            id=run.record.get("wandb"),
            resume="allow",
        )
    run.update_record(wandb=found.id)
    say(f"  wandb: {found.url or Path(found.dir).parent}")


def _end_wandb(say: Say, *, failed: bool) -> None:
    import wandb

    try:
        wandb.finish(exit_code=int(failed))
    except Exception as error:
        say(f"! wandb could not be ended ({_first_line(error)}); log.jsonl has every figure.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
