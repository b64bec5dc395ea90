"""A checkpoint is a folder that is whole or absent: written beside its place, synced, then renamed.

The files are those of the trainer (adapter, optimiser, schedule, random states, counters) plus
`generation.pt` where completions wait that were generated but not yet learnt from.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from rig.atomic import sync_folder
from rig.errors import RigError

NAME = re.compile(r"checkpoint-([0-9]+)")
PART = ".part-"


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


@contextlib.contextmanager
def atomic_folder(folder: Path, final: str) -> Iterator[Path]:
    """Give a folder to write `final` into; it appears under `folder` when the block ends well.

    The block writes to `<given>/<final>`. A full disk becomes a sentence, and nothing half-written stays.
    """
    workshop = folder / f"{PART}{final}"
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    try:
        yield workshop
        _sync(workshop / final)
        target = folder / final
        if target.exists():
            target.rename(workshop / "replaced")
        (workshop / final).rename(target)
        sync_folder(folder)
    except BaseException as error:
        full = isinstance(error, Exception) and _is_full(folder, error)  # before room is made
        shutil.rmtree(workshop, ignore_errors=True)
        if full and not isinstance(error, RigError):
            raise RigError(
                f"The disk is full: {final} could not be written to {folder}. Free some space and "
                "go on with rig train --resume; the checkpoints before it are whole."
            ) from error
        raise
    shutil.rmtree(workshop, ignore_errors=True)


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


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _is_full(folder: Path, error: Exception) -> bool:
    """torch and safetensors hide the system's error number, so the disk itself is asked as well."""
    import errno

    number = getattr(error, "errno", None)
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return shutil.disk_usage(folder).free < 2**20 or "No space left" in str(error)
