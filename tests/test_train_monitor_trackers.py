"""Trackers get the figures, and do no harm: `pytest tests/test_train_monitor_trackers.py`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT

import rig.cli
from rig.errors import RigError
from support.one_thread import one_thread  # noqa: F401
from support.small_runs import SMALL, reward_file, start
from train.monitor import log
from train.monitor.trackers import GuardedCallback


def installed(tracker: str) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"needs {tracker}, which is not installed")


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RIG_", "WANDB_", "TRACKIO_"))}
    return kept | {
        "HOME": str(home), "TRACKIO_DIR": str(home / "trackio"), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_holds_the_figures_of_its_own_run(tmp_path: Path, tracker: str) -> None:
    """Read back by the tracker's own reader: no mixing of runs, and a resumed run goes on."""
    installed(tracker)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "tracking.py"), tracker],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=environment(home) | {"WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)  # nothing else on stdout
    logged = {row["step"]: row for row in log.read_step_rows(tmp_path / "runs" / "mine" / log.LOG)}
    assert sorted(logged) == [1, 2, 3]
    for key in ("reward", "accuracy", "format", "loss", "rewards/correct/mean"):
        before, other, after = (held[run][f"train/{key}"] for run in ("mine", "other", "resumed"))
        assert [step for step, _ in before] == [step for step, _ in other] == [1, 2]
        # TensorBoard takes back the step that is lived again; the others keep both, and they are the same
        assert [step for step, _ in after] == (
            [1, 2, 3] if tracker == "tensorboard" else [1, 2, 2, 3]
        )
        for step, value in after:
            assert value == pytest.approx(logged[step][key], rel=1e-6)


def test_wandb_without_a_login_is_a_sentence(tmp_path: Path) -> None:
    installed("wandb")
    settings = [part for one in [*SMALL, 'schedule.report_to=["wandb"]'] for part in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rig", "train", "toy-arithmetic", "--json", *settings],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=environment(tmp_path), timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").iterdir())


def test_a_tracker_that_can_not_begin_is_a_sentence(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("tensorboard")
    Path("taken").write_text("a file where a folder should be", "utf-8")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(elsewhere / "taken"))
    with pytest.raises(RigError, match=r"tensorboard can't begin .*, or leave tensorboard out"):
        start('schedule.report_to=["tensorboard"]', "evaluation.problems=0")
    assert not Path("runs/mine").exists()


def test_a_tracker_that_fails_in_mid_run_loses_its_own_figures_alone() -> None:
    class Tracker:
        heard: list[int] = []  # noqa: RUF012

        def on_log(self, step: int) -> None:
            if step == 2:
                raise ConnectionResetError("Connection lost")
            self.heard.append(step)

        def on_train_begin(self) -> None:
            raise PermissionError("not here")

    said: list[str] = []
    guarded: Any = GuardedCallback(Tracker(), "wandb", said.append)
    with pytest.raises(RigError, match=r"wandb can't begin \(not here\)"):
        guarded.on_train_begin()
    for step in (1, 2, 3):
        guarded.on_log(step)
    assert Tracker.heard == [1]
    assert said == [
        "! wandb failed (Connection lost) and hears no more of this run; log.jsonl has every figure."
    ]


def test_what_a_reward_prints_does_not_mix_with_the_result(elsewhere: Path) -> None:
    mine = reward_file(
        "def mine(completions, **_):\n    print('chatter')\n"
        "    return [float(len(said[0]['content'])) for said in completions]\n"
    )
    small = [*SMALL, "schedule.max_steps=1", "evaluation.problems=0"]
    settings = [part for one in small for part in ("--set", one)]
    done = CliRunner().invoke(
        rig.cli.main,
        ["train", "toy-arithmetic", "--json", "--set", f'rewards=[{{name="{mine}:mine"}}]',
         *settings],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["state"] == "trained"
    assert "chatter" in done.stderr
