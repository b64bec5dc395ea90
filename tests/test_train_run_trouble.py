"""What a run says of bad input, and of what goes wrong in it: `pytest tests/test_train_run_trouble.py`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import rig.cli
from rig import atomic
from rig.errors import RigError, WrongUse
from rig.runs import Run
from support.one_thread import one_thread  # noqa: F401
from support.small_runs import reward_file, start
from train import run as train_run
from train.monitor import log
from train.trainer import checkpoints


def test_a_dead_reward_is_named_within_ten_steps_and_a_hopeless_run_is_stopped(
    elsewhere: Path,
) -> None:
    dead = reward_file("def never(completions, **_):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(RigError, match="had a learning signal, so nothing was learnt") as stopped:
        start(
            f'rewards=[{{name="{dead}:never"}}]', "schedule.max_steps=30", "watch.never_learns=40",
            "evaluation.problems=0", "grpo.max_completion_length=4", "schedule.save_every=4",
        )  # fmt: skip
    run = Run.open(Path("runs/mine"))
    alarms = [row for row in log.read_rows(run.path / log.LOG) if "alarm" in row]
    named = next(row for row in alarms if row["alarm"] == "dead-reward")
    assert (named["subject"], named["step"]) == ("never", 10)
    assert run.record["stopped"]["alarm"] == "never-learns"
    assert run.record["stopped"]["step"] == 10
    assert str(run.path) in stopped.value.message
    assert run.state == "training"
    saved = checkpoints.latest_checkpoint(run.checkpoint_folder)
    assert saved is not None
    assert saved[0] == 10, "stopped with a checkpoint"
    page = (run.path / "report.html").read_text("utf-8")
    assert f"Go on with: <code>rig train --resume {run.path}</code>" in page


def test_a_loss_that_is_no_number_stops_before_it_is_saved(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import GRPOTrainer

    real = GRPOTrainer.compute_loss

    def spoilt(self: Any, *given: Any, **more: Any) -> Any:
        return real(self, *given, **more) * (float("nan") if self.state.global_step >= 2 else 1)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", spoilt)
    with pytest.raises(RigError, match="weights are lost"):
        start("schedule.max_steps=5", "evaluation.problems=0", "backend.preflight=false")
    run = Run.open(Path("runs/mine"))
    assert run.record["stopped"]["step"] == 3
    saved = checkpoints.latest_checkpoint(run.checkpoint_folder)
    assert saved is not None
    assert saved[0] == 2, "the checkpoint before the loss went wrong is the newest"


LENGTH = "    return [float(len(said[0]['content'])) for said in completions]\n"


def test_weights_that_are_lost_between_two_steps_are_a_sentence(elsewhere: Path) -> None:
    """A rate that throws the weights out of range: the next token can't be drawn."""
    mine = reward_file(f"def mine(completions, **_):\n{LENGTH}")
    with pytest.raises(RigError, match="After step 1 the model's probabilities are no numbers"):
        start(f'rewards=[{{name="{mine}:mine"}}]', "schedule.learning_rate=1e30",
              "evaluation.problems=0", "backend.preflight=false")  # fmt: skip
    assert Run.open(Path("runs/mine")).state == "training"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "    raise KeyError('x')\n",
            r"mine.py:mine failed with KeyError: 'x' \(mine.py, line 2\)",
        ),
        ("    return [1.0]\n", "gave 1 marks to 8 completions"),
        (
            "    return ['good' for _ in completions]\n",
            "it must return one number or None for each",
        ),
        (
            "    return [float('nan') for _ in completions]\n",
            "gave nan, which nothing can be learnt from",
        ),
        ("    return [None for _ in completions]\n", "skip every completion"),
    ],
)
def test_a_reward_of_ones_own_that_fails_does_so_before_the_first_step(
    elsewhere: Path, body: str, said: str
) -> None:
    mine = reward_file(f"def mine(completions, **_):\n{body}")
    with pytest.raises(RigError, match=said):
        start(f'rewards=[{{name="{mine}:mine"}}]', "evaluation.problems=0")
    assert not Path("runs/mine").exists()


