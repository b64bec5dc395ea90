"""Ask every prompt a few times before training, and drop those that are always or never solved.

Such a prompt gives its whole group one mark, so it costs a generation and teaches nothing; TRL has no dynamic
sampling that would skip it. Judged on the binary outcome alone: sorting by a shaped reward is known to wreck
a policy. The counts are kept in `probe.jsonl`, so a resumed run drops the same prompts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.atomic import write_text
from rig.errors import RigError
from rig.model.reply_format import ReplyFormat
from train.data import answers
from train.eval.models import EvalModel, SamplingParams
from train.monitor import log

FILE = "probe.jsonl"
EVERY = 1.0
"""Seconds between two looks whether the process that asks has finished."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ProbeResult:
    """What the probe found."""

    kept: list[Row]
    always: int
    """Prompts solved in every attempt."""
    never: int
    """Prompts solved in none."""

    def to_sentence(self) -> str:
        """For the person."""
        total = self.always + self.never + len(self.kept)
        return (
            f"Probe: {self.always} prompts are always solved and {self.never} never; the other "
            f"{len(self.kept)} of {total} are trained on."
        )


def probe_prompts(
    model: EvalModel | None,
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    folder: Path,
    *,
    attempts: int,
    prompts: int | None,
    keep_unsolved: float,
    sampling: SamplingParams,
    progress: Callable[[int], None] | None = None,
) -> ProbeResult:
    """Return the rows worth training on.

    Args:
        model: the model as it is before training; None = another process of this run is asking it,
            and its counts are waited for.
        rows: training rows with `prompt` and `answer`.
        reply_format: the contract; a right answer counts in any form, for that is still to be learnt.
        folder: the run folder; counts that lie there already are used.
        attempts: completions per prompt.
        prompts: probe that many, drawn by the seed (None = all).
        keep_unsolved: share of the never solved to keep.
        sampling: as in training.
        progress: called with how many more completions are done.
    """
    rng = random.Random(sampling.seed)
    chosen = list(rows) if prompts is None else rng.sample(list(rows), min(prompts, len(rows)))
    counts = _counts(folder / FILE, chosen, attempts)
    while counts is None and model is None:
        time.sleep(EVERY)
        counts = _counts(folder / FILE, chosen, attempts)
    if counts is None and model is not None:
        counts = _ask(model, chosen, reply_format, attempts, sampling, progress)
        lines = [
            json.dumps({"question": row["question"], "solved": count, "attempts": attempts})
            for row, count in zip(chosen, counts, strict=True)
        ]
        write_text(folder / FILE, "".join(f"{line}\n" for line in lines))
    assert counts is not None
    kept, always, never = [], 0, 0
    for row, count in zip(chosen, counts, strict=True):
        if count == attempts:
            always += 1
        elif count == 0 and rng.random() >= keep_unsolved:
            never += 1
        else:
            kept.append(row)
    if not kept:
        raise RigError(
            f"The probe kept no prompt: of {len(chosen)}, {always} are always solved and {never} "
            "never. Take harder or easier problems, a better model, or set probe.keep_unsolved=0.5."
        )
    return ProbeResult(kept, always, never)


def _ask(
    model: EvalModel,
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    attempts: int,
    sampling: SamplingParams,
    progress: Callable[[int], None] | None,
) -> list[int]:
    said = model.generate_completions(
        [row["prompt"] for row in rows for _ in range(attempts)], sampling, progress
    )
    return [
        sum(
            answers.matches_gold(
                answers.extract_final_answer(one.text, reply_format), row["answer"]
            )
            for one in said[at * attempts : (at + 1) * attempts]
        )
        for at, row in enumerate(rows)
    ]


def _counts(path: Path, rows: Sequence[Row], attempts: int) -> list[int] | None:
    """What an earlier process of this run counted, if it was the same question."""
    found = list(log.read_rows(path))
    same = [(line["question"], line["attempts"]) for line in found] == [
        (row["question"], attempts) for row in rows
    ]
    return [int(line["solved"]) for line in found] if found and same else None
