"""The worst case on a GPU that is too small: `pytest tests/test_train_trainer_preflight.py`.

No GPU is needed: a trainer stands in whose GPU holds so many completions and no more.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")

from rig.errors import RigError  # noqa: E402
from train.trainer import preflight  # noqa: E402

ROWS = [{"prompt": [{"role": "user", "content": "x" * size}]} for size in (3, 90, 5, 60)]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 12 GiB, as torch would describe it."""
    said: dict[str, Any] = {
        "is_available": True, "reset_peak_memory_stats": None, "empty_cache": None,
        "max_memory_reserved": 9 * 2**30, "get_rng_state_all": [], "current_device": 0,
        "get_device_properties": SimpleNamespace(total_memory=12 * 2**30), "get_device_name": "A GPU",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)


class Trainer:
    """Generates up to `generates` completions at once, learns from `learns`, notes what it was asked."""

    def __init__(
        self,
        *,
        generates: int = 999,
        learns: int = 999,
        processes: int = 1,
        at_once: int | None = None,
        **args: Any,
    ) -> None:
        self.generates, self.learns, self.at_once = generates, learns, at_once
        given = {"per_device_train_batch_size": 8, "steps_per_generation": 3,
                 "gradient_accumulation_steps": 3, "gradient_checkpointing": True}  # fmt: skip
        self.args = SimpleNamespace(**given | args)
        self.num_generations, self.max_completion_length = 6, 384
        self.generation_config = SimpleNamespace(min_new_tokens=None)
        self.use_liger_kernel = True
        self.model = torch.nn.Linear(1, 1)
        self.accelerator = SimpleNamespace(num_processes=processes)
        self.forgotten = False
        self.longest: list[int] = []
        self.least: int | None = None

    def _room(self, wanted: int, there: int) -> None:
        assert sys.exc_info()[1] is None, "an error in flight would keep the GPU full"
        if wanted > there:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def generate_once(self, rows: list[Any]) -> dict[str, Any]:
        self.longest = [len(row["prompt"][0]["content"]) for row in rows]
        self.least = self.generation_config.min_new_tokens
        self._room(min(len(rows), self.at_once or len(rows)), self.generates)
        size = self.args.per_device_train_batch_size
        return {"ids": torch.ones(size, 4), "all": torch.tensor(3), "other": 1}

    def generate_completions(self, prompts: list[Any], group: int) -> None:
        self._room(len(prompts), self.generates)

    def learn_once(self, inputs: dict[str, Any]) -> None:
        self._room(len(inputs["ids"]), self.learns)

    def forget(self) -> None:
        self.forgotten = True


def test_what_fits_is_measured_and_leaves_no_trace() -> None:
    trainer = Trainer()
    assert preflight.worst_case(trainer, ROWS) == 9.0
    assert trainer.longest == [90] * 6 + [60] * 6 + [5] * 6 + [3] * 6, "the longest prompts first"
    assert trainer.least == 384, "and every completion to its limit"
    assert trainer.generation_config.min_new_tokens is None
    assert trainer.forgotten


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (Trainer(learns=5), "4 fit: --set schedule.micro_batch=4 (the result is the same)"),
        (Trainer(learns=1), "1 fit: --set schedule.micro_batch=1"),
        (Trainer(learns=0), "--set grpo.max_completion_length=192"),
        (Trainer(learns=0, gradient_checkpointing=False), "schedule.gradient_checkpointing=true"),
        (
            Trainer(learns=6, per_device_train_batch_size=7, gradient_accumulation_steps=5),
            "3 fit: --set schedule.micro_batch=1",  # what divides the 35 of a step
        ),
        (
            Trainer(generates=13),
            "12 fit: --set schedule.prompts_per_step=2 --set schedule.steps_per_batch=1 "
            "--set schedule.micro_batch=6",
        ),
        (Trainer(generates=13, processes=2), "schedule.prompts_per_step=4"),
        (
            Trainer(generates=4),
            "3 fit: --set grpo.num_generations=3 --set schedule.prompts_per_step=1 "
            "--set schedule.steps_per_batch=1 --set schedule.micro_batch=3",
        ),
        (Trainer(generates=1), "Not even 2 fit: --set grpo.max_completion_length=192"),
        (Trainer(generates=0), "Not even 1 fits: --set grpo.max_completion_length=192"),
        (
            Trainer(generates=13, at_once=24),
            "generating 24 completions at once on A GPU (12.0 GiB). 12 fit: --set "
            "schedule.generate_at_once=12 (it learns the same).",
        ),
        (
            Trainer(generates=11, at_once=20),
            "10 fit: --set schedule.generate_at_once=6",  # whole groups of 6
        ),
        (Trainer(generates=5, at_once=20), "5 fit: --set schedule.generate_at_once=5"),
        (Trainer(generates=0, at_once=20), "Not even 1 fits: --set grpo.max_completion_length=192"),
    ],
)
def test_what_does_not_fit_names_the_knob_and_the_value_that_fits(
    trainer: Trainer, said: str
) -> None:
    with pytest.raises(RigError) as error:
        preflight.worst_case(trainer, ROWS)
    assert said in error.value.message
    assert "A GPU (12.0 GiB)" in error.value.message
    assert "\n" not in error.value.message
