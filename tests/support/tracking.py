"""Train with one tracker, read it back, print what it holds: `python tests/support/tracking.py NAME`.

Two runs in one process, then the first goes on, taken up one step before its end, as a kill leaves it. A
process of its own, because trackers settle where they write when they are first imported.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.runs import Run
from support.small_runs import start
from train import run as train_run

PLAIN = ["evaluation.problems=0", "backend.preflight=false"]


def by_tensorboard(run: Run) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    return {
        key: [[event.step, event.value] for event in found.Scalars(key)]
        for key in found.Tags()["scalars"]
    }


def by_wandb(run: Run) -> dict[str, list[Any]]:
    """wandb's records in its file of records: LevelDB's log format, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    figures: dict[str, list[Any]] = {}
    for path in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            for key in row:
                figures.setdefault(key, []).append([row.get("train/global_step"), row[key]])
    return figures


def records(data: bytes) -> Iterator[bytes]:
    """Checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last) before each piece."""
    at, part, block = 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block  # the rest of the block is empty
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield part
            part = b""


def by_trackio(run: Run) -> dict[str, list[Any]]:
    import trackio

    names = [one.name for one in trackio.Api().runs("rig")]
    (name,) = [name for name in names if name.startswith(f"{run.path.name}-")]
    from trackio.sqlite_storage import SQLiteStorage

    figures: dict[str, list[Any]] = {}
    for row in SQLiteStorage.get_logs("rig", name):
        for key in row:
            figures.setdefault(key, []).append([row.get("train/global_step"), row[key]])
    return figures


def main(tracker: str) -> None:
    read = {"tensorboard": by_tensorboard, "trackio": by_trackio, "wandb": by_wandb}[tracker]
    ours = [*PLAIN, f'schedule.report_to=["{tracker}"]']
    held = {}
    for name in ("mine", "other"):
        run = Run.open(Path(start(*ours, name=name)["run"]))
        held[name] = read(run)
    run = Run.open(Path("runs/mine"))
    shutil.rmtree(run.checkpoint_folder / "checkpoint-2")
    run.update_record("training")
    train_run.resume_run(run, ("schedule.max_steps=3",), quiet=True)
    held["resumed"] = read(run)
    print(json.dumps(held))


if __name__ == "__main__":
    main(sys.argv[1])
