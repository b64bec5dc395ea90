"""`rig rewards --check`: a recipe's rewards tried on its own data, and on what its model really says.

Real completions come from a run's samples.jsonl, or are sampled where the model is at hand: nothing is ever
downloaded for a check, and a model that would take this machine minutes to load is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rig import runs
from rig.errors import RigError, WrongUse
from rig.model.reply_format import TAUGHT
from train.data import dataset
from train.data.dataset import Row
from train.monitor import log
from train.recipe import Recipe
from train.rewards import attacks, lint
from train.rewards.binding import bind_reward
from train.rewards.builtin import completion_text

PROMPTS = 16
STAND_IN = ("42", "7", "1,000", "-3", "12.5", "850,000")
"""Golds that are tried when the recipe's data can't be had here."""
CPU_BYTES = 3_000_000_000
"""Weights up to this size are loaded without a GPU."""

Real = list[tuple[Row, list[str]]]


def lint_recipe(
    recipe: Recipe, *, samples: str | None, attempts: int, real: bool
) -> dict[str, Any]:
    """Try the rewards of `recipe` and return the object of --json.

    `samples` is a run folder or a samples.jsonl; else `attempts` completions each are sampled from the
    model for a few prompts, unless `real` is off or the model is not at hand (then `notes` says why).
    """
    notes: list[str] = []
    rows = _rows(recipe, notes)
    said: Real = []
    source = None
    if samples is not None:
        said, source = _from_samples(samples, rows), samples
    elif real:
        said = _from_model(recipe, rows[:PROMPTS], attempts, notes)
        source = recipe.model.name if said else None
    named = [(one.name, one.weight, dict(one.options)) for one in recipe.rewards]
    tried, problems = lint.lint_rewards(named, rows, recipe.reply_format.to_reply_format(), said)
    return {
        "ok": not problems and not any(one.problems for one in tried),
        "golds": len(rows),
        "real_source": source,
        "rewards": [asdict(one) for one in tried],
        "problems": problems,
        "notes": notes,
    }


def lint_reward(name: str) -> dict[str, Any]:
    """The same for one reward by its name, on the rows that it brings; it is paid no recipe's weight."""
    reward = bind_reward(name)
    rows = attacks.sample_rows(name, reward)
    tried, problems = lint.lint_rewards([(name, 1.0, {})], rows, TAUGHT)
    return {
        "ok": not problems and not tried[0].problems,
        "golds": 0,
        "real_source": None,
        "rewards": [asdict(one) for one in tried],
        "problems": problems,
        "notes": [f"Tried on {len(rows)} rows that come with it; a recipe's own: --check RECIPE."],
    }


def _rows(recipe: Recipe, notes: list[str]) -> list[Row]:
    table = recipe.data.model_dump(exclude={"max_prompt_length"})
    system = recipe.reply_format.system_prompt
    try:
        found = dataset.load_splits(**table, system_prompt=system)
    except (RigError, ModuleNotFoundError) as error:
        if isinstance(error, WrongUse):
            raise
        notes.append(f"Tried on stand-ins for the gold answers, because: {error}")
        return [
            {
                "prompt": dataset.build_prompt(f"Problem {at}", system),
                "question": f"Problem {at}",
                "answer": gold,
            }
            for at, gold in enumerate(STAND_IN)
        ]
    return [*found.train, *found.held_out]


def _from_samples(name: str, rows: Sequence[Row]) -> Real:
    path = runs.find_run(name)
    path = path / log.SAMPLES if path.is_dir() else path
    if not path.is_file():
        raise WrongUse(f"There is no {path}: give a run that has trained, or a samples.jsonl.")
    known = {row["question"]: row for row in rows}
    said: dict[str, list[str]] = {}
    for line in log.read_rows(path):
        asked = line.get("prompt")
        question = asked[-1]["content"] if isinstance(asked, list) else str(asked)
        if question not in known:  # written as one text, with the system prompt and the template
            question = next((q for q in known if q in str(asked)), "")
        if question in known:
            said.setdefault(question, []).append(completion_text(line.get("completion") or ""))
    if not said:
        raise WrongUse(f"No completion in {path} belongs to this recipe's problems.")
    return [(known[question], texts) for question, texts in said.items()]


