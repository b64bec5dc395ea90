"""Before and after on the same held-out problems, strict and lenient, each with n, an interval and a test.

Strict counts a reply that keeps the taught form and answers right; lenient counts any clear final answer.
The gap between them is what was only learnt as form. The same harness judges a PyTorch model and a server,
so the quantised file on the small box is measured by the same rod.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rig.atomic import write_text
from rig.errors import RigError
from rig.model.reply_format import ReplyFormat
from rig.runs import Run
from train.data import answers
from train.data.dataset import Row, build_prompt
from train.eval import statistics
from train.eval.models import CompletionOutput, EvalModel, Progress, SamplingParams

MEASURES = {
    "strict": "right, in the taught form",
    "lenient": "right, in any form",
    "format": "kept the form",
}
"""What is counted of each reply, and how it is called on a page."""

EXTRA = (("Which is bigger, 9.11 or 9.9?", "9.9"),)
"""Asked besides and shown, never counted: the question that everybody tries."""

DRAWN = SamplingParams(temperature=0.8, top_p=0.95)
"""How the attempts of pass@k are drawn; greedy ones would all be the same."""


@dataclass(frozen=True)
class ScoredCompletion:
    """One problem, one reply, and what it is worth."""

    question: str
    gold: str
    text: str
    answer: str | None
    """The final answer that was found in it."""
    strict: bool
    lenient: bool
    format: bool
    tokens: int
    finished: bool


@dataclass(frozen=True)
class EvalResult:
    """One label: the judged rows and their figures."""

    rows: list[ScoredCompletion]
    figures: dict[str, Any]


def score_model(
    model: EvalModel,
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    sampling: SamplingParams,
    *,
    pass_at: int = 0,
    progress: Progress | None = None,
) -> EvalResult:
    """Ask every row's `prompt` and mark the replies; `pass_at` draws that many more attempts of each.

    A warm-up is not excluded from `seconds`: it is what a person waits.
    """
    start = time.monotonic()
    said = model.generate_completions([row["prompt"] for row in rows], sampling, progress)
    judged = [
        score_completion(row["question"], row["answer"], one, reply_format)
        for row, one in zip(rows, said, strict=True)
    ]
    figures = summarise_scores(judged) | {"sampling": sampling.to_record()}
    figures["seconds"] = round(time.monotonic() - start, 2)
    if pass_at:
        drawn = replace(DRAWN, max_tokens=sampling.max_tokens, seed=sampling.seed)
        figures["pass_at"] = _passes(model, rows, reply_format, drawn, pass_at, progress)
    return EvalResult(judged, figures)


def score_completion(
    question: str, gold: str, said: CompletionOutput, reply_format: ReplyFormat
) -> ScoredCompletion:
    """Judge one reply by the contract `reply_format`.

    >>> from rig.model.reply_format import TAUGHT
    >>> one = score_completion("2+2?", "4", CompletionOutput("It is 4.", 5, True), TAUGHT)
    >>> one.strict, one.lenient, one.format, one.answer
    (False, True, False, 'It is 4.')
    """
    kept = reply_format.matches_text(said.text)
    final = answers.extract_final_answer(said.text, reply_format)
    return ScoredCompletion(
        question=question,
        gold=gold,
        text=said.text,
        answer=final,
        strict=kept
        and answers.matches_gold(answers.extract_tagged_answer(said.text, reply_format), gold),
        lenient=answers.matches_gold(final, gold),
        format=kept,
        tokens=said.tokens,
        finished=said.finished,
    )


def summarise_scores(rows: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """Return n, and for each measure how many, the share and its 95% interval."""
    n = len(rows)
    found: dict[str, Any] = {"n": n}
    for measure in MEASURES:
        right = sum(getattr(row, measure) for row in rows)
        low, high = statistics.wilson_interval(right, n)
        found[measure] = {
            "count": right,
            "share": round(right / n, 4) if n else 0.0,
            "interval": [round(low, 4), round(high, 4)],
        }
    found["mean_tokens"] = round(sum(row.tokens for row in rows) / n, 1) if n else 0.0
    found["cut_off"] = round(sum(not row.finished for row in rows) / n, 4) if n else 0.0
    return found


def compare_scores(
    first: Sequence[ScoredCompletion], second: Sequence[ScoredCompletion]
) -> dict[str, Any]:
    """Return what changed from one label to another on the same problems, and how alike they speak.

    Each measure: `gained`, `lost` (problems), `difference` of the shares with its 95% `interval`, and the
    exact paired `p`. `agreement`: the share of problems with the same final answer, and with the same text.
    """
    asked = [[(row.question, row.gold) for row in rows] for rows in (first, second)]
    if asked[0] != asked[1]:
        raise RigError("The two labels were judged on different problems: evaluate both again.")
    n = len(first)
    found: dict[str, Any] = {"n": n}
    pairs = list(zip(first, second, strict=True))
    for measure in MEASURES:
        changed = [getattr(new, measure) - getattr(old, measure) for old, new in pairs]
        gained, lost = changed.count(1), changed.count(-1)
        low, high = statistics.paired_difference(gained, lost, n)
        found[measure] = {
            "gained": gained,
            "lost": lost,
            "difference": round((gained - lost) / n, 4) if n else 0.0,
            "interval": [round(low, 4), round(high, 4)],
            "p": float(f"{statistics.paired_p(gained, lost):.3g}"),
        }
    alike = sum(_alike(old, new) for old, new in pairs)
    equal = sum(old.text.strip() == new.text.strip() for old, new in pairs)
    found["agreement"] = {
        "answers": round(alike / n, 4) if n else 0.0,
        "texts": round(equal / n, 4) if n else 0.0,
    }
    return found


def _alike(old: ScoredCompletion, new: ScoredCompletion) -> bool:
    """The same final answer; two replies without any agree only where they say the same."""
    if old.answer is None or new.answer is None:
        return old.text.strip() == new.text.strip()
    return answers.same_answer(old.answer, new.answer)


def ask_extra_questions(
    model: EvalModel, reply_format: ReplyFormat, sampling: SamplingParams
) -> list[ScoredCompletion]:
    """The replies to the questions that are shown and not counted."""
    prompts = [build_prompt(question, reply_format.system_prompt) for question, _ in EXTRA]
    said = model.generate_completions(prompts, sampling)
    return [
        score_completion(asked, gold, one, reply_format)
        for (asked, gold), one in zip(EXTRA, said, strict=True)
    ]


def _passes(
    model: EvalModel,
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    drawn: SamplingParams,
    attempts: int,
    progress: Progress | None,
) -> dict[str, Any]:
    prompts = [row["prompt"] for row in rows for _ in range(attempts)]
    said = model.generate_completions(prompts, drawn, progress)
    judged = [
        score_completion(row["question"], row["answer"], said[at * attempts + turn], reply_format)
        for at, row in enumerate(rows)
        for turn in range(attempts)
    ]
    found: dict[str, Any] = {"attempts": attempts, "sampling": drawn.to_record()}
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < attempts} | {attempts})
    for measure in ("strict", "lenient"):
        solved = [
            sum(getattr(one, measure) for one in judged[at : at + attempts])
            for at in range(0, len(judged), attempts)
        ]
        found[measure] = {str(k): round(statistics.pass_at(k, solved, attempts), 4) for k in ks}
    return found


# ----------------------------------------------------------------------------------------------------------
# Rows on disk, so that a later label can be compared with an earlier one


def save_result(
    run: Run, label: str, verdict: EvalResult, *, model: str, problems: dict[str, Any]
) -> None:
    """Keep rows and figures of `label` in the run folder, with which model was asked which problems."""
    write_rows(run.path / "eval" / f"{label}.jsonl", verdict.rows)
    run.update_record(eval={label: verdict.figures | {"model": model, "problems": problems}})


def write_rows(path: Path, rows: Sequence[ScoredCompletion]) -> None:
    """Write one JSON object per line, whole or not at all."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def read_rows(path: Path) -> list[ScoredCompletion]:
    """Read what `write_rows` wrote."""
    try:
        with path.open(encoding="utf-8") as lines:
            return [ScoredCompletion(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RigError(f"{path} is damaged ({error}): evaluate that label again.") from error
