"""The service that stays: `pytest tests/test_serve_service.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import needs

import rig.cli
from rig.systemd import quote_word
from serve.service.systemd import ServiceUnit
from support.serve_shell import eventually, named_model, run


@pytest.fixture
def served(toy_gguf: Path, elsewhere: Path) -> Iterator[Path]:
    with named_model(toy_gguf, elsewhere) as model:
        yield model


def test_the_status_shows_it_and_stop_ends_it(served: Path) -> None:
    assert "no server runs" in run("serve", "status").stdout
    assert run("serve", "stop").exit_code == 1
    run("ask", "hello")
    (row,) = json.loads(run("serve", "status", "--json").stdout)["servers"]
    assert row["model"] == str(served)
    assert "api_key" not in row
    assert "is leaving" in run("serve", "stop", str(served)).stderr
    assert eventually(lambda: not psutil.pid_exists(row["pid"]))


def lines(unit: str) -> dict[str, str]:
    return dict(row.split("=", 1) for row in unit.splitlines() if "=" in row and row[0] != "#")


def install(*words: str) -> Any:
    return CliRunner().invoke(rig.cli.main, ["serve", "install", *words])


def test_a_unit_is_told_watched_bounded_and_shut_in(toy_gguf: Path, elsewhere: Path) -> None:
    result = install(str(toy_gguf), "--port", "9001", "--print")
    assert result.exit_code == 0, result.output
    unit = lines(result.stdout)
    assert (unit["Type"], unit["WatchdogSec"], unit["NoNewPrivileges"]) == ("notify", "180", "yes")
    assert unit["ExecStart"].startswith(
        f"{sys.executable} -P -m rig serve {toy_gguf} --port 9001 --ctx "
    )
    assert 512 < int(unit["MemoryMax"].removesuffix("M")) < 4096
    assert unit["WorkingDirectory"] == str(elsewhere)
    assert unit["WantedBy"] == "default.target"


def test_what_would_fail_at_night_fails_now(toy_gguf: Path, elsewhere: Path) -> None:
    for words, says in (
        ([str(toy_gguf), "--prot", "1"], "No such option '--prot'"),
        ([str(toy_gguf), "--port", "x"], "'x' is not a valid integer"),
        (["nothing-here"], "no run, file or pulled model"),
        ([str(toy_gguf), "--ctx", "999999"], "was trained on"),
        ([str(toy_gguf), "--system"], "has a /tmp of its own"),
    ):
        result = install(*words, "--print")
        assert result.exit_code == 2, result.output
        assert says in result.stderr


def test_a_unit_is_written_shown_and_taken_away(
    toy_gguf: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(elsewhere / "config"))
    result = install(str(toy_gguf), "--name", "rig-test")
    path = elsewhere / "config/systemd/user/rig-test.service"
    assert (result.exit_code, result.stdout.strip()) == (0, str(path))
    assert "systemctl --user enable --now rig-test" in re.sub(r"\s+", " ", result.stderr)
    assert str(path) in run("serve", "status", "--name", "rig-test").stdout.replace("\n", "")
    assert run("serve", "uninstall", "--name", "rig-test").exit_code == 0
    assert not path.exists()
    assert run("serve", "uninstall", "--name", "rig-test").exit_code == 1


def test_a_key_is_handed_over_by_systemd_and_not_on_the_command_line(
    toy_gguf: Path, elsewhere: Path
) -> None:
    (elsewhere / "key").write_text("s3cret")
    unit = install(str(toy_gguf), "--host", "0.0.0.0", "--api-key-file", "key", "--print").stdout
    assert f"LoadCredential=api-key:{elsewhere / 'key'}" in unit
    assert "--api-key-file %d/api-key" in unit
    assert "s3cret" not in unit


@needs("systemd-analyze")
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("user", ["daemon", None])
def test_systemd_finds_nothing_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool, user: str | None
) -> None:
    odd = '/srv/my "50 %" model $1.gguf'
    command = (
        sys.executable,
        "-P",
        "-m",
        "rig",
        "serve",
        odd,
        "--mlock",
        "--api-key-file",
        "%d/api-key",
    )
    unit = ServiceUnit("rig-serve", "a 50 % model", command, Path("/"), 2**32, system, user,
                key_file=Path("/etc/hostname"))  # fmt: skip
    path = tmp_path / "rig-serve.service"
    path.write_text(unit.unit_text())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    scope = "--system" if system else "--user"
    done = subprocess.run(["systemd-analyze", "verify", scope, str(path)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    ours = [row for row in done.stderr.splitlines() if "rig-serve" in row]
    assert ours == []
    assert done.returncode == 0, done.stderr
    assert quote_word(odd) in path.read_text()


@needs("systemd-analyze")
def test_a_system_unit_is_shut_in_well(tmp_path: Path) -> None:
    unit = ServiceUnit("rig-serve", "m", (sys.executable,), Path("/"), 2**32, system=True)
    path = tmp_path / "rig-serve.service"
    path.write_text(unit.unit_text())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    exposure = re.search(r"Overall exposure level for rig-serve.service: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) < 2.0


@pytest.mark.parametrize("word", ["install", "uninstall", "status", "stop"])
def test_the_words_beside_serve_explain_themselves(word: str) -> None:
    result = CliRunner().invoke(rig.cli.main, ["serve", word, "--help"])
    assert result.exit_code == 0
    assert (
        f"rig serve {word}" in result.stdout.replace("main", "rig")
        or f"serve {word}" in result.stdout
    )
    assert word in CliRunner().invoke(rig.cli.main, ["serve", "--help"]).stdout
