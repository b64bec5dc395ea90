"""One `rig eval`: which models on which problems, what is kept of it, and what it is compared with.

A run is judged twice, without and with its adapter, and each label is kept in the run folder, so that the
same problems put to a server later (`--url`) are compared with what PyTorch said.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rig import runs
from rig.errors import WrongUse
from rig.model import base_weights
from rig.paths import shell_word
from rig.runs import Run
from rig.server import connect
from train.eval import scoring
from train.eval.models import EvalModel, LocalModel, SamplingParams, ServedModel
from train.eval.problems import Problems, select_problems
from train.eval.scoring import EvalResult, ScoredCompletion
from train.model import backends
from train.recipe import ModelTable, Recipe, load_recipe, load_run_recipe

Tell = Callable[[str, int, int], None]
"""Called with the label, the answers that are there, and how many there will be."""

TOY_RECIPE = "toy-arithmetic"
"""Whose problems are put to the toy model."""
SAMPLES = 5
"""Held-out problems shown side by side."""


@dataclass(frozen=True)
class Endpoint:
    """How a server is asked; without `url` a GGUF file is served first."""

    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    """Which of its models to ask for (none = its first)."""
    parallel: int = 4
    """Questions at a time."""


def run_eval(
    target: str | None,
    *,
    recipe_name: str | None,
    n: int,
    pass_at: int,
    sampling: SamplingParams,
    endpoint: Endpoint,
    only: str | None = None,
    label: str | None = None,
    batch: int | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Judge a run (before and after), a model, or the server at `endpoint`; return the object of --json.

    A GGUF file is served first, and belongs to the run in whose folder it lies. `sampling.max_tokens` 0 and
    `batch` None are those of the recipe.
    """
    file = Path(target) if target and target.endswith(".gguf") else None
    found = find_run_recipe(str(file.parent) if file else target) if target else None
    run, recipe = found if found else (None, find_model_recipe(target, recipe_name))
    longest = sampling.max_tokens or recipe.grpo.max_completion_length
    problems = select_problems(
        recipe.data.model_dump(exclude={"max_prompt_length"}),
        n,
        reply_format=recipe.reply_format.to_reply_format(),
        sampling=replace(sampling, max_tokens=longest),
        pass_at=pass_at,
        kept_apart=run.record.get("held_out_fingerprint") if run else None,
    )
    size = batch or recipe.evaluation.batch
    with run.hold_lock() if run else contextlib.nullcontext():
        if endpoint.url or file:
            name = label or (file.stem if file and not endpoint.url else "served")
            served = None if endpoint.url else target
            with connect.connect_model(endpoint.url, served, api_key=endpoint.api_key) as client:
                server = ServedModel(client, endpoint.parallel, endpoint.model)
                return evaluate_server(server, problems, name, run, tell)
        if run:
            labels = [only] if only else ["before", "after"]
            return evaluate_run(run, recipe.model, problems, labels, size, tell)
        assert target is not None
        precision = recipe.model.precision
        return evaluate_model(target, precision, problems, label or "model", size, tell)


def find_run_recipe(target: str) -> tuple[Run, Recipe] | None:
    """The run called `target` with its recipe; None where `target` is a model instead."""
    path = runs.find_run(target)
    if not (path / runs.RECORD).is_file():
        return None
    return Run.open(path), load_run_recipe(path)


def find_model_recipe(target: str | None, name: str | None) -> Recipe:
    """The recipe whose problems are put to a model that is no run."""
    if name is None and target == "toy":
        name = TOY_RECIPE
    if name is None:
        what = f"{target} is no run folder" if target else "No run is named"
        raise WrongUse(f"{what}, so say whose held-out problems to put: --recipe RECIPE.")
    return load_recipe(name)


def evaluate_run(
    run: Run,
    base: ModelTable,
    problems: Problems,
    labels: list[str],
    batch: int,
    tell: Tell | None,
) -> dict[str, Any]:
    """Judge `before` and `after` of a run, keep both in its folder, and return the whole result."""
    adapter = run.adapter_folder if (run.adapter_folder / "adapter_config.json").is_file() else None
    if "after" in labels and adapter is None:
        raise WrongUse(
            f"{run.path} has no finished adapter (state: {run.state}): go on with "
            f"rig train --resume {shell_word(run.path)}, or judge the base alone with --only before."
        )
    loaded, tokenizer = backends.load_for_inference(
        base.name,
        precision=base.precision,
        revision=base.revision,
        chat_template=base.chat_template,
        adapter=adapter if "after" in labels else None,
    )
    if (folder := backends.find_weights(base.name, base.revision)) is not None:
        base_weights.check_base_weights(run, folder)
    local = LocalModel(loaded, tokenizer, batch)
    found: dict[str, EvalResult] = {}
    shown: dict[str, list[ScoredCompletion]] = {}
    for label in labels:
        # The base is the same weights with the adapter switched off: nothing else differs.
        off = label == "before" and "after" in labels
        with loaded.disable_adapter() if off else contextlib.nullcontext():
            found[label], shown[label] = _judge(local, problems, label, tell)
        scoring.save_result(
            run, label, found[label], model=base.name, problems=problems.to_record()
        )
    if labels == ["after"]:
        found = _earlier(run, ("before",), "after", problems) | found
    return build_eval_json(problems, found, shown, run)


