"""One process of a run on several GPUs: `python -m train.ddp_worker RUN`, started by `train.ddp` alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from torch import distributed

from rig.atomic import write_text
from rig.runs import Run
from train import ddp, grpo, recipe


def main(path: str, quiet: bool = False) -> int:
    """Train as one of many; each writes why it failed where `train.ddp` looks for it."""
    run = Run.open(Path(path))
    found = recipe.load_run_recipe(run.path)
    try:
        grpo.train(run, found, gpus=int(os.environ["WORLD_SIZE"]), quiet=quiet)
        distributed.destroy_process_group()
    except click.ClickException as error:
        # Not into run.json, which belongs to the first process alone.
        write_text(run.path / ddp.WORKERS / f"{os.environ['RANK']}{ddp.ERROR}", error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--quiet" in sys.argv))
