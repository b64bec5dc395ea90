"""The frame: contract, run folder, files, configuration, front door: `pytest tests/test_frame.py`."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT

import rig.cli
from rig import doctor, validation
from rig.atomic import atomic_file, write_text
from rig.cli import RigGroup, main
from rig.errors import RigError, WrongUse
from rig.model.reply_format import PLAIN, TAUGHT, ReplyFormat, ReplySplitter
from rig.runs import Run

SAID = "<reasoning>\n3 < 4, so 4\n</reasoning>\n<answer>\n4\n</answer>\n"


@pytest.mark.parametrize("size", range(1, 12))
def test_a_stream_cut_anywhere_splits_as_the_whole_does(size: int) -> None:
    splitter = ReplySplitter(TAUGHT)
    pieces = [splitter.feed_text(SAID[i : i + size]) for i in range(0, len(SAID), size)]
    pieces.append(splitter.flush_text())
    assert "".join(t for t, _ in pieces).strip() == "3 < 4, so 4"
    assert "".join(a for _, a in pieces).strip() == "4"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("", "", ""),
        ("no tags at all", "", "no tags at all"),
        ("<reasoning>cut off in the mid", "cut off in the mid", ""),
        ("<reasoning>a</reasoning>no answer tag", "a", "no answer tag"),
        ("a < b and <b>bold</b>", "", "a < b and <b>bold</b>"),
        ("ends with half a tag <answ", "", "ends with half a tag <answ"),
    ],
)
def test_odd_replies_lose_no_text(text: str, thought: str, answer: str) -> None:
    assert TAUGHT.split_reply(text) == (thought, answer)


def test_a_plain_model_is_left_alone() -> None:
    assert PLAIN.split_reply(SAID) == ("", SAID.strip())
    assert not PLAIN.matches_text(SAID)


def test_the_contract_travels_in_a_folder_and_in_metadata(tmp_path: Path) -> None:
    TAUGHT.save_to(tmp_path)
    assert (
        ReplyFormat.from_folder(tmp_path)
        == TAUGHT
        == ReplyFormat.from_metadata(TAUGHT.to_metadata())
    )
    assert ReplyFormat.from_folder(tmp_path / "nowhere") == PLAIN


def test_a_damaged_contract_is_named(tmp_path: Path) -> None:
    (tmp_path / "reply_format.json").write_text('{"reasoning_open": ', "utf-8")
    with pytest.raises(RigError, match="damaged"):
        ReplyFormat.from_folder(tmp_path)


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


def door(*commands: click.Command) -> RigGroup:
    group = RigGroup("rig", context_settings={"auto_envvar_prefix": "RIG"})
    for command in commands:
        group.add_command(command)
    return group


@click.command()
@click.option("--port", default=1, help="A port.")
def listen(port: int) -> None:
    """Print the port."""
    click.echo(port)


def test_flag_beats_environment_beats_folder_beats_user(
    elsewhere: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def port(*arguments: str) -> str:
        return CliRunner().invoke(door(listen), ["listen", *arguments]).output.strip()

    assert port() == "1"
    write_text(own_home / "config" / "rig.toml", "[listen]\nport = 2\n")
    assert port() == "2"
    write_text(elsewhere / "rig.toml", "[listen]\nport = 3\n")
    assert port() == "3"
    monkeypatch.setenv("RIG_LISTEN_PORT", "4")
    assert port() == "4"
    assert port("--port", "5") == "5"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[listn]\nport = 2\n", "did you mean 'listen'"),
        ("[listen]\nprot = 2\n", "did you mean 'port'"),
        ("listen = 2\n", "write [listen]"),
        ("[listen\n", "not valid TOML"),
    ],
)
def test_a_wrong_rig_toml_is_named_with_the_nearest(elsewhere: Path, toml: str, says: str) -> None:
    write_text(elsewhere / "rig.toml", toml)
    result = CliRunner().invoke(door(listen), ["listen"])
    assert result.exit_code == 2
    assert says in result.output


class Inner(validation.FrozenModel):
    learning_rate: float = 1.0


class Outer(validation.FrozenModel):
    grpo: Inner = Inner()
    many: tuple[Inner, ...] = ()
    size: int


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": 1, "grpo": {"learnin_rate": 1}}, "did you mean 'learning_rate'"),
        ({"size": 1, "many": [{"learning": 1}]}, "did you mean 'learning_rate'"),
        ({"size": 1, "grop": {}}, "did you mean 'grpo'"),
        ({}, "'size' is missing"),
        ({"size": "big"}, "not 'big'"),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, object], says: str) -> None:
    with pytest.raises(WrongUse) as caught:
        validation.validate_as(Outer, values, "recipe.toml")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


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


def test_config_shows_the_winner_and_its_source(elsewhere: Path, own_home: Path) -> None:
    write_text(own_home / "config" / "rig.toml", "[model]\nname = 'weak'\n")
    write_text(elsewhere / "rig.toml", "[model]\nname = 'strong'\n[outlets.x]\napi_key = 'abc'\n")
    rows = json.loads(CliRunner().invoke(main, ["config", "--json"]).stdout)
    found = {row["name"]: (row["value"], row["source"]) for row in rows}
    assert found["model.name"] == ("strong", "rig.toml")
    assert found["outlets.x.api_key"][0] == "(set, not shown)"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(shell: str) -> None:
    assert "_RIG_COMPLETE" in CliRunner().invoke(main, ["completion", shell]).output


def test_help_lists_every_room_with_its_commands() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    for room, commands in rig.cli.ROOMS.items():
        assert f"{room.capitalize()}:" in output or not commands