def evaluate_server(
    server: ServedModel, problems: Problems, label: str, run: Run | None, tell: Tell | None
) -> dict[str, Any]:
    """Judge a server, and compare it with what the run's own model said to the same problems."""
    verdict, shown = _judge(server, problems, label, tell)
    found = {label: verdict}
    if run is not None:
        asked = f"{server.name} at {server.client.url}"
        scoring.save_result(run, label, verdict, model=asked, problems=problems.to_record())
        found = _earlier(run, ("after", "before"), label, problems) | found
        if len(found) == 1:
            problems.notes.append(
                "No earlier label was judged on these problems with this sampling, so nothing is "
                "compared: run `rig eval RUN` first."
            )
    return build_eval_json(problems, found, {label: shown}, run)


def evaluate_model(
    name: str, precision: str, problems: Problems, label: str, batch: int, tell: Tell | None
) -> dict[str, Any]:
    """Judge any model that transformers can load; nothing is kept on disk."""
    loaded, tokenizer = backends.load_for_inference(name, precision=precision)
    verdict, shown = _judge(LocalModel(loaded, tokenizer, batch), problems, label, tell)
    return build_eval_json(problems, {label: verdict}, {label: shown}, None)


def build_eval_json(
    problems: Problems,
    found: dict[str, EvalResult],
    shown: dict[str, list[ScoredCompletion]],
    run: Run | None,
) -> dict[str, Any]:
    """The one stable object that `rig eval --json` prints.

    `labels`: by name, in the order judged: `n`; `strict`, `lenient`, `format` with `count`, `share` and
    95% `interval` each; `mean_tokens`, `cut_off` (share), `seconds`, `sampling`; `pass_at` if asked for.
    `comparisons`: each label with the next: `gained`, `lost`, `difference`, `interval`, `p` per measure,
    and `agreement` (`answers`, `texts`). `agreement`: that of the last comparison, or null. `problems`:
    `source`, `n`, `seed`, `fingerprint`. `samples`: replies side by side; those not `counted` are extras.
    `run`: the folder, or null. `notes`: sentences.
    """
    names = list(found)
    comparisons = [
        {"from": old, "to": new} | scoring.compare_scores(found[old].rows, found[new].rows)
        for old, new in itertools.pairwise(names)
    ]
    rows = {label: verdict.rows[:SAMPLES] for label, verdict in found.items()}
    extras = {label: shown.get(label, []) for label in names}
    return {
        "run": str(run.path) if run else None,
        "problems": problems.to_record(),
        "labels": {label: verdict.figures for label, verdict in found.items()},
        "comparisons": comparisons,
        "agreement": comparisons[-1]["agreement"] if comparisons else None,
        "samples": _side_by_side(rows, counted=True) + _side_by_side(extras, counted=False),
        "notes": problems.notes,
    }


def _judge(
    model: EvalModel, problems: Problems, label: str, tell: Tell | None
) -> tuple[EvalResult, list[ScoredCompletion]]:
    total, done = len(problems.rows) * (1 + problems.pass_at), 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if tell:
            tell(label, done, total)

    verdict = scoring.score_model(
        model,
        problems.rows,
        problems.reply_format,
        problems.sampling,
        pass_at=problems.pass_at,
        progress=progress,
    )
    return verdict, scoring.ask_extra_questions(model, problems.reply_format, problems.sampling)


def _side_by_side(
    rows: dict[str, list[ScoredCompletion]], *, counted: bool
) -> list[dict[str, Any]]:
    longest = max(rows.values(), key=len, default=[])
    return [
        {
            "question": one.question,
            "gold": one.gold,
            "counted": counted,
            "replies": {
                label: {
                    "text": said[at].text,
                    "answer": said[at].answer,
                    "strict": said[at].strict,
                    "lenient": said[at].lenient,
                }
                for label, said in rows.items()
                if at < len(said)
            },
        }
        for at, one in enumerate(longest)
    ]


def _earlier(
    run: Run, names: tuple[str, ...], label: str, problems: Problems
) -> dict[str, EvalResult]:
    """The first of `names` that was asked the same in the same way; it is what `label` is compared with."""
    for name in names:
        figures = run.record.get("eval", {}).get(name, {})
        path = run.path / "eval" / f"{name}.jsonl"
        asked = figures.get("problems"), figures.get("sampling")
        if (
            name != label
            and asked == (problems.to_record(), problems.sampling.to_record())
            and path.is_file()
        ):
            return {name: EvalResult(scoring.read_rows(path), figures)}
    return {}
