"""Which held-out problems a model is judged on: always the same ones, and how they are put.

The problems are read from their source again, so a source that changed since is noticed: what a run kept
apart is remembered by a fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rig.model.reply_format import ReplyFormat
from train.data import dataset
from train.data.dataset import DataSplits
from train.eval.models import SamplingParams


@dataclass(frozen=True)
class Problems:
    """The problems, and how they are put."""

    rows: list[dataset.Row]
    source: str
    seed: int
    fingerprint: str
    reply_format: ReplyFormat
    """The contract by which replies are marked."""
    sampling: SamplingParams
    pass_at: int = 0
    """Further attempts of each (0 = none)."""
    notes: list[str] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """What was asked, for --json and run.json."""
        return {
            "source": self.source,
            "n": len(self.rows),
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }


def take_problems(
    splits: DataSplits,
    n: int,
    *,
    source: str,
    seed: int,
    reply_format: ReplyFormat,
    sampling: SamplingParams,
    pass_at: int = 0,
) -> Problems:
    """The first `n` held-out problems of `splits`, which were read from `source` with `seed`."""
    chosen = replace(splits, held_out=splits.held_out[:n])
    fingerprint = chosen.held_out_fingerprint
    return Problems(chosen.held_out, source, seed, fingerprint, reply_format, sampling, pass_at)


def select_problems(
    table: Mapping[str, Any],
    n: int,
    *,
    reply_format: ReplyFormat,
    sampling: SamplingParams,
    pass_at: int = 0,
    kept_apart: str | None = None,
) -> Problems:
    """Read the data again and take the first `n` held-out problems.

    `table`: what `load_splits` takes, as a recipe's `[data]` has it. `kept_apart`: the fingerprint of what a
    run was judged on; other problems than those are noted.
    """
    splits = dataset.load_splits(**table, system_prompt=reply_format.system_prompt)
    found = take_problems(
        splits,
        n,
        source=table["source"],
        seed=table["seed"],
        reply_format=reply_format,
        sampling=sampling,
        pass_at=pass_at,
    )
    if kept_apart not in (None, splits.held_out_fingerprint):
        found.notes.append(
            "These are not the problems that the run kept apart (the data changed since), so some "
            "may have been trained on: trust no figure here."
        )
    if n > len(splits.held_out):
        found.notes.append(f"Only {len(splits.held_out)} problems are held out, not {n}.")
    return found
