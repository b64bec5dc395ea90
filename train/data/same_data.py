"""A run that goes on learns from the data it began with: what changed since is noticed before its next step.

The file may have grown, shrunk or been mended meanwhile. Then the held-out problems are cut anew, and some of
them were trained on, or are about to be. What a run kept apart is remembered question by question, so that a
leak can be named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rig.atomic import write_text
from rig.errors import RigError
from train.data.dataset import DataSplits, Row

FILE = "kept_apart.json"
"""In the run folder: a hash of every held-out question, and of all that is trained on."""
SHOWN = 80
"""Characters of a question that are shown."""


def note_data(folder: Path, splits: DataSplits) -> None:
    """Remember what a run begins with."""
    write_text(folder / FILE, json.dumps(_describe(splits)) + "\n")


def check_data(folder: Path, splits: DataSplits, source: str) -> None:
    """Refuse other data than those that `note_data` remembered; a run of before it passes.

    Raises:
        RigError: they changed; a question that was kept apart and would be trained on is named.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        then: dict[str, Any] = json.loads(path.read_text("utf-8"))
        apart = set(then["held_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise RigError(f"{path} is damaged ({error}): restore it, or begin a new run.") from error
    now = _describe(splits)
    if now == then:
        return
    leaked = [row for row in splits.train if _question(row) in apart]
    raise RigError(
        f"The data of {folder} changed since it began ({source}: {_count(then)} then, {_count(now)} now). "
        f"{_leak(leaked)}A run goes on with the data it began with: put them back, or begin a new run."
    )


def _leak(leaked: Sequence[Row]) -> str:
    if not leaked:
        return ""
    words = " ".join(str(leaked[0]["question"]).split())
    shown = words if len(words) <= SHOWN else words[: SHOWN - 3] + "..."
    more = f" and {len(leaked) - 1} more" if len(leaked) > 1 else ""
    return f"Of what it kept apart, it would now be trained on {shown!r}{more}. "


def _describe(splits: DataSplits) -> dict[str, Any]:
    asked = json.dumps([[row["prompt"], row["answer"]] for row in splits.train])
    return {
        "train": len(splits.train),
        "train_fingerprint": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "held_out": [_question(row) for row in splits.held_out],
        "held_out_fingerprint": splits.held_out_fingerprint,
    }


def _question(row: Row) -> str:
    return hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()[:16]


def _count(seen: dict[str, Any]) -> str:
    return f"{seen['train']} training prompts and {len(seen['held_out'])} kept apart"
