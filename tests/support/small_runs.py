"""Real runs on the toy model that take seconds: `from small_runs import start`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train import recipe as recipes
from train import run

SMALL = [
    "schedule.max_steps=2", "schedule.prompts_per_step=2", "grpo.num_generations=4",
    "schedule.micro_batch=4", "grpo.max_completion_length=24", "data.limit=24", "evaluation.problems=4",
    "data.held_out=8", "schedule.save_every=1", "schedule.warmup_steps=0",
]  # fmt: skip


def start(*settings: str, name: str = "mine", recipe: str = "toy-arithmetic") -> dict[str, Any]:
    found = recipes.load_recipe(recipe, [*SMALL, *settings])
    return run.start_run(found, Path("runs") / name, quiet=True)


def reward_file(text: str) -> str:
    Path("mine.py").write_text(text, "utf-8")
    return "mine.py"
