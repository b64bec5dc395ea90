"""A checkpoint is a folder that is whole or absent: written beside its place, synced, then renamed.

The files are those of the trainer (adapter, optimiser, schedule, random states, counters) plus
`generation.pt` where completions wait that were generated but not yet learnt from.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rig.atomic import PART

NAME = re.compile(r"checkpoint-([0-9]+)")
WHEN_FULL = (
    "Free some space and go on with rig train --resume; the checkpoints before it are whole."
)
"""What to do where a folder of the run could not be written."""


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` optimiser steps.

    >>> checkpoint_name(25)
    'checkpoint-25'
    """
    return f"checkpoint-{step}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint, the oldest first."""
    found = [(NAME.fullmatch(p.name), p) for p in folder.glob("checkpoint-*") if p.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The checkpoint to go on from; None when there is none."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; a removal cut short leaves none half there."""
    for _, path in list_checkpoints(folder)[:-keep]:
        doomed = folder / f"{PART}old-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob(f"{PART}*"):
        shutil.rmtree(path, ignore_errors=True)
