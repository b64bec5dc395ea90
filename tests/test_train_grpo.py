"""Real runs on the embedded model, and what bad input says: `pytest tests/test_train_grpo.py`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from one_thread import one_thread  # noqa: F401

import rig.cli
from rig.errors import RigError, WrongUse
from rig.runs import Run
from rig.speech import TAUGHT, Speech
from train import checkpoints, log, running
from train import recipe as recipes

SMALL = [
    "schedule.max_steps=2", "schedule.prompts_per_step=2", "grpo.num_generations=4",
    "schedule.micro_batch=4", "grpo.max_completion_length=24", "data.limit=24", "evaluation.problems=4",
    "data.held_out=8", "schedule.save_every=1", "schedule.warmup_steps=0",
]  # fmt: skip


def start(
    *settings: str, name: str = "mine", recipe: str = "embedded-arithmetic"
) -> dict[str, Any]:
    found = recipes.load(recipe, [*SMALL, *settings])
    return running.start(found, Path("runs") / name, quiet=True)


def reward_file(text: str) -> str:
    Path("mine.py").write_text(text, "utf-8")
    return "mine.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One small run that several tests look at."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trained"))
    try:
        done = CliRunner().invoke(
            rig.cli.main,
            ["train", "embedded-arithmetic", "--json", "--set", "evaluation.every=1",
             *[part for one in SMALL for part in ("--set", one)]],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return Run.open(Path(found["run"]).resolve())
    finally:
        os.chdir(here)


def test_a_run_leaves_what_the_next_room_needs(trained: Run) -> None:
    assert trained.state == "trained"
    assert Speech.load(trained.adapter) == TAUGHT
    names = {path.name for path in trained.adapter.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "speech.json",
    } <= names
    assert trained.base == "embedded"
    again = recipes.parse((trained.path / "recipe.toml").read_text("utf-8"), "recipe.toml")
    assert again == recipes.load("embedded-arithmetic", [*SMALL, "evaluation.every=1"])
    assert [step for step, _ in checkpoints.all_of(trained.checkpoints)] == [1, 2]


def test_every_setting_in_force_is_saved(trained: Run) -> None:
    saved = trained.record["settings"]
    assert saved["learning_rate"] == recipes.load("embedded-arithmetic").schedule.learning_rate
    assert saved["loss_type"] == "dapo"
    assert saved["use_cpu"] is True
    assert saved["gradient_accumulation_steps"] == 2
    assert trained.record["versions"]["trl"]
    assert trained.record["trainable_parameters"] > 0


def test_the_log_has_a_line_for_each_step_and_each_look(trained: Run) -> None:
    rows = log.steps(trained.path / log.LOG)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert {"reward", "accuracy", "format", "frac_reward_zero_std", "loss", "grad_norm", "entropy",
                "completions/clipped_ratio", "rewards/correct/mean", "seconds"} <= set(row)  # fmt: skip
    looks = [row for row in log.read(trained.path / log.LOG) if "held_out" in row]
    assert [row["held_out"]["n"] for row in looks] == [4, 4]
    samples = list(log.read(trained.path / log.SAMPLES))
    assert {sample["step"] for sample in samples} == {1, 2}
    assert {"prompt", "completion", "reward", "rewards"} <= set(samples[0])


def test_before_and_after_are_judged_on_the_same_problems(trained: Run) -> None:
    found = running.outcome(trained)
    assert found["before"]["n"] == found["after"]["n"] == 4
    assert set(found["change"]) >= {"strict", "lenient", "format", "agreement"}
    assert "Which is bigger, 9.11 or 9.9?" in trained.record["extras"]["after"]


def test_the_report_needs_nothing_else(trained: Run) -> None:
    page = (trained.path / "report.html").read_text("utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_what_a_model_says_is_data_in_the_report(trained: Run) -> None:
    from train import report

    kept = (trained.path / log.SAMPLES).read_text("utf-8")
    evil = {"step": 1, "prompt": "<script>1</script>", "completion": "</pre><img src=x>", "reward": 0.0,
            "rewards": {"<b>": 0.0}}  # fmt: skip
    try:
        (trained.path / log.SAMPLES).write_text(json.dumps(evil) + "\n", "utf-8")
        page = report.write(trained).read_text("utf-8")
    finally:
        (trained.path / log.SAMPLES).write_text(kept, "utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_a_finished_run_is_reported_not_trained_again(trained: Run) -> None:
    before = (trained.path / log.LOG).read_bytes()
    assert running.resume(Run.open(trained.path), quiet=True)["state"] == "trained"
    assert (trained.path / log.LOG).read_bytes() == before


@pytest.mark.parametrize(
    "setting", ["grpo.num_generations=8", "lora.r=4", "schedule.seed=1", "model.name=x"]
)
def test_a_run_that_goes_on_stays_the_same_run(trained: Run, setting: str) -> None:
    with pytest.raises(WrongUse, match="can't change this"):
        running.resume(Run.open(trained.path), (setting,), quiet=True)


@pytest.mark.slow
def test_looking_leaves_no_trace_in_the_training(trained: Run, elsewhere: Path) -> None:
    start("evaluation.every=0", "evaluation.problems=0", "backend.preflight=false")
    blind = log.steps(Path("runs/mine") / log.LOG)
    seeing = log.steps(trained.path / log.LOG)
    clean = [
        [{k: v for k, v in row.items() if k not in log.CLOCK} for row in rows]
        for rows in (blind, seeing)
    ]
    assert clean[0] == clean[1]


# ----------------------------------------------------------------------------------------------------------
# Trouble that is named


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
    alarms = [row for row in log.read(run.path / log.LOG) if "alarm" in row]
    named = next(row for row in alarms if row["alarm"] == "dead-reward")
    assert (named["subject"], named["step"]) == ("never", 10)
    assert run.record["stopped"]["alarm"] == "never-learns"
    assert run.record["stopped"]["step"] == 10
    assert str(run.path) in stopped.value.message
    assert run.state == "training"
    saved = checkpoints.newest(run.checkpoints)
    assert saved is not None
    assert saved[0] == 10, "stopped with a checkpoint"
    assert (run.path / "report.html").is_file()


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
    saved = checkpoints.newest(run.checkpoints)
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
    row = log.steps(Path(found["run"]) / log.LOG)[0]
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
        (["model.precision=4bit"], "needs a CUDA card"),
        (["schedule.optim=paged_adamw_8bit"], "schedule.optim=adamw_torch"),
        (["grpo.use_vllm=true"], "grpo.use_vllm=false"),
        (["backend.name=unsloth"], "unsloth"),
        (['schedule.report_to=["trackio"]'], "trackio is not installed: pip install trackio"),
        (['schedule.report_to=["tensorbord"]'], "'tensorboard', 'wandb' or 'trackio'"),
        (['rewards=[{name="corect"}]'], "did you mean 'correct'"),
        (['rewards=[{name="mine.py:gone"}]'], "There is no file mine.py"),
        (["trainer.lerning_rate=1"], "did you mean 'learning_rate'"),
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
    import shutil

    from train.backends import EMBEDDED

    shutil.copytree(EMBEDDED, folder)
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

    from train.backends import EMBEDDED
    from train.preflight import check_template

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
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


def test_a_full_disk_is_a_sentence_and_the_checkpoints_before_it_stay(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own answer to a file that may not grow, in the middle of the third checkpoint."""
    import errno

    real = checkpoints._sync

    def full(folder: Path) -> None:
        if folder.name == "checkpoint-2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(folder)

    monkeypatch.setattr(checkpoints, "_sync", full)
    with pytest.raises(RigError, match="The disk is full: checkpoint-2"):
        start("schedule.max_steps=3", "evaluation.problems=0", "backend.preflight=false")
    run = Run.open(Path("runs/mine"))
    assert run.state == "training"
    assert checkpoints.newest(run.checkpoints) == (1, run.checkpoints / "checkpoint-1")
    monkeypatch.setattr(checkpoints, "_sync", real)
    assert running.resume(run, quiet=True)["state"] == "trained"


