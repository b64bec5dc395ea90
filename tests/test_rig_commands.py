"""What goes wrong behind the front door, and the frame's commands: `pytest tests/test_rig_commands.py`."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import rig.cli
from rig import doctor
from rig.cli import main
from rig.errors import RigError, WrongUse
from support.front_door import door


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/model.gguf"),
            1,
            "disk is full while writing /x/model",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "pip install -c constraints.txt -e '.[",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/etc/shadow"),
            1,
            "/etc/shadow: Permission denied",
        ),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (RigError("Do this."), 1, "Error: Do this."),
        (WrongUse("Say that."), 2, "Error: Say that."),
    ],
)
def test_what_goes_wrong_ends_in_a_sentence(
    elsewhere: Path, raised: BaseException, code: int, says: str
) -> None:
    @click.command()
    def fail() -> None:
        """Fail."""
        raise raised

    result = CliRunner().invoke(door(fail), ["fail"])
    assert result.exit_code == code
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(elsewhere: Path) -> None:
    @click.command()
    def fail() -> None:
        """Fail."""
        raise ModuleNotFoundError("No module named 'rig.nowhere'", name="rig.nowhere")

    assert isinstance(CliRunner().invoke(door(fail), ["fail"]).exception, ModuleNotFoundError)


def test_doctor_looks_and_answers_as_json() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    found = {item["what"]: item["state"] for item in json.loads(result.stdout)}
    assert found["python"] == "ok"
    assert set(found) >= {"disk", "processor", "torch", "llama.cpp", "configuration", "room train"}
    assert "broken" not in found.values()


def test_doctor_s_advice_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    advice = doctor.INSTALL.format("train")
    doctor.print_findings([doctor.Finding("room train", doctor.ABSENT, "lacks torch", advice)])
    assert advice in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(shell: str) -> None:
    assert "_RIG_COMPLETE" in CliRunner().invoke(main, ["completion", shell]).output


def test_help_lists_every_room_with_its_commands() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    for room, commands in rig.cli.ROOMS.items():
        assert f"{room.capitalize()}:" in output or not commands
