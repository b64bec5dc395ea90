"""Real runs on the toy model, and what they leave behind: `pytest tests/test_train_grpo.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import RigError, WrongUse
from rig.model.reply_format import TAUGHT, ReplyFormat
from rig.runs import Run
from support.one_thread import one_thread  # noqa: F401
from support.small_runs import SMALL, reward_file, start
from train import recipe as recipes
from train import run
from train.monitor import log
from train.rewards.binding import BoundReward
from train.trainer import checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One small run that several tests look at."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trained"))
    try:
        done = CliRunner().invoke(
            rig.cli.main,
            ["train", "toy-arithmetic", "--json", "--set", "evaluation.every=1",
             *[part for one in SMALL for part in ("--set", one)]],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return Run.open(Path(found["run"]).resolve())
    finally:
        os.chdir(here)


def test_a_run_leaves_what_the_next_room_needs(trained: Run) -> None:
    assert trained.state == "trained"
    assert ReplyFormat.from_folder(trained.adapter_folder) == TAUGHT
    names = {path.name for path in trained.adapter_folder.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "reply_format.json",
    } <= names
    assert trained.base_model == "toy"
    again = recipes.parse_recipe((trained.path / "recipe.toml").read_text("utf-8"), "recipe.toml")
    assert again == recipes.load_recipe("toy-arithmetic", [*SMALL, "evaluation.every=1"])
    assert [step for step, _ in checkpoints.list_checkpoints(trained.checkpoint_folder)] == [1, 2]


def test_every_setting_in_force_is_saved(trained: Run) -> None:
    saved = trained.record["settings"]
    assert saved["learning_rate"] == recipes.load_recipe("toy-arithmetic").schedule.learning_rate
    assert saved["loss_type"] == "dapo"
    assert saved["use_cpu"] is True
    assert saved["gradient_accumulation_steps"] == 2
    assert trained.record["versions"]["trl"]
    assert trained.record["trainable_parameters"] > 0


def test_the_log_has_a_line_for_each_step_and_each_look(trained: Run) -> None:
    rows = log.read_step_rows(trained.path / log.LOG)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert {"reward", "accuracy", "format", "frac_reward_zero_std", "loss", "grad_norm", "entropy",
                "completions/clipped_ratio", "rewards/correct/mean", "seconds"} <= set(row)  # fmt: skip
    looks = [row for row in log.read_rows(trained.path / log.LOG) if "held_out" in row]
    assert [row["held_out"]["n"] for row in looks] == [4, 4]
    samples = list(log.read_rows(trained.path / log.SAMPLES))
    assert {sample["step"] for sample in samples} == {1, 2}
    assert {"prompt", "completion", "reward", "rewards"} <= set(samples[0])


def test_accuracy_is_counted_beside_the_rewards_which_reach_the_trainer_as_they_are(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.trainer import trl_trainer

    given: list[Any] = []
    configure = trl_trainer.configure_trainer

    def note(trainer: Any, **settings: Any) -> None:
        given.extend(trainer.reward_funcs)
        configure(trainer, **settings)

    monkeypatch.setattr(trl_trainer, "configure_trainer", note)
    found = start(
        'rewards=[{name="tags", weight=0.2}, {name="correct"}]', "evaluation.problems=0",
        "backend.preflight=false", "schedule.max_steps=1",
    )  # fmt: skip
    assert [type(reward) for reward in given] == [BoundReward] * 2
    row = log.read_step_rows(Path(found["run"]) / log.LOG)[0]
    assert row["accuracy"] == pytest.approx(row["rewards/correct/mean"])
    assert 0 < row["format"] <= row["rewards/tags/mean"]


def test_the_worst_case_leaves_no_trace_in_the_training(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the preflight does where there is a GPU: generate whole, learn once, forget."""
    from train.model.preserve_state import preserve_state
    from train.trainer import preflight

    learnt: list[bool] = []

    def try_once(trainer: Any, rows: list[dict[str, Any]], _: Any) -> None:
        with preserve_state(trainer.model):
            trainer.model.train()
            trainer.learn_once(trainer.generate_once([rows[at // 4] for at in range(8)]))
            learnt.append(any(p.grad is not None for p in trainer.model.parameters()))
            assert trainer.latest_completions()["completion"]
            trainer.forget()
        assert not trainer.latest_completions()["completion"]

    monkeypatch.setattr(preflight, "run_preflight", try_once)
    logs = []
    for name in ("true", "false"):
        start(f"backend.preflight={name}", "evaluation.problems=0", name=name)
        rows = log.read_step_rows(Path("runs") / name / log.LOG)
        logs.append([{k: v for k, v in row.items() if k not in log.CLOCK} for row in rows])
    assert learnt == [True]
    assert logs[0] == logs[1]


def test_before_and_after_are_judged_on_the_same_problems(trained: Run) -> None:
    found = run.run_outcome(trained)
    assert found["before"]["n"] == found["after"]["n"] == 4
    assert set(found["change"]) >= {"strict", "lenient", "format", "agreement"}
    assert "Which is bigger, 9.11 or 9.9?" in trained.record["extras"]["after"]


def test_the_report_needs_nothing_else(trained: Run) -> None:
    page = (trained.path / "report.html").read_text("utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_what_a_model_says_is_data_in_the_report(trained: Run) -> None:
    from train.report import html

    kept = (trained.path / log.SAMPLES).read_text("utf-8")
    evil = {"step": 1, "prompt": "<script>1</script>", "completion": "</pre><img src=x>", "reward": 0.0,
            "rewards": {"<b>": 0.0}}  # fmt: skip
    try:
        (trained.path / log.SAMPLES).write_text(json.dumps(evil) + "\n", "utf-8")
        page = html.write_report(trained).read_text("utf-8")
    finally:
        (trained.path / log.SAMPLES).write_text(kept, "utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("state", "last"),
    [
        ("training", "Not finished. Go on with: rig train --resume runs/x"),
        ("trained", "Next: rig export runs/x --gguf"),
        ("exported", "Report: runs/x/report.html"),
    ],
)
def test_what_comes_next_depends_on_how_far_a_run_came(
    state: str, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import cli

    found = {"state": state, "run": "runs/x", "steps": 3, "before": None, "after": None,
             "report": "runs/x/report.html"}  # fmt: skip
    cli.print_outcome(found, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_finished_run_is_reported_not_trained_again(trained: Run) -> None:
    before = (trained.path / log.LOG).read_bytes()
    assert run.resume_run(Run.open(trained.path), quiet=True)["state"] == "trained"
    assert (trained.path / log.LOG).read_bytes() == before


@pytest.mark.parametrize(
    "setting", ["grpo.num_generations=8", "lora.r=4", "schedule.seed=1", "model.name=x"]
)
def test_a_run_that_goes_on_stays_the_same_run(trained: Run, setting: str) -> None:
    with pytest.raises(WrongUse, match="can't change this"):
        run.resume_run(Run.open(trained.path), (setting,), quiet=True)


@pytest.mark.slow
def test_looking_leaves_no_trace_in_the_training(trained: Run, elsewhere: Path) -> None:
    start("evaluation.every=0", "evaluation.problems=0", "backend.preflight=false")
    blind = log.read_step_rows(Path("runs/mine") / log.LOG)
    seeing = log.read_step_rows(trained.path / log.LOG)
    clean = [
        [{k: v for k, v in row.items() if k not in log.CLOCK} for row in rows]
        for rows in (blind, seeing)
    ]
    assert clean[0] == clean[1]


def test_a_folder_that_holds_a_run_is_not_overwritten(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.path.parent.parent)
    before = (trained.path / "run.json").read_bytes()
    done = CliRunner().invoke(
        rig.cli.main, ["train", "toy-arithmetic", "--name", trained.path.name]
    )
    assert done.exit_code == 2
    assert "already holds a run" in done.output
    assert (trained.path / "run.json").read_bytes() == before


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
    row = log.read_step_rows(Path(found["run"]) / log.LOG)[-1]
    assert {"rewards/correct/mean", "rewards/close/mean", "rewards/format/mean"} <= set(row)


@pytest.mark.slow
def test_a_step_is_generated_in_portions(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.model import generate

    sizes: list[int] = []
    whole = generate.generate

    def counted(model: Any, ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        return whole(model, ids, *rest)

    monkeypatch.setattr(generate, "generate", counted)
    found = start("schedule.generate_at_once=3", "evaluation.problems=0", "backend.preflight=false")
    assert found["steps"] == 2
    assert sizes == [3, 3, 2] * 2, "eight completions a step"


def test_the_probe_drops_what_teaches_nothing(elsewhere: Path) -> None:
    found = start("probe.attempts=2", "probe.prompts=16", "probe.keep_unsolved=0.5",
                  "evaluation.problems=0", "schedule.max_steps=1")  # fmt: skip
    run = Run.open(Path(found["run"]))
    counts = [row["solved"] for row in log.read_rows(run.path / "probe.jsonl")]
    assert len(counts) == 16
    assert counts.count(1) <= run.record["training_prompts"] < 16


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_share_a_step(elsewhere: Path) -> None:
    """Data parallel over gloo: the same launcher, the same effective batch, one log."""
    from train import ddp

    found = recipes.load_recipe("toy-arithmetic", [*SMALL, "evaluation.every=1"])
    run = Run.create(Path("runs/both"), recipe=recipes.to_toml(found), base="toy")
    ddp.launch_workers(run, 2, quiet=True)
    run = Run.open(run.path)
    assert run.state == "trained"
    assert run.record["settings"]["gradient_accumulation_steps"] == 1
    rows = log.read_step_rows(run.path / log.LOG)
    assert [row["step"] for row in rows] == [1, 2]
    assert run.record["eval"]["after"]["n"] == 4


LIKE_GPUS = """
import torch
torch.serialization.register_package(
    1,
    lambda storage: None,
    lambda storage, place: storage if place.startswith("cpu:") else None,
)
"""
"""torch restores cuda:1, but not cpu:1, as processes without GPUs call their device."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_go_on_as_if_nothing_had_happened(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 3, where each process has completions that wait to be learnt from."""
    from train import ddp

    (elsewhere / "like_gpus").mkdir()
    (elsewhere / "like_gpus" / "sitecustomize.py").write_text(LIKE_GPUS, "utf-8")
    monkeypatch.syspath_prepend(str(elsewhere / "like_gpus"))
    settings = [*SMALL, "schedule.steps_per_batch=2", "evaluation.problems=0", "data.limit=12"]

    def go(name: str, *steps: int) -> list[dict[str, Any]]:
        first = recipes.load_recipe("toy-arithmetic", [*settings, f"schedule.max_steps={steps[0]}"])
        run = Run.create(Path("runs") / name, recipe=recipes.to_toml(first), base="toy")
        for count in steps:
            recipes.save_recipe(
                recipes.load_recipe("toy-arithmetic", [*settings, f"schedule.max_steps={count}"]),
                run.path,
            )
            ddp.launch_workers(run, 2, quiet=True)
        rows = log.read_step_rows(run.path / log.LOG)
        return [{k: v for k, v in row.items() if k not in log.CLOCK} for row in rows]

    whole, halves = go("whole", 6), go("halves", 3, 6)
    assert [row["step"] for row in whole] == list(range(1, 7))
    assert halves == whole
    adapters = [
        Path("runs") / name / "adapter/adapter_model.safetensors" for name in ("whole", "halves")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bad", ["0", "1"])
def test_what_stops_one_process_is_said_by_the_command(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    from train import ddp

    monkeypatch.setenv("BAD", bad)
    mine = reward_file(
        "import os\ndef mine(completions, **_):\n"
        "    if os.environ['RANK'] == os.environ['BAD']:\n        raise KeyError('x')\n"
        "    return [1.0 for _ in completions]\n"
    )
    found = recipes.load_recipe("toy-arithmetic", [*SMALL, f'rewards=[{{name="{mine}:mine"}}]',
                         "evaluation.problems=0", "backend.preflight=false"])  # fmt: skip
    run = Run.create(Path("runs/both"), recipe=recipes.to_toml(found), base="toy")
    with pytest.raises(RigError, match=r"mine\.py:mine failed with KeyError: 'x'"):
        ddp.launch_workers(run, 2, quiet=True)
    assert "failed with KeyError" in Run.open(run.path).record["error"]


def test_a_process_that_sees_several_gpus_keeps_to_one_and_says_so(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would spread it over all of them, and learn from that many times the completions."""
    import torch

    import train.trainer.trl_config

    complete = train.trainer.trl_config.grpo_config_fields
    quick = ["schedule.max_steps=1", "evaluation.problems=0", "backend.preflight=false"]
    small = recipes.load_recipe("toy-arithmetic", [*SMALL, *quick])
    run.start_run(small, Path("runs/one"))
    assert "GPUs" not in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        train.trainer.trl_config,
        "grpo_config_fields",
        lambda *given, **named: complete(*given, **named) | {"use_cpu": False},
    )
    run.start_run(small, Path("runs/four"))
    assert "1 of 4 GPUs; --gpus 4 shares each step" in capsys.readouterr().err
    one, four = (log.read_step_rows(Path("runs") / name / log.LOG)[-1] for name in ("one", "four"))
    assert one["num_tokens"] == four["num_tokens"]
    assert json.loads(Path("runs/four/run.json").read_text("utf-8"))["settings"]["use_cpu"] is False
