"""Files that others made: only regular ones of a bounded size are read, and what is wrong is a sentence.

A pipe or a device under a model's name would be read for ever, a deep nesting ends Python's own reader with
an error of its own, and `{"vocab_size": []}` would surface far from where it was read.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from rig.errors import RigError

MOST_JSON = 128 << 20
"""Bytes of the largest JSON file that is read; the largest tokenizers have a quarter of it."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; folders, pipes and devices are refused, and nothing waits for a writer."""
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError:
        raise RigError(f"There is no file {path}.") from None
    except ValueError as error:  # a NUL in the name
        raise RigError(f"{str(path)!r} can be no file ({error}).") from None
    except OSError as error:
        if path.is_dir():
            raise RigError(f"{path} is a folder, not a file.") from None
        raise RigError(f"{path} can't be read: {error.strerror or error}.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise RigError(f"{path} is {kind}, not a file.")
    return os.fdopen(handle, "rb")


def read_foreign_text(path: Path, *, most: int = MOST_JSON) -> str:
    """The text of a file in UTF-8 that has at most so many bytes."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise RigError(f"{path} has {size:,} bytes, more than any such file ({most:,}).")
        raw = file.read(most)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RigError(
            f"{path} is damaged (no UTF-8 at byte {error.start}): copy or download it again."
        ) from None


def parse_json_object(text: str | bytes, where: Path | str) -> dict[str, Any]:
    """A JSON object; `where` names the file in the sentence that says why it is none."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise RigError(
            f"{where} is damaged (nested too deeply): copy or download it again."
        ) from None
    except ValueError as error:
        raise RigError(f"{where} is damaged ({error}): copy or download it again.") from None
    if not isinstance(found, dict):
        raise RigError(f"{where} is damaged (no JSON object): copy or download it again.")
    return found


def read_json_object(path: Path, *, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in a file."""
    return parse_json_object(read_foreign_text(path, most=most), path)
