"""Files that appear whole or not at all, and a run's folder: `pytest tests/test_rig_runs.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rig.atomic import atomic_file, write_text
from rig.errors import RigError, WrongUse
from rig.runs import Run


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("new and hal", "utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    code = (
        "import os, sys, pathlib; from rig.atomic import atomic_file\n"
        "with atomic_file(pathlib.Path(sys.argv[1])) as t: t.write_text('new'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert path.read_text("utf-8") == "old"


def test_a_run_remembers_what_was_noted(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", recipe="[model]\n", base="toy")
    run.update_record("training", figures={"a": 1})
    run.update_record(figures={"b": 2})
    again = Run.open(tmp_path / "r")
    assert (again.state, again.base_model, again.record["figures"]) == (
        "training",
        "toy",
        {"a": 1, "b": 2},
    )


def test_a_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", recipe="", base="toy")
    with pytest.raises(WrongUse, match="already holds a run"):
        Run.create(tmp_path / "r", recipe="", base="toy")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"state": "dreaming"}'])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, "utf-8")
    with pytest.raises((RigError, WrongUse)) as caught:
        Run.open(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_a_run_is_worked_on_by_one_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", recipe="", base="toy")
    code = (
        "import sys, pathlib; from rig.runs import Run\n"
        "with Run.open(pathlib.Path(sys.argv[1])).hold_lock(): pass"
    )
    with run.hold_lock():
        done = subprocess.run(
            [sys.executable, "-c", code, str(run.path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "Another process" in done.stderr
