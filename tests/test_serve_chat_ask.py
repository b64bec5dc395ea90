"""`rig ask`, and the log of what was asked: `pytest tests/test_serve_chat_ask.py`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import rig.cli
from rig.model.reply_format import TAUGHT
from serve.chat import ask, history
from serve.chat.printer import AnswerPrinter
from support.scripted_http import Say, ScriptedServer, delta, events
from support.serve_shell import RIG, run, started, thinking, thinking_server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with thinking_server() as scripted:
        yield scripted


# ---------------------------------------------------------------------------------------------
# rig ask


def test_stdout_carries_the_answer_and_nothing_else(server: ScriptedServer) -> None:
    done = run("ask", "--url", server.url, "What is", "2+2?")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "4\n", "")
    assert server.asked[0]["messages"] == [
        {"role": "system", "content": TAUGHT.system_prompt},
        {"role": "user", "content": "What is 2+2?"},
    ]


def test_stdin_is_added_below_the_prompt(server: ScriptedServer) -> None:
    run("ask", "--url", server.url, "--system", "", "Explain:", stdin="error 17\n")
    assert server.asked[0]["messages"] == [
        {"role": "system", "content": ""},  # the server would put in the taught one
        {"role": "user", "content": "Explain:\n\nerror 17"},
    ]


@pytest.mark.parametrize("words", [[], ["-"]])
def test_stdin_alone_is_a_question_too(server: ScriptedServer, words: list[str]) -> None:
    assert run("ask", "--url", server.url, *words, stdin="2+2?\n").stdout == "4\n"
    assert server.asked[0]["messages"][-1]["content"] == "2+2?"


def test_nothing_to_ask_is_wrong_use(server: ScriptedServer) -> None:
    done = run("ask", "--url", server.url)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "rig ask 'What is GGUF?'" in done.stderr


def test_the_thought_is_shown_on_stderr_when_asked_for(server: ScriptedServer) -> None:
    done = run("ask", "--url", server.url, "--show-thinking", "--stats", "2+2?")
    assert done.stdout == "4\n"
    assert "2+2 is 4" in done.stderr
    assert "9 tokens read, 5 written" in done.stderr
    assert "\x1b" not in done.stderr


def test_json_is_one_stable_object(server: ScriptedServer) -> None:
    found = json.loads(run("ask", "--url", server.url, "--json", "2+2?").stdout)
    assert set(found) == {
        "answer", "thought", "data", "finish", "model", "prompt_tokens", "completion_tokens",
        "seconds", "timings",
    }  # fmt: skip
    assert (found["answer"], found["thought"], found["finish"]) == ("4", "2+2 is 4", "stop")


def test_only_the_options_that_are_given_are_sent(server: ScriptedServer) -> None:
    run(
        "ask",
        "--url",
        server.url,
        "--temperature",
        "0",
        "--seed",
        "7",
        "--top-k",
        "5",
        "--stop",
        "a",
        "x",
    )
    sent = server.asked[0]
    assert {key: sent[key] for key in ("temperature", "seed", "top_k", "stop")} == {
        "temperature": 0, "seed": 7, "top_k": 5, "stop": ["a"]
    }  # fmt: skip
    assert not {"top_p", "min_p", "max_tokens", "show_thinking", "log"} & set(sent)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("say", "code", "stdout", "stderr"),
    [
        (thinking("", '{"n": 4}'), 0, '{"n": 4}\n', ""),
        (thinking("", '{"n":', "length"), 1, "", "cut off after 5 tokens: raise --max-tokens"),
        (thinking("", "four"), 1, "", "its server ignores the schema"),
    ],
)
def test_a_schema_is_answered_in_json_or_not_at_all(
    server: ScriptedServer, tmp_path: Path, say: Say, code: int, stdout: str, stderr: str
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    server.will_chat(say)
    done = run("ask", "--url", server.url, "--schema", str(tmp_path / "schema.json"), "2+2?")
    assert (done.exit_code, done.stdout) == (code, stdout)
    assert stderr in done.stderr
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(("text", "says"), [("{", "not JSON"), ("[]", "must be an object")])
def test_a_damaged_schema_is_wrong_use(
    server: ScriptedServer, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "schema.json").write_text(text)
    done = run("ask", "--url", server.url, "--schema", str(tmp_path / "schema.json"), "2+2?")
    assert done.exit_code == 2
    assert says in done.stderr
    assert server.asked == []


def test_a_cut_answer_is_said_to_be_cut(server: ScriptedServer) -> None:
    server.will_chat(thinking("", "On and o", "length"))
    done = run("ask", "--url", server.url, "Go on")
    assert (done.exit_code, done.stdout) == (0, "On and o\n")
    assert "Cut off after 5 tokens" in done.stderr


@pytest.mark.parametrize(
    ("say", "says"),
    [
        (Say({"error": {"message": "queue full"}}, 429), "busy: queue full"),
        (Say({"error": {"message": "9000 tokens exceed the context of 4096"}}, 400), "9000 tokens"),
        (Say(events(delta("Hal"), done=False), cut=True), "broke off"),
    ],
)
def test_what_goes_wrong_is_one_sentence(server: ScriptedServer, say: Say, says: str) -> None:
    server.will_chat(say)
    done = run("ask", "--url", server.url, "x")
    assert done.exit_code == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_it_tells_the_server_and_keeps_what_came(server: ScriptedServer) -> None:
    server.will_chat(Say(events(*[delta(f"{n} ") for n in range(400)]), pause=0.05))
    process = started("ask", "--url", server.url, "count")
    assert process.stdout is not None
    assert process.stdout.read(1) == "0", "it comes while it is made"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    assert server.gone.wait(10)
    (kept,) = history.last_calls(5)
    assert kept.answer.startswith("0 ")
    assert kept.finish is None


def test_a_reader_that_leaves_early_is_no_traceback(server: ScriptedServer) -> None:
    server.will_chat(Say(events(*[delta("word " * 200) for _ in range(100)])))
    line = f"{' '.join(RIG)} ask --url {server.url} go < /dev/null | head -c 4"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "word"
    assert "Traceback" not in done.stderr


def test_an_open_pipe_that_says_nothing_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(ask, "PATIENCE", 0.05)
    threading.Timer(0.5, os.close, [writing]).start()
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert ask.read_question(("hello",)) == "hello"
    assert "Waiting for text on stdin" in capsys.readouterr().err


def test_what_a_model_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jred\x9b31m\r\nnext\ttab 🎴 é"
    screen = AnswerPrinter(thinking=True)
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign]
    screen.print_piece(evil, evil)
    screen.finish_answer()
    shown = capsys.readouterr()
    assert shown.out == "]0;owned[2Jred31m\nnext\ttab 🎴 é\n"
    assert not set("\x1b\x07\x9b\r") & set(re.sub(r"\x1b\[[\d;]*m", "", shown.err))


# ---------------------------------------------------------------------------------------------
# the log


def test_calls_are_logged_and_shown(server: ScriptedServer) -> None:
    run("ask", "--url", server.url, "--seed", "3", "What is 2+2?")
    (kept,) = history.last_calls(5)
    assert (kept.command, kept.model, kept.answer.strip(), kept.thought) == (
        "ask",
        "toy",
        "4",
        "2+2 is 4",
    )
    assert kept.options == {"seed": 3}
    assert history.log_path().stat().st_mode & 0o077 == 0
    shown = run("logs")
    assert "> What is 2+2?" in shown.stdout
    assert json.loads(run("logs", "--json").stdout)[0]["messages"][1]["content"] == "What is 2+2?"


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_the_log_has_an_off_switch(server: ScriptedServer, elsewhere: Path, how: str) -> None:
    flags = ["--no-log"] if how == "flag" else []
    environment = {"RIG_ASK_LOG": "0"} if how == "environment" else {}
    if how == "file":
        (elsewhere / "rig.toml").write_text("[ask]\nlog = false\n")
    assert run("ask", "--url", server.url, *flags, "x", **environment).stdout == "4\n"
    assert not history.log_path().exists()


def a_call(answer: str) -> history.LoggedCall:
    asked = [{"role": "user", "content": "hi"}]
    return history.LoggedCall("ask", "c", "m", "u", asked, "", answer, "stop", {}, 1, 1, 0.1)


def test_the_log_is_searched_word_for_word() -> None:
    for answer in ("100 % sure", "100 percent", "a_b", "a-b"):
        history.record_call(a_call(answer))
    assert [call.answer for call in history.last_calls(9, "100 %")] == ["100 % sure"]
    assert [call.answer for call in history.last_calls(9, "a_b")] == ["a_b"]
    assert [call.answer for call in history.last_calls(2)] == ["a_b", "a-b"]


def test_the_log_is_forgotten_on_the_disk_too() -> None:
    history.record_call(a_call("a secret that nobody shall find again"))
    result = CliRunner().invoke(rig.cli.main, ["logs", "--clear"])
    assert "1 calls forgotten" in result.stderr
    assert history.last_calls(9) == []
    assert b"a secret" not in history.log_path().read_bytes()


def test_a_log_that_cannot_be_written_does_not_cost_the_answer(server: ScriptedServer) -> None:
    history.log_path().parent.mkdir(parents=True)
    history.log_path().write_bytes(b"this is no database at all, and long enough to be read as one")
    done = run("ask", "--url", server.url, "x")
    assert (done.exit_code, done.stdout) == (0, "4\n")
    assert "not logged" in done.stderr


def test_many_shells_log_at_the_same_time(server: ScriptedServer) -> None:
    processes = [started("ask", "--url", server.url, str(n)) for n in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["4\n"] * 3
    assert {call.messages[-1]["content"] for call in history.last_calls(9)} == set("012")
