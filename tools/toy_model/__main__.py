"""Makes the toy model: `python -m tools.toy_model --out rig/toy --seed N`.

On one H200 the whole takes about four minutes. Without a GPU it works the same but takes most of a
day; `--steps 300 --batch-tokens 4096` shows on a CPU in some minutes that everything runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click


def log(**figures: Any) -> None:
    """Write one line of progress to stderr."""
    print(json.dumps(figures), file=sys.stderr, flush=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
@click.option("--seed", default=1, show_default=True, help="Seed of lessons and weights.")
@click.option(
    "--go-on",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Train the model there on, with the last part of the lessons only.",
)
@click.option("--steps", default=3600, show_default=True, help="Steps of the optimiser.")
@click.option("--batch-tokens", default=32768, show_default=True, help="Most tokens in one step.")
@click.option("--lr", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--workers", default=0, help="Processes that make lessons (0: one per core).")
@click.option("--only-card", is_flag=True, help="Train nothing: measure, and write the card anew.")
def main(
    out: Path,
    seed: int,
    go_on: Path | None,
    steps: int,
    batch_tokens: int,
    lr: float,
    workers: int,
    only_card: bool,
) -> None:
    """Make the lessons, the tokenizer, the weights, and the card that tells how."""
    from tokenizers import Tokenizer

    from tools.toy_model import batches, lessons, measure, model, model_card
    from tools.toy_model import tokenizer as tk

    began = time.monotonic()
    if not only_card:
        if go_on is None:
            tokenizer = tk.train(lessons.texts(seed))
            begun = model.new(tokenizer, seed)
        else:
            tokenizer = Tokenizer.from_file(str(go_on / "tokenizer.json"))
            begun = model.load(go_on)
        tk.save(tokenizer, out)
        workers = workers or max(1, (os.cpu_count() or 2) - 1)
        skipped = batches.LAST_PART if go_on else 0.0
        made = batches.batches(tokenizer, steps, batch_tokens, seed, workers, skipped)
        model.save(model.train(begun, made, steps, lr, log), out)
        log(trained=str(out), seconds=round(time.monotonic() - began, 1))
    found = measure.measure(out)
    log(**found, seconds=round(time.monotonic() - began, 1))
    model_card.write(out, found)


if __name__ == "__main__":
    main()