def _from_model(recipe: Recipe, rows: Sequence[Row], attempts: int, notes: list[str]) -> Real:
    if reason := _not_at_hand(recipe):
        notes.append(f"Not tried on real completions: {reason}")
        return []
    from train.eval.models import LocalModel, SamplingParams
    from train.model import backends

    model, tokenizer = backends.load_for_inference(
        recipe.model.name,
        precision=recipe.model.precision,
        revision=recipe.model.revision,
        chat_template=recipe.model.chat_template,
    )
    grpo = recipe.grpo
    drawn = SamplingParams(
        grpo.max_completion_length, grpo.temperature, grpo.top_p, recipe.schedule.seed
    )
    prompts = [row["prompt"] for row in rows for _ in range(attempts)]
    said = LocalModel(model, tokenizer, recipe.evaluation.batch).generate_completions(
        prompts, drawn
    )
    texts = [one.text for one in said]
    return [(row, texts[at * attempts : (at + 1) * attempts]) for at, row in enumerate(rows)]


def _not_at_hand(recipe: Recipe) -> str | None:
    """Why no completion can be sampled here at once; None where it can."""
    hint = "after a run, give its folder with --samples."
    try:
        import torch

        from train.model import backends
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; {hint}"
    try:
        folder = Path(backends.model_path(recipe.model.name))
    except (RigError, WrongUse) as error:
        return error.format_message()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            found = snapshot_download(
                recipe.model.name, revision=recipe.model.revision, local_files_only=True
            )
        except (LocalEntryNotFoundError, OSError):
            return f"{recipe.model.name} has not been downloaded yet; {hint}"
        folder = Path(found)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size == 0:
        return f"{folder} holds no weights (*.safetensors)."
    if size > CPU_BYTES and not torch.cuda.is_available():
        return f"{recipe.model.name} is {size / 1e9:.1f} GB, too slow without a GPU; {hint}"
    return None


# ----------------------------------------------------------------------------------------------------------
# What a person reads


def print_lint_report(found: dict[str, Any], console: Console) -> None:
    """Print the object of `rig rewards --check --json` as a table and sentences."""
    source = found["real_source"]
    if found["golds"]:
        console.print(
            f"{found['golds']} gold answers"
            + (f"; real completions from {source}" if source else ""),
            markup=False,
        )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("reward", "weight", "gold", "does not see"):
        table.add_column(column, no_wrap=column == "reward")
    for column in ("real", "fired", "signal") if source else ():
        table.add_column(column)
    for one in found["rewards"]:
        real = one["real"] or {}
        table.add_row(
            escape(one["name"]),
            f"{one['weight']:g}",
            _gold(one),
            _unseen(one),
            *(
                (f"{real['mean']:.2f}", f"{real['fired']:.0%}", f"{real['signal']:.0%}")
                if real
                else ()
            ),
        )
    console.print(table)
    for one in found["rewards"]:
        for kind, mark in sorted(one["cheap"].items(), key=lambda pair: -pair[1]):
            console.print(f"  {kind:<32}{mark:.2f}", highlight=False)
        for sentence in one["problems"]:
            console.print(f"[red]{escape(one['name'])}:[/] {escape(sentence)}", highlight=False)
        for sentence in one["remarks"]:
            console.print(f"[yellow]{escape(one['name'])}:[/] {escape(sentence)}", highlight=False)
    for sentence in [*found["problems"], *found["notes"]]:
        console.print(sentence, markup=False)
    if not found["ok"]:
        return
    if any(one["gold"] for one in found["rewards"]):
        console.print("Every reward gives its top mark to the gold and less to damage.")
    if any(one["cheap"] for one in found["rewards"]):
        console.print("No cheap reply earns more than 0.2.")


def _gold(one: dict[str, Any]) -> str:
    if one["cheap"]:
        return f"worked replies {one['top']:.2f}"
    mark = one["gold"].get("many lines")
    return "" if mark is None else f"{mark:g} of {one['top']:g}"


def _unseen(one: dict[str, Any]) -> str:
    """The kinds of damage that cost nothing: each reward has some, all of them together should have none."""
    asked = one["gold"].get("many lines")
    if asked is None:
        return ""
    unseen = [kind for kind, mark in one["damaged"].items() if mark is not None and mark >= asked]
    return ", ".join(unseen) if len(unseen) < len(one["damaged"]) else "anything"