def test_a_folder_that_holds_a_run_is_not_overwritten(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.path.parent.parent)
    before = (trained.path / "run.json").read_bytes()
    done = CliRunner().invoke(
        rig.cli.main, ["train", "embedded-arithmetic", "--name", trained.path.name]
    )
    assert done.exit_code == 2
    assert "already holds a run" in done.output
    assert (trained.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a recipe: "),
        (["embeded-arithmetic"], "did you mean 'embedded-arithmetic'"),
        (["embedded-arithmetic", "--resume", "x"], "leave RECIPE out"),
        (["--resume", "nosuch"], "is not a run folder"),
        (["embedded-arithmetic", "--gpus", "2"], "needs CUDA cards"),
    ],
)
def test_wrong_use_is_code_2_and_one_sentence(
    elsewhere: Path, arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(rig.cli.main, ["train", *arguments])
    assert done.exit_code == 2
    assert said in done.output
    assert list(elsewhere.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_rows_and_real_rewards(elsewhere: Path, shared: Path) -> None:
    """Two steps on GSM8K itself, held out by its own test split."""
    gsm8k = shared / "data" / "gsm8k"
    found = start(
        f"data.source={gsm8k / 'train.jsonl'}", f"data.held_out_split={gsm8k / 'test.jsonl'}",
        'rewards=[{name="correct"}, {name="close", weight=0.5}, {name="format", weight=0.2}]',
        "backend.preflight=false",
    )  # fmt: skip
    assert found["state"] == "trained"
    row = log.steps(Path(found["run"]) / log.LOG)[-1]
    assert {"rewards/correct/mean", "rewards/close/mean", "rewards/format/mean"} <= set(row)


@pytest.mark.slow
def test_the_probe_drops_what_teaches_nothing(elsewhere: Path) -> None:
    found = start("probe.attempts=2", "probe.prompts=16", "probe.keep_unsolved=0.5",
                  "evaluation.problems=0", "schedule.max_steps=1")  # fmt: skip
    run = Run.open(Path(found["run"]))
    counts = [row["solved"] for row in log.read(run.path / "probe.jsonl")]
    assert len(counts) == 16
    assert counts.count(1) <= run.record["training_prompts"] < 16


def test_a_card_that_says_what_it_draws_has_a_price(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import power

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 250.00\necho '[N/A]'\necho 50\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(power, "EVERY", 0.05)
    meter = power.Meter(cards=2, ask=str(program))
    meter.start()
    while meter.watts() is None:
        meter._stop.wait(0.05)
    meter.stop()
    assert meter.watts() == 300
    (elsewhere / "rig.toml").write_text("[train]\nprice_per_kwh = 0.5\n", "utf-8")
    assert power.cost(2.0) == "2.00 kWh = 1.00 EUR"


def test_without_a_card_that_reports_there_is_no_energy() -> None:
    from train import power

    meter = power.Meter(ask="/bin/false")
    meter.start()
    meter.stop()
    assert meter.watts() is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_share_a_step(elsewhere: Path) -> None:
    """Data parallel over gloo: the same launcher, the same effective batch, one log."""
    from train import cards

    found = recipes.load("embedded-arithmetic", [*SMALL, "evaluation.every=1"])
    run = Run.create(Path("runs/both"), recipe=recipes.to_toml(found), base="embedded")
    cards.launch(run, 2, quiet=True)
    run = Run.open(run.path)
    assert run.state == "trained"
    assert run.record["settings"]["gradient_accumulation_steps"] == 1
    rows = log.steps(run.path / log.LOG)
    assert [row["step"] for row in rows] == [1, 2]
    assert run.record["eval"]["after"]["n"] == 4
