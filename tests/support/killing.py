"""Kills a run at random moments, resumes it, compares: `python tests/support/killing.py FOLDER N KEY=VALUE`.

A process of its own, because it forks: each child starts with the libraries loaded and no thread running,
so a kill costs a second instead of twenty. Children die by signal 9 and nothing else. Prints one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from rig.atomic import PART
from train import recipe as recipes
from train import run
from train.monitor import log
from train.recipe import Recipe
from train.trainer import checkpoints

CHECKPOINT = {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth",
              "scheduler.pt", "trainer_state.json"}  # fmt: skip
SPAWN = multiprocessing.get_context("fork")


def train(recipe: Recipe, folder: Path) -> None:
    """One child: begin, or go on where the folder says."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.stderr = sys.stdout = Path(f"{folder}.said").open("a", encoding="utf-8")  # noqa: SIM115
    if (folder / "run.json").exists():
        from rig.runs import Run

        run.resume_run(Run.open(folder), quiet=True)
    else:
        run.start_run(recipe, folder, quiet=True)


def child(recipe: Recipe, folder: Path) -> Any:
    process = SPAWN.Process(target=train, args=(recipe, folder))
    process.start()
    return process


def figures(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine's mood."""
    return [
        {key: value for key, value in row.items() if key not in log.CLOCK}
        for row in log.read_rows(folder / log.LOG)
    ]


def halves(folder: Path) -> list[str]:
    """What a kill left that is neither whole nor marked as a part."""
    found = []
    for _, path in checkpoints.list_checkpoints(folder / "checkpoints"):
        if missing := CHECKPOINT - {file.name for file in path.iterdir()}:
            found.append(f"{path.name} lacks {sorted(missing)}")
    return found


def main(place: Path, count: int, settings: list[str]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl
    from trl import GRPOTrainer  # noqa: F401

    from train.trainer import callback  # noqa: F401

    place.mkdir(parents=True, exist_ok=True)
    recipe = recipes.load_recipe("toy-arithmetic", settings)
    start = time.monotonic()
    whole = child(recipe, place / "whole")
    whole.join()
    lasted = time.monotonic() - start
    wanted = figures(place / "whole")
    steps = log.read_step_rows(place / "whole" / log.LOG)
    pace = steps[-1]["seconds"] / len(steps)
    rng = random.Random(place.name)
    kills = []
    for number in range(count):
        folder = place / f"killed-{number}"
        lives = 0
        while True:
            process = child(recipe, folder)
            if lives < 1 + number % 2:  # every other run is killed twice
                rows = rng.randrange(len(wanted) - 1)
                _live_a_while(process, folder, rows)
                # a step's time at most: a run that is over can't be killed
                process.join(rng.random() * (pace if rows else lasted - steps[-1]["seconds"]))
                process.kill()
            process.join()
            if process.exitcode != -9:
                break
            lives += 1
        logged = figures(folder)
        kills.append(
            {
                "kills": lives,
                "exit": process.exitcode,
                "same_log": logged == wanted,
                "same_adapter": _bytes(folder) == _bytes(place / "whole"),
                "halves": halves(folder),
                "leftovers": [p.name for p in (folder / "checkpoints").glob(f"{PART}*")],
            }
        )
    return {"trl": trl.__version__, "steps": len(wanted), "exit": whole.exitcode, "kills": kills}


def _live_a_while(process: Any, folder: Path, rows: int) -> None:
    """Until the log has that many rows; 0 = any moment of the start."""
    while process.exitcode is None and len(list(log.read_rows(folder / log.LOG))) < rows:
        process.join(0.01)


def _bytes(folder: Path) -> bytes:
    path = folder / "adapter" / "adapter_model.safetensors"
    return path.read_bytes() if path.is_file() else b""


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