def test_a_first_reward_may_be_async(elsewhere: Path) -> None:
    mine = reward_file(f"async def mine(completions, **_):\n{LENGTH}")
    found = start(
        f'rewards=[{{name="{mine}:mine"}}]', "schedule.max_steps=1", "evaluation.problems=0"
    )
    row = log.read_step_rows(Path(found["run"]) / log.LOG)[0]
    assert row["rewards/mine/mean"] > 0
    assert "accuracy" in row


@pytest.mark.slow
def test_early_stopping_keeps_the_best_adapter(elsewhere: Path) -> None:
    """A learning rate of almost nothing: no look is better than the first one."""
    found = start(
        "schedule.max_steps=6", "schedule.learning_rate=1e-12", "evaluation.every=1",
        "evaluation.patience=2", "backend.preflight=false",
    )  # fmt: skip
    assert found["state"] == "trained"
    assert found["steps"] == 3
    assert "in 2 looks" in found["early"]
    best = Path("runs/mine/checkpoints/best/adapter_model.safetensors").read_bytes()
    assert (Path(found["adapter"]) / "adapter_model.safetensors").read_bytes() == best


def bad_data(rows: list[dict[str, Any]]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return "data.source=rows.jsonl"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.source=nowhere.jsonl"], "There is no data file"),
        (["model.name=no/such/model/here"], "There is no model at"),
        (["model.precision=4bit"], "needs a CUDA GPU"),
        (["schedule.optim=paged_adamw_8bit"], "schedule.optim=adamw_torch"),
        (["backend.name=unsloth"], "unsloth"),
        (['schedule.report_to=["trackio"]'], "trackio is not installed: pip install trackio"),
        (['schedule.report_to=["tensorbord"]'], "'tensorboard', 'wandb' or 'trackio'"),
        (['rewards=[{name="corect"}]'], "did you mean 'correct'"),
        (['rewards=[{name="mine.py:gone"}]'], "There is no file mine.py"),
        (["trainer.lerning_rate=1"], "did you mean 'learning_rate'"),
        (["trainer.use_vllm=true"], "use_vllm: no run generates with vLLM; leave it out"),
        (["trainer.seed=1"], "follows from the other tables"),
        (['lora.targets=["q_prj"]'], "lora.targets"),
        (["data.max_prompt_length=3"], "raise data.max_prompt_length"),
        (["data.limit=1"], "too few"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    elsewhere: Path, settings: list[str], said: str
) -> None:
    with pytest.raises(click.ClickException) as error:
        start(*settings)
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert not Path("runs/mine").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no rows"),
        ([{"q": "2+2?", "answer": "4"}], "has no column 'question'"),
        (
            [{"question": "2+2?", "answer": "x " * 200}] * 30,
            "no row has a question and a final answer",
        ),
        ([{"question": "2+2?", "answer": "4"}] * 30, "none to train on"),
    ],
)
def test_bad_data_is_one_sentence_and_leaves_nothing(
    elsewhere: Path, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(WrongUse, match=said):
        start(bad_data(rows))
    assert not Path("runs/mine").exists()


def copied_model(folder: Path) -> Path:
    from train.model.backends import TOY

    shutil.copytree(TOY, folder)
    return folder


def test_a_model_without_a_chat_template_is_refused(elsewhere: Path) -> None:
    model = copied_model(elsewhere / "base")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(WrongUse, match="has no chat template"):
        start(f"model.name={model}")
    Path("mine.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}", "utf-8")
    with pytest.raises(RigError, match="ignores add_generation_prompt"):
        start(f"model.name={model}", "model.chat_template=mine.jinja")
    assert not Path("runs/mine").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("{{- bos_token }}", "{{- bos_token }}{{- bos_token }}"), "start token twice"),
        (("add_generation_prompt", "false"), "ignores add_generation_prompt"),
        (("+ '<|eot_id|>'", "+ '<|begin_of_text|>'"), "closes a reply with <|begin_of_text|>"),
    ],
)
def test_a_broken_chat_template_is_found(
    elsewhere: Path, change: tuple[str, str], said: str
) -> None:
    from transformers import AutoTokenizer

    from train.model.backends import TOY
    from train.trainer.preflight import check_template

    tokenizer = AutoTokenizer.from_pretrained(TOY)
    ends = [tokenizer.eos_token_id]
    check_template(tokenizer, ends)
    assert change[0] in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    with pytest.raises(RigError, match=said.replace("|", r"\|")):
        check_template(tokenizer, ends)


