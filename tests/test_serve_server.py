"""The life of one `rig serve` that a shell started: `pytest tests/test_serve_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rig.server import connect, running_servers
from rig.server.client import ModelClient
from serve.chat import history
from support.serve_shell import RIG, eventually, named_model, run, started


@pytest.fixture
def served(toy_gguf: Path, elsewhere: Path) -> Iterator[Path]:
    with named_model(toy_gguf, elsewhere) as model:
        yield model


def test_a_shell_starts_the_server_and_it_leaves_by_itself(served: Path, elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text(f'[model]\nname = "{served}"\nidle = 3\n')
    first = run("ask", "--temperature", "0", "Who are you?")
    assert first.exit_code == 0, first.stderr
    assert "toy" in first.stdout
    assert "Loading" in first.stderr
    (found,) = running_servers.live_servers()
    workers = psutil.Process(found["pid"]).children(recursive=True)
    second = run("ask", "--temperature", "0", "--model", str(served), "Who are you?")
    assert second.stdout == first.stdout
    assert "Loading" not in second.stderr
    assert eventually(lambda: not running_servers.live_servers())
    assert eventually(lambda: not any(p.is_running() for p in workers)), "the memory is given back"


def test_two_shells_at_the_same_moment_share_one_server(served: Path) -> None:
    processes = [started("ask", "--temperature", "0", "Who are you?") for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert len({out for out, _ in answers}) == 1
    assert all(process.returncode == 0 for process in processes), answers
    assert len(running_servers.live_servers()) == 1
    assert sum("Loading" in err for _, err in answers) == 1


def test_a_model_that_cannot_be_loaded_says_so_at_the_shell(served: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(served.read_bytes()[:100_000])
    done = run("ask", "--model", str(half), "x")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is not all there" in done.stderr.splitlines()[-1]


def test_the_toy_model_answers_in_the_form_it_is_asked_for(served: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"post": {"type": "string", "maxLength": 60}},
              "required": ["post"], "additionalProperties": False}  # fmt: skip
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    done = run("ask", "--schema", str(tmp_path / "schema.json"), "--seed", "1", "Name: Moss Golem")
    assert set(json.loads(done.stdout)) == {"post"}, done.stderr


def test_no_system_prompt_means_none_and_not_the_taught_one(served: Path) -> None:
    for words in (["--system", ""], []):
        run("ask", *words, "--max-tokens", "1", "hello")
    without, taught = (call.prompt_tokens for call in history.last_calls(2))
    with connect.connect_model() as client:
        extra = client.count_text_tokens(client.reply_format.system_prompt)
    assert extra
    assert taught - without > extra, "the prompt and its header"


def test_idle_it_gives_the_memory_back_and_returns_when_asked(served: Path) -> None:
    process = subprocess.Popen(
        [*RIG, "serve", str(served), "--port", "0", "--idle-unload", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert eventually(lambda: connect.find_running_server(str(served)) is not None)
        me = psutil.Process(process.pid)
        held = sum(p.memory_info().rss for p in [me, *me.children(recursive=True)])
        assert eventually(lambda: not me.children(recursive=True))
        assert me.memory_info().rss < held / 2
        assert connect.find_running_server(str(served)) is not None, "it still answers"
        assert "toy" in run("ask", "--temperature", "0", "Who are you?").stdout
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_whoever_comes_at_the_last_moment_is_answered_and_it_stays(served: Path) -> None:
    found = connect.start_server(str(served), idle=2, timeout=60)  # longer than the last call
    with ModelClient(found["url"]) as client:
        assert eventually(lambda: not running_servers.live_servers())
        assert client.chat([{"role": "user", "content": "Who are you?"}], max_tokens=3).text
    assert eventually(lambda: running_servers.live_servers() == [found])
    assert eventually(lambda: not psutil.pid_exists(found["pid"])), "and leaves when nobody comes"


def test_systemd_is_told_and_pinged_only_while_the_engine_answers(
    served: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(20)
        process = subprocess.Popen(
            [*RIG, "serve", str(served), "--port", "0"], stderr=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
        )  # fmt: skip
        try:
            heard = b""
            while b"READY=1" not in heard:
                heard += line.recv(4096)
            assert b"STATUS=serving" in heard
            assert connect.find_running_server(str(served)) is not None, (
                "ready means that it answers"
            )
            for _ in range(3):
                assert line.recv(4096) == b"WATCHDOG=1"
            (worker,) = [
                p
                for p in psutil.Process(process.pid).children()
                if "resource_tracker" not in str(p.cmdline())
            ]
            worker.suspend()
            time.sleep(0.4)
            line.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                for _ in range(2):  # what was already on its way
                    line.recv(4096)
            line.settimeout(1)
            with pytest.raises(TimeoutError):
                line.recv(4096)
            worker.resume()
            line.settimeout(20)
            assert line.recv(4096) == b"WATCHDOG=1"
        finally:
            process.terminate()
            heard = b""
            with contextlib.suppress(TimeoutError):
                while b"STOPPING=1" not in heard:
                    heard = line.recv(4096)
            process.wait(20)
        assert heard == b"STOPPING=1"


def test_the_table_serve_of_rig_toml_reaches_the_server(toy_gguf: Path, elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text("[serve]\nprot = 1\n")
    done = run("serve", str(toy_gguf))
    assert done.exit_code == 2
    assert "[serve] has no 'prot'; did you mean 'port'?" in done.stderr
