"""Which held-out problems a model is judged on: those of its run or of a recipe, always the same ones.

The problems are read from their source again, so a source that changed since is noticed: what a run kept
apart is remembered by a fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rig import runs
from rig.errors import WrongUse
from rig.runs import Run
from train import recipe
from train.data import dataset
from train.eval.models import SamplingParams
from train.recipe import Recipe

TOY_RECIPE = "toy-arithmetic"


@dataclass(frozen=True)
class Problems:
    """The problems, and how they are put."""

    recipe: Recipe
    rows: list[dataset.Row]
    fingerprint: str
    sampling: SamplingParams
    pass_at: int
    notes: list[str]

    def to_record(self) -> dict[str, Any]:
        """What was asked, for --json and run.json."""
        table = self.recipe.data
        return {
            "source": table.source,
            "n": len(self.rows),
            "seed": table.seed,
            "fingerprint": self.fingerprint,
        }


def find_run_recipe(target: str) -> tuple[Run, Recipe] | None:
    """The run called `target` with its recipe; None where `target` is a model instead."""
    path = runs.find_run(target)
    if not (path / runs.RECORD).is_file():
        return None
    run = Run.open(path)
    file = path / "recipe.toml"
    return run, recipe.parse_recipe(file.read_text("utf-8"), str(file))


def find_model_recipe(target: str | None, name: str | None) -> Recipe:
    """The recipe whose problems are put to a model that is no run."""
    if name is None and target == "toy":
        name = TOY_RECIPE
    if name is None:
        what = f"{target} is no run folder" if target else "No run is named"
        raise WrongUse(f"{what}, so say whose held-out problems to put: --recipe RECIPE.")
    return recipe.load_recipe(name)


def select_problems(
    found: Recipe, run: Run | None, n: int, sampling: SamplingParams, pass_at: int
) -> Problems:
    """Take the first `n` held-out problems: those that `run` was judged on, or those of the recipe."""
    table = found.data.model_dump(exclude={"max_prompt_length"})
    loaded = dataset.load_splits(**table, system_prompt=found.reply_format.system_prompt)
    notes = []
    if run is not None:
        kept_apart = run.record.get("held_out_fingerprint")
        if kept_apart not in (None, loaded.held_out_fingerprint):
            notes.append(
                "These are not the problems that the run kept apart (the data changed since), so some "
                "may have been trained on: trust no figure here."
            )
    if n > len(loaded.held_out):
        notes.append(f"Only {len(loaded.held_out)} problems are held out, not {n}.")
    chosen = replace(loaded, held_out=loaded.held_out[:n])
    return Problems(found, chosen.held_out, chosen.held_out_fingerprint, sampling, pass_at, notes)
