"""One `rig eval`: which models on which problems, what is kept of it, and what it is compared with.

A run is judged twice, without and with its adapter, and each label is kept in the run folder, so that the
same problems put to a server later (`--url`) are compared with what PyTorch said.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig.errors import WrongUse
from rig.model import base_weights
from rig.runs import Run
from rig.server import connect
from train.eval import scoring
from train.eval.models import EvalModel, LocalModel, SamplingParams, ServedModel
from train.eval.problems import Problems, find_model_recipe, find_run_recipe, select_problems
from train.eval.scoring import EvalResult, ScoredCompletion
from train.model import backends
from train.recipe import ModelTable

Tell = Callable[[str, int, int], None]
"""Called with the label, the answers that are there, and how many there will be."""

SAMPLES = 5
"""Held-out problems shown side by side."""


def run_eval(
    target: str | None,
    *,
    only: str | None = None,
    url: str | None = None,
    api_key: str | None = None,
    label: str | None = None,
    recipe_name: str | None = None,
    n: int = 200,
    batch: int | None = None,
    parallel: int = 4,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 3407,
    pass_at: int = 0,
    ask_for: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Judge a run (before and after), a model, or the server at `url`; return the object of --json.

    A GGUF file is served first, and belongs to the run in whose folder it lies.
    """
    file = Path(target) if target and target.endswith(".gguf") else None
    found = find_run_recipe(str(file.parent) if file else target) if target else None
    run, table = found if found else (None, find_model_recipe(target, recipe_name))
    sampling = SamplingParams(
        max_tokens or table.grpo.max_completion_length, temperature, top_p, seed
    )
    exam = select_problems(table, run, n, sampling, pass_at)
    size = batch or table.evaluation.batch
    with run.hold_lock() if run else contextlib.nullcontext():
        if url or file:
            name = label or (file.stem if file and not url else "served")
            with connect.connect_model(url, None if url else target, api_key=api_key) as client:
                server = ServedModel(client, parallel, ask_for)
                return evaluate_server(server, exam, name, run, tell)
        if run:
            return evaluate_run(run, exam, [only] if only else ["before", "after"], size, tell)
        assert target is not None
        return evaluate_model(target, exam, label or "model", size, tell)


def evaluate_run(
    run: Run, exam: Problems, labels: list[str], batch: int, tell: Tell | None
) -> dict[str, Any]:
    """Judge `before` and `after` of a run, keep both in its folder, and return the whole result."""
    adapter = run.adapter_folder if (run.adapter_folder / "adapter_config.json").is_file() else None
    if "after" in labels and adapter is None:
        raise WrongUse(
            f"{run.path} has no finished adapter (state: {run.state}): go on with "
            f"rig train --resume {run.path}, or judge the base alone with --only before."
        )
    model = exam.recipe.model
    loaded, tokenizer = backends.load_for_inference(model, adapter if "after" in labels else None)
    if (folder := backends.find_weights(model.name, model.revision)) is not None:
        base_weights.check_base_weights(run, folder)
    local = LocalModel(loaded, tokenizer, batch)
    found: dict[str, EvalResult] = {}
    shown: dict[str, list[ScoredCompletion]] = {}
    for label in labels:
        # The base is the same weights with the adapter switched off: nothing else differs.
        off = label == "before" and "after" in labels
        with loaded.disable_adapter() if off else contextlib.nullcontext():
            found[label], shown[label] = _judge(local, exam, label, tell)
        scoring.save_result(run, label, found[label], model=model.name, problems=exam.to_record())
    if labels == ["after"]:
        found = _earlier(run, ("before",), "after", exam) | found
    return build_eval_json(exam, found, shown, run)


def evaluate_server(
    server: ServedModel, exam: Problems, label: str, run: Run | None, tell: Tell | None
) -> dict[str, Any]:
    """Judge a server, and compare it with what the run's own model said to the same problems."""
    verdict, shown = _judge(server, exam, label, tell)
    found = {label: verdict}
    if run is not None:
        asked = f"{server.name} at {server.client.url}"
        scoring.save_result(run, label, verdict, model=asked, problems=exam.to_record())
        found = _earlier(run, ("after", "before"), label, exam) | found
        if len(found) == 1:
            exam.notes.append(
                "No earlier label was judged on these problems with this sampling, so nothing is "
                "compared: run `rig eval RUN` first."
            )
    return build_eval_json(exam, found, {label: shown}, run)


def evaluate_model(
    name: str, exam: Problems, label: str, batch: int, tell: Tell | None
) -> dict[str, Any]:
    """Judge any model that transformers can load; nothing is kept on disk."""
    table = ModelTable(name=name, precision=exam.recipe.model.precision)
    loaded, tokenizer = backends.load_for_inference(table)
    verdict, shown = _judge(LocalModel(loaded, tokenizer, batch), exam, label, tell)
    return build_eval_json(exam, {label: verdict}, {label: shown}, None)


def build_eval_json(
    exam: Problems,
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
        "problems": exam.to_record(),
        "labels": {label: verdict.figures for label, verdict in found.items()},
        "comparisons": comparisons,
        "agreement": comparisons[-1]["agreement"] if comparisons else None,
        "samples": _side_by_side(rows, counted=True) + _side_by_side(extras, counted=False),
        "notes": exam.notes,
    }


def _judge(
    answering: EvalModel, exam: Problems, label: str, tell: Tell | None
) -> tuple[EvalResult, list[ScoredCompletion]]:
    reply_format = exam.recipe.reply_format.to_reply_format()
    total, done = len(exam.rows) * (1 + exam.pass_at), 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if tell:
            tell(label, done, total)

    verdict = scoring.score_model(
        answering, exam.rows, reply_format, exam.sampling, pass_at=exam.pass_at, progress=progress
    )
    return verdict, scoring.ask_extra_questions(answering, reply_format, exam.sampling)


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


def _earlier(run: Run, names: tuple[str, ...], label: str, exam: Problems) -> dict[str, EvalResult]:
    """The first of `names` that was asked the same in the same way; it is what `label` is compared with."""
    for name in names:
        figures = run.record.get("eval", {}).get(name, {})
        path = run.path / "eval" / f"{name}.jsonl"
        asked = figures.get("problems"), figures.get("sampling")
        if (
            name != label
            and asked == (exam.to_record(), exam.sampling.to_record())
            and path.is_file()
        ):
            return {name: EvalResult(scoring.read_rows(path), figures)}
    return {}
