"""pytest tests/test_train_eval_difficulty.py"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rig.errors import RigError
from rig.model.reply_format import TAUGHT
from support.one_thread import one_thread  # noqa: F401
from train.data import dataset
from train.eval.difficulty import FILE, ProbeResult, probe_prompts
from train.eval.models import CompletionOutput, Progress, Prompt, SamplingParams

Row = dict[str, Any]

ATTEMPTS = 4
DRAWN = SamplingParams(16, temperature=1.0, seed=5)


class Pupil:
    """Solves question number n in exactly `n % 5` of four attempts; keeps a history."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.calls = 0

    def generate_completions(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, progress: Progress | None = None
    ) -> list[CompletionOutput]:
        self.calls += 1
        return [self._one(prompt[-1]["content"]) for prompt in prompts]

    def _one(self, question: str) -> CompletionOutput:
        number = int(question.split()[1])
        turn = self.asked[question]
        self.asked[question] += 1
        right = turn < number % 5
        form = "It makes {}." if turn % 2 else "<answer>{}</answer>"  # any form counts
        return CompletionOutput(form.format(number if right else number + 1), 5, True)


def rows(count: int) -> list[Row]:
    return [
        {
            "prompt": dataset.build_prompt(f"Is {n} n?", ""),
            "question": f"Is {n} n?",
            "answer": str(n),
        }
        for n in range(count)
    ]


def found(pupil: Pupil | None, folder: Path, **changes: Any) -> ProbeResult:
    asked: dict[str, Any] = {"attempts": ATTEMPTS, "prompts": None, "keep_unsolved": 0.0}
    return probe_prompts(pupil, rows(20), TAUGHT, folder, sampling=DRAWN, **(asked | changes))


def test_prompts_that_are_always_or_never_solved_are_dropped(tmp_path: Path) -> None:
    result = found(Pupil(), tmp_path)
    assert [int(row["answer"]) % 5 for row in result.kept] == [1, 2, 3] * 4
    assert (result.always, result.never) == (4, 4)
    assert result.to_sentence() == (
        "Probe: 4 prompts are always solved and 4 never; the other 12 of 20 are trained on."
    )


def test_a_share_of_the_unsolved_is_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    assert len(found(Pupil(), tmp_path / "all", keep_unsolved=1.0).kept) == 16
    half = found(Pupil(), tmp_path / "half", keep_unsolved=0.5)
    assert len(half.kept) + half.never == 16


def test_the_counts_are_kept_and_not_asked_for_again(tmp_path: Path) -> None:
    first, second = Pupil(), Pupil()
    assert found(first, tmp_path, keep_unsolved=0.5) == found(second, tmp_path, keep_unsolved=0.5)
    assert (first.calls, second.calls) == (1, 0)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text("utf-8").splitlines()]
    assert lines[3] == {"question": "Is 3 n?", "solved": 3, "attempts": 4}


def test_of_several_processes_one_asks_and_the_others_wait(tmp_path: Path) -> None:
    """The file of an earlier probe lies there and is no answer."""
    found(Pupil(), tmp_path, attempts=2)
    asking = threading.Timer(0.2, found, (Pupil(), tmp_path), {"keep_unsolved": 0.5})
    asking.start()
    waited = found(None, tmp_path, keep_unsolved=0.5)
    asking.join()
    assert waited == found(Pupil(), tmp_path / "alone", keep_unsolved=0.5)


def test_counts_of_other_attempts_are_not_mistaken_for_these(tmp_path: Path) -> None:
    found(Pupil(), tmp_path)
    again = Pupil()
    found(again, tmp_path, attempts=2)
    assert again.calls == 1


def test_only_some_prompts_are_probed_and_always_the_same_ones(tmp_path: Path) -> None:
    pupil = Pupil()
    first = found(pupil, tmp_path / "a", prompts=10)
    assert len(pupil.asked) == 10
    assert first == found(Pupil(), tmp_path / "b", prompts=10)


def test_a_probe_that_keeps_nothing_says_what_to_do(tmp_path: Path) -> None:
    hopeless = [row for row in rows(20) if int(row["answer"]) % 5 == 0]
    with pytest.raises(
        RigError, match=r"of 4, 0 are always solved and 4 never\. Take .*keep_unsolved=0\.5"
    ):
        probe_prompts(
            Pupil(), hopeless, TAUGHT, tmp_path, attempts=ATTEMPTS, prompts=None, keep_unsolved=0.0,
            sampling=DRAWN,
        )  # fmt: skip


def test_the_toy_model_is_probed_for_real(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
    from train.eval.models import LocalModel
    from train.model import backends

    chosen = dataset.load_splits("generated:arithmetic", limit=12, held_out=1).train
    local = LocalModel(*backends.load_for_inference("toy"), batch=48)
    result = probe_prompts(
        local, chosen, TAUGHT, tmp_path, attempts=2, prompts=None, keep_unsolved=1.0,
        sampling=SamplingParams(64, temperature=1.0),
    )  # fmt: skip
    assert len(result.kept) + result.always == 12
    assert result.kept
