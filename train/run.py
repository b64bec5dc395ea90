"""A run begins, goes on, and ends: run folders, locks and GPUs around `train.grpo`, which does the work."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse
from rig.notify import tell_person
from rig.paths import shell_word
from rig.runs import Run
from train import ddp
from train import recipe as recipes
from train.monitor import log
from train.recipe import Recipe

MAY_CHANGE = (
    "schedule.max_steps", "schedule.save_every", "schedule.keep_checkpoints",
    "schedule.learning_rate", "schedule.report_to", "watch", "evaluation", "backend",
)  # fmt: skip
"""What may change when a run goes on; everything else would make it another run."""

REPORTED = (
    "steps", "seconds", "trainable_parameters", "held_out_problems", "change", "alarms", "stopped",
    "early", "energy",
)  # fmt: skip
"""Fields of run.json that `rig train --json` prints as they are."""


def start_run(
    recipe: Recipe, folder: Path, *, gpus: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Train `recipe` into the new run folder `folder`; what goes wrong before the first step leaves none."""
    if gpus > 1:
        ddp.check_gpu_count(gpus)
    before = folder.exists()
    run = Run.create(folder, recipe=recipes.to_toml(recipe), base=recipe.model.name)
    run.update_record(cards=gpus)
    try:
        return _train(run, recipe, quiet=quiet)
    except BaseException:
        if not before and not log.read_step_rows(folder / log.LOG):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume_run(run: Run, settings: tuple[str, ...] = (), *, quiet: bool = False) -> dict[str, Any]:
    """Go on with `run` from its newest checkpoint; one that is trained is only reported."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if not any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
            raise WrongUse(
                f"--set {key}: a run that goes on can't change this, only {', '.join(MAY_CHANGE)}. "
                "Start a new run for anything else."
            )
    recipe = recipes.load_run_recipe(run.path, settings)
    done = int(run.record.get("steps") or 0)
    finished = run.state not in ("planned", "training")
    if finished and (run.record.get("early") or recipe.schedule.max_steps <= done):
        if not quiet:
            more = f"--set schedule.max_steps={2 * max(done, 1)} would go on"
            why = "it ended early" if run.record.get("early") else more
            print(f"{run.path} is trained, {done} steps: {why}.", file=sys.stderr)
        return run_outcome(run)
    if settings:
        recipes.save_recipe(recipe, run.path)
    return _train(run, recipe, quiet=quiet)


def run_outcome(run: Run) -> dict[str, Any]:
    """What `rig train --json` prints: one stable object."""
    judged = run.record.get("eval", {})
    kept = ("n", "strict", "lenient", "format", "sampling", "seconds")
    return {
        "run": str(run.path),
        "state": run.state,
        "adapter": str(run.adapter_folder) if run.adapter_folder.is_dir() else None,
        "report": str(path) if (path := run.path / "report.html").is_file() else None,
        **{key: run.record.get(key) for key in REPORTED},
        **{
            label: {key: judged[label][key] for key in kept} if label in judged else None
            for label in ("before", "after")
        },
    }


def outcome_lines(found: dict[str, Any]) -> list[str]:
    """What a run came to and what can be done with it, line by line; `found` is `run_outcome`'s."""
    from train.eval.scoring import MEASURES

    lines = [f"{found['state']}: {found['run']}, {found['steps']} steps"]
    for measure, words in MEASURES.items():
        shares = [found[label][measure]["share"] for label in ("before", "after") if found[label]]
        if shares:
            lines.append(f"  {words:<27}{' -> '.join(f'{share:.1%}' for share in shares)}")
    if found["report"]:
        lines.append(f"Report: {found['report']}")
    if found["state"] in ("planned", "training"):
        lines.append(f"Not finished. Go on with: rig train --resume {shell_word(found['run'])}")
    elif found["state"] == "trained":
        lines.append(f"Next: rig export {shell_word(found['run'])} --gguf")
    return lines


def _train(run: Run, recipe: Recipe, *, quiet: bool) -> dict[str, Any]:
    """Train, and tell the person whom rig.toml names how it ended; who pressed Ctrl-C knows."""
    name = f"rig: {run.path.name}"
    try:
        _train_to_the_end(run, recipe, quiet=quiet)
    except Exception as error:
        said = error.message if isinstance(error, RigError) else f"{type(error).__name__}: {error}"
        tell_person(f"{name} did not come to its end", said, wait=True)
        raise
    found = run_outcome(Run.open(run.path))
    tell_person(f"{name} is {found['state']}", "\n".join(outcome_lines(found)), wait=True)
    return found


def _train_to_the_end(run: Run, recipe: Recipe, *, quiet: bool) -> None:
    gpus = int(run.record.get("cards", 1))
    run.update_record(error=None, stopped=None)
    # What libraries, trackers and rewards of one's own print must not mix with the result.
    with run.hold_lock(), contextlib.redirect_stdout(sys.stderr):
        if gpus > 1:
            ddp.launch_workers(run, gpus, quiet=quiet)
        else:
            from train import grpo

            try:
                grpo.train(run, recipe, gpus=1, quiet=quiet)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise RigError(
                    f"The disk is full. Free some space, then: rig train --resume {shell_word(run.path)}"
                ) from error
