"""One process of a run on several cards: `python -m train.worker RUN`, started by `train.cards` alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from torch import distributed

from rig.runs import Run
from rig.writing import write_text
from train import cards, grpo, recipe


def main(path: str, quiet: bool = False) -> int:
    """Train as one of many; each writes why it failed where `train.cards` looks for it."""
    run = Run.open(Path(path))
    found = recipe.parse((run.path / "recipe.toml").read_text("utf-8"), f"{path}/recipe.toml")
    try:
        grpo.work(run, found, gpus=int(os.environ["WORLD_SIZE"]), quiet=quiet)
        distributed.destroy_process_group()
    except click.ClickException as error:
        # Not into run.json, which belongs to the first process alone.
        write_text(run.path / cards.WORKERS / f"{os.environ['RANK']}{cards.ERROR}", error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--quiet" in sys.argv))
