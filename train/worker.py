"""One process of a run on several cards: `python -m train.worker RUN`, started by `train.cards` alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from torch import distributed

from rig.runs import Run
from train import grpo, recipe


def main(path: str, quiet: bool = False) -> int:
    """Train as one of many; the first process writes why it failed into run.json."""
    run = Run.open(Path(path))
    first = os.environ.get("RANK") == "0"
    found = recipe.parse((run.path / "recipe.toml").read_text("utf-8"), f"{path}/recipe.toml")
    try:
        grpo.work(run, found, gpus=int(os.environ["WORLD_SIZE"]), quiet=quiet)
        distributed.destroy_process_group()
    except click.ClickException as error:
        if first:
            run.note(error=error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--quiet" in sys.argv))
