"""Which weights a run was taught on: an adapter belongs to one base, and any other would make it babble.

The fingerprint is a hash over the header of each safetensors file (names, shapes, types) and its bytes: all
of them up to 64 MiB, beyond that 16 blocks of 4 KiB of every tensor, so that a base of any size takes less
than a second. Fine-tuned or requantised weights differ everywhere; one changed number in a large file may
be missed, a damaged download is its hub's business.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.model.foreign import open_regular, parse_json_object, read_json_object
from rig.runs import Run

WHOLE = 64 * 2**20
"""Bytes up to which a file is hashed whole."""
BLOCKS, BLOCK = 16, 4096
"""Blocks that are hashed of each tensor of a larger file, and their bytes."""
MOST_HEADER = 100 << 20
"""Bytes of the largest header, by the format's own rule."""
INDEX = "model.safetensors.index.json"


def fingerprint_weights(folder: Path) -> str | None:
    """Return 16 hex digits for the weights in `folder`; None where they are not safetensors.

    Raises:
        RigError: a file is damaged or missing.
    """
    files = _files(folder)
    if not files:
        return None
    seen = hashlib.sha256()
    for path in files:
        try:
            _feed(seen, path)
        except (RigError, OSError, ValueError, LookupError, TypeError) as error:
            raise RigError(f"{path} is damaged ({error}): download the model again.") from error
    return seen.hexdigest()[:16]


def check_base_weights(run: Run, folder: Path) -> None:
    """Refuse the weights in `folder` where `run` was taught on others; a run that noted none passes."""
    noted = run.record.get("base_weights")
    if noted is not None and (found := fingerprint_weights(folder)) != noted:
        raise RigError(
            f"The weights in {folder} are not those that {run.path} was taught on (fingerprint {found}, "
            f"not {noted}), and its adapter fits no others: put {run.base_model} back as it was, or "
            "train again."
        )


def _files(folder: Path) -> list[Path]:
    """The files that a loader would take: those of the index, or the one without any."""
    if (index := folder / INDEX).is_file():
        where = read_json_object(index).get("weight_map")
        if not isinstance(where, dict):
            raise RigError(f"{index} is damaged (it has no weight_map): download the model again.")
        return [folder / name for name in sorted(set(map(str, where.values())))]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def _feed(seen: Any, path: Path) -> None:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            seen.update(file.read())
            return
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8 or length > MOST_HEADER:
            raise ValueError("its header is longer than the file, or than any")
        head = file.read(length)
        seen.update(head)
        tensors = {k: v for k, v in parse_json_object(head, path).items() if k != "__metadata__"}
        for name in sorted(tensors):
            start, end = tensors[name]["data_offsets"]
            for at in range(BLOCKS):
                file.seek(8 + length + start + (end - start) * at // BLOCKS)
                seen.update(file.read(max(0, min(BLOCK, end - start))))