def test_a_model_that_babbles_is_not_trained(elsewhere: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = copied_model(elsewhere / "noise")
    path = model / "model.safetensors"
    torch.manual_seed(0)
    noise = {
        name: torch.randn_like(value.float()).mul(0.02).to(value.dtype) if value.ndim > 1 else value
        for name, value in load_file(path).items()
    }
    save_file(noise, path, metadata={"format": "pt"})
    with pytest.raises(RigError, match="babbles"):
        start(f"model.name={model}", "evaluation.problems=0")
    damaged = {name: value * float("nan") for name, value in noise.items()}
    save_file(damaged, path, metadata={"format": "pt"})
    with pytest.raises(RigError, match=r"not numbers"):
        start(f"model.name={model}", "evaluation.problems=0")


@pytest.mark.parametrize(
    ("cuda", "program", "init", "said"),
    [
        (None, None, "", "This torch was built without CUDA."),
        (None, "/usr/bin/nvidia-smi", "", "There is a GPU, but this torch was built without CUDA"),
        ("13.0", None, "Found no NVIDIA driver on your system. Please check that you have an NVIDIA "
         "GPU.", "torch sees no GPU (Found no NVIDIA driver on your system): install"),
        ("13.0", None, "The NVIDIA driver on your system is too old (found version 11040).\nPlease update",
         "is too old (found version 11040)): install or update the NVIDIA driver."),
    ],
)  # fmt: skip
def test_a_machine_without_a_working_gpu_says_why(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, program: str | None, init: str, said: str
) -> None:
    import torch

    from train.model import backends

    def start_cuda() -> None:
        raise RuntimeError(init)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", start_cuda)
    monkeypatch.setattr("train.model.backends.shutil.which", lambda name: program)
    assert said in backends.why_no_gpu()
    assert "\n" not in backends.why_no_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ("hides every GPU" in backends.why_no_gpu()) is (cuda is not None)


def test_a_full_disk_is_a_sentence_and_the_checkpoints_before_it_stay(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's own answer to a file that may not grow, in the middle of the third checkpoint."""
    import errno

    real = atomic.sync_tree

    def full(folder: Path) -> None:
        if folder.name == "checkpoint-2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(folder)

    monkeypatch.setattr(atomic, "sync_tree", full)
    with pytest.raises(RigError, match="The disk is full: checkpoint-2"):
        start("schedule.max_steps=3", "evaluation.problems=0", "backend.preflight=false")
    run = Run.open(Path("runs/mine"))
    assert run.state == "training"
    assert checkpoints.latest_checkpoint(run.checkpoint_folder) == (
        1,
        run.checkpoint_folder / "checkpoint-1",
    )
    monkeypatch.setattr(atomic, "sync_tree", real)
    assert train_run.resume_run(run, quiet=True)["state"] == "trained"
    assert train_run.resume_run(run)["steps"] == 3
    assert "is trained, 3 steps: --set schedule.max_steps=6 would go on." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a recipe: "),
        (["embeded-arithmetic"], "did you mean 'toy-arithmetic'"),
        (["toy-arithmetic", "--resume", "x"], "leave RECIPE out"),
        (["--resume", "nosuch"], "is not a run folder"),
        (["toy-arithmetic", "--name", "../up"], "give a name, not a path"),
        (["toy-arithmetic", "--name", ".."], "give a name, not a path"),
        (["toy-arithmetic", "--gpus", "2"], "needs CUDA GPUs"),
    ],
)
def test_wrong_use_is_code_2_and_one_sentence(
    elsewhere: Path, arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(rig.cli.main, ["train", *arguments])
    assert done.exit_code == 2
    assert said in done.output
    assert list(elsewhere.iterdir()) == []
