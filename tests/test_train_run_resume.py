"""Killed at any moment, a run goes on as if nothing had happened: `pytest tests/test_train_run_resume.py`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from rig.atomic import atomic_folder
from rig.errors import RigError
from rig.runs import Run
from support.one_thread import one_thread  # noqa: F401
from support.small_runs import start
from train.monitor import log
from train.trainer import checkpoints

SMALL = [
    "schedule.max_steps=7", "schedule.prompts_per_step=2", "grpo.num_generations=4",
    "schedule.micro_batch=4", "grpo.max_completion_length=24", "data.limit=12", "evaluation.problems=2",
    "backend.preflight=false",
]  # fmt: skip
"""Twelve prompts, two a step: the seven steps cross the end of an epoch."""

AHEAD = ["schedule.steps_per_batch=2", "grpo.num_iterations=2", "schedule.save_every=1"]
"""A checkpoint after every step, also where generated completions wait to be learnt from."""

EVERY_TWO = ["schedule.save_every=2", "evaluation.every=3"]
"""Looks at the held-out problems fall between checkpoints."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks, Windows can't")


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RIG_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def kill(place: Path, count: int, settings: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "killing.py"), str(place), str(count), *settings],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def judge(found: dict[str, Any]) -> None:
    assert found["exit"] == 0
    assert sum(one["kills"] for one in found["kills"]) >= len(found["kills"])
    for one in found["kills"]:
        assert one["exit"] == 0
        assert one["same_log"], "a resumed run logs what the uninterrupted one logs"
        assert one["same_adapter"], "and ends with the same weights, bit by bit"
        assert one["halves"] == [], "a checkpoint is whole or absent"
        assert one["leftovers"] == [], "what a kill left half-written is swept away"


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    judge(kill(tmp_path / "kills", 1, [*SMALL, *AHEAD]))


def test_a_run_goes_on_where_a_launcher_has_set_its_ranks(elsewhere: Path) -> None:
    """There the CPU is called cpu:0, which torch can't restore the waiting completions to."""
    settings = (*AHEAD[:1], "schedule.save_every=3", "evaluation.problems=0")
    start(*settings, "schedule.max_steps=4", name="whole")
    start(*settings, "schedule.max_steps=3", name="half")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    subprocess.run(
        [sys.executable, "-P", "-m", "rig", "train", "--resume", "half", "--set", "schedule.max_steps=4"],
        env=environment() | ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        check=True, capture_output=True,
    )  # fmt: skip
    whole, half = (
        [{k: v for k, v in row.items() if k not in log.CLOCK} for row in log.read_step_rows(path)]
        for path in (Path("runs/whole") / log.LOG, Path("runs/half") / log.LOG)
    )
    assert len(whole) == 4
    assert half == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("half", ["first", "second"])
@pytest.mark.parametrize("extra", [EVERY_TWO, AHEAD], ids=["every two steps", "ahead"])
def test_twenty_random_moments(tmp_path: Path, extra: list[str], half: str) -> None:
    """Ten runs each; the name of the folder seeds the moments, and every other run is killed twice."""
    judge(kill(tmp_path / half, 10, [*SMALL, *extra]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The real command in a process of its own, told to stop as a terminal tells it."""
    settings = [part for one in [*SMALL, "schedule.max_steps=60"] for part in ("--set", one)]
    command = [sys.executable, "-P", "-m", "rig", "train"]
    process = subprocess.Popen(
        [*command, "toy-arithmetic", "--name", "mine", *settings],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    run = tmp_path / "runs" / "mine"
    while not list(log.read_rows(run / log.LOG)):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, heard = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said == "", "stdout is for the result"
    assert "Go on with: rig train --resume" in heard
    assert Run.open(run).state == "training"
    saved = checkpoints.latest_checkpoint(run / "checkpoints")
    assert saved is not None
    assert saved[0] == len(log.read_step_rows(run / log.LOG))
    again = subprocess.run(
        [*command, "--resume", "mine", "--set", f"schedule.max_steps={saved[0] + 1}", "--json"],
        cwd=tmp_path, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["state"], found["steps"]) == ("trained", saved[0] + 1)


def test_a_checkpoint_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path, "checkpoint-5") as workshop:
            (workshop / "checkpoint-5").mkdir()
            (workshop / "checkpoint-5" / "half").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_the_half_written_makes_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch hides the number of the error, so the disk is asked; it is full until the part is gone."""
    real = shutil.disk_usage(tmp_path)

    def usage(folder: Path) -> Any:
        return real._replace(free=0 if list(folder.glob(".part-*")) else 2**30)

    def write() -> None:
        with atomic_folder(tmp_path, "checkpoint-5"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8")

    monkeypatch.setattr("rig.atomic.shutil.disk_usage", usage)
    with pytest.raises(RigError, match="The disk is full: checkpoint-5"):
        write()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("rig.atomic.shutil.disk_usage", lambda folder: real._replace(free=2**30))
    with pytest.raises(RuntimeError, match="enforce fail"):
        write()


def test_a_checkpoint_takes_the_place_of_an_older_one_of_its_name(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path, "checkpoint-5") as workshop:
            (workshop / "checkpoint-5").mkdir()
            (workshop / "checkpoint-5" / "file").write_text(text, "utf-8")
    assert (tmp_path / "checkpoint-5" / "file").read_text("utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_the_newest_counts_by_number_and_parts_do_not_count(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", ".part-checkpoint-11", "checkpoint-x", "best"):
        (tmp_path / name).mkdir()
    assert checkpoints.latest_checkpoint(tmp_path) == (10, tmp_path / "checkpoint-10")
    checkpoints.remove_partial_checkpoints(tmp_path)
    checkpoints.prune_checkpoints(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "checkpoint-10", "checkpoint-x"]


def test_a_line_that_a_kill_cut_in_two_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / log.LOG
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.2}\n{"step": 3, "lo', "utf-8")
    assert [row["step"] for row in log.read_rows(path)] == [1, 2]
    log.truncate_log(path, 1)
    assert path.read_text("utf-8") == '{"step": 1, "loss": 0.1}\n'
