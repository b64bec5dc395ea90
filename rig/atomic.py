"""A file or folder appears under its final name whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rig.errors import RigError

PART = ".part-"
"""Begins the name of a folder that is being written."""
AGAIN = "Free some space and run the same command again."


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes the final name only when the block ends well.

    The block may write the file however it likes. On any exception, Ctrl-C included, it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path, final: str, *, when_full: str = AGAIN) -> Iterator[Path]:
    """Give a folder to write `final` into; it appears under `folder` when the block ends well.

    The block writes to `<given>/<final>`. A full disk becomes a sentence that ends in `when_full`, and
    nothing half-written stays; what a killed process left begins with `PART`.
    """
    workshop = folder / f"{PART}{final}"
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    try:
        yield workshop
        sync_tree(workshop / final)
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
                f"The disk is full: {final} could not be written to {folder}. {when_full}"
            ) from error
        raise
    shutil.rmtree(workshop, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8 with Unix line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder`, and its names, survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _is_full(folder: Path, error: Exception) -> bool:
    """torch and safetensors hide the system's error number, so the disk itself is asked as well."""
    number = getattr(error, "errno", None)
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return shutil.disk_usage(folder).free < 2**20 or "No space left" in str(error)
