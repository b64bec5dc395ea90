"""What a person types at the model, and the service that stays: `pytest tests/test_serve_shell.py`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from conftest import needs

import rig.cli
from rig import paths
from rig.errors import RigError
from rig.model import gguf
from rig.model.reply_format import TAUGHT
from rig.server import connect, running_servers, sd_notify
from rig.server.client import ModelClient
from rig.systemd import quote_word
from serve.bench import bench
from serve.chat import ask, history
from serve.chat.conversation import Conversation, ConversationEnded
from serve.chat.printer import AnswerPrinter
from serve.service.systemd import ServiceUnit
from support.scripted_http import Say, ScriptedServer, delta, events

RIG = [sys.executable, "-P", "-m", "rig"]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that thinks, then says `4`."""
    with ScriptedServer() as scripted:
        card = {"id": "toy", "meta": {"n_ctx": 4096}, "rig": TAUGHT.to_metadata()}
        scripted.will_say("/v1/models", Say({"data": [card]}))
        scripted.will_chat(thinking("2+2 is 4", "\n4\n"))
        yield scripted


def thinking(thought: str, answer: str, finish: str = "stop") -> Say:
    usage = {"model": "toy", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    return Say(events(delta(reasoning_content=thought), delta(answer), delta(finish=finish), usage))


def run(*words: str, stdin: str = "", **more: str) -> Result:
    """The command in this process: quick, and the same code from the front door on."""
    return CliRunner().invoke(rig.cli.main, words, input=stdin, env=more)


def started(*words: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with nothing on stdin."""
    return subprocess.Popen(
        [*RIG, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def eventually(true: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


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


# ---------------------------------------------------------------------------------------------
# rig chat


def test_from_a_pipe_each_line_is_a_turn_and_stdout_gets_the_answers(
    server: ScriptedServer,
) -> None:
    server.will_chat(thinking("hm", "one"), thinking("", "two"))
    done = run("chat", "--url", server.url, stdin="first\n\nsecond\n/quit\nthird\n")
    assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
    assert [m["content"] for m in server.asked[1]["messages"][1:]] == ["first", "one", "second"]
    assert len({call.conversation for call in history.last_calls(9)}) == 1
    assert [call.messages[-1]["content"] for call in history.last_calls(9)] == ["first", "second"]


def test_a_line_that_cannot_be_done_is_said_and_counts(server: ScriptedServer) -> None:
    done = run("chat", "--url", server.url, stdin="/hlep\nfirst\n")
    assert (done.exit_code, done.stdout) == (1, "4\n")
    assert "no /hlep; did you mean 'help'?" in done.stderr


@pytest.fixture
def talk(server: ScriptedServer) -> Iterator[Conversation]:
    talk = Conversation(lambda: ModelClient(server.url), {}, system=None, thinking=False, log=False)
    yield talk
    talk.client.close()


def said(server: ScriptedServer) -> list[str]:
    return [m["content"] for m in server.asked[-1]["messages"] if m["role"] != "system"]


def test_turns_are_forgotten_repeated_and_begun_anew(
    server: ScriptedServer, talk: Conversation
) -> None:
    talk.handle_line("first")
    talk.handle_line("second")
    talk.handle_line("/undo")
    talk.handle_line("third")
    assert said(server) == ["first", "4", "third"]
    talk.handle_line("/retry")
    assert said(server) == ["first", "4", "third"]
    talk.handle_line("/new")
    talk.handle_line("fourth")
    assert said(server) == ["fourth"]
    for command in ("/new", "/undo"):
        with contextlib.suppress(RigError):
            talk.handle_line(command)
    with pytest.raises(RigError, match="Nothing has been said"):
        talk.handle_line("/retry")
    with pytest.raises(ConversationEnded):
        talk.handle_line("/quit")


def test_the_system_prompt_and_the_settings_are_changed(
    server: ScriptedServer, talk: Conversation
) -> None:
    talk.handle_line("/system Be brief.")
    talk.handle_line("/set temperature 0.5")
    talk.handle_line("/set max_tokens 9")
    talk.handle_line("hi")
    sent = server.asked[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 9)
    talk.handle_line("/set temperature")
    talk.handle_line("/system -")
    talk.handle_line("hi")
    assert "temperature" not in server.asked[-1]
    assert server.asked[-1]["messages"][0] == {"role": "system", "content": ""}
    with pytest.raises(RigError, match="'temprature'; did you mean 'temperature'"):
        talk.handle_line("/set temprature 1")
    with pytest.raises(RigError, match="a number, not 'hot'"):
        talk.handle_line("/set temperature hot")


def test_files_go_in_and_conversations_go_out(
    server: ScriptedServer, talk: Conversation, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("apples: 3\n")
    talk.handle_line(f"/file {tmp_path / 'notes.txt'}")
    talk.handle_line("How many?")
    assert said(server) == ["notes.txt:\napples: 3\n\nHow many?"]
    talk.handle_line("And now?")
    assert said(server)[-1] == "And now?", "it goes along once"
    talk.handle_line(f"/save {tmp_path / 'talk.json'}")
    assert [m["role"] for m in json.loads((tmp_path / "talk.json").read_text())] == [
        "user",
        "assistant",
    ] * 2
    talk.handle_line(f"/save {tmp_path / 'talk.md'}")
    assert "**assistant**\n\n4\n" in (tmp_path / "talk.md").read_text()
    for wrong, says in (
        ("/file /no/such", "No such file"),
        ("/save", "Say where"),
        ("/file /bin/ls", "text"),
    ):
        with pytest.raises(RigError, match=says):
            talk.handle_line(wrong)


def test_a_full_context_is_said_and_nothing_is_cut(
    server: ScriptedServer, talk: Conversation
) -> None:
    talk.handle_line("first")
    server.will_chat(Say({"error": {"message": "5000 tokens exceed the context of 4096."}}, 400))
    with pytest.raises(RigError, match=r"5000 tokens.*/new begins anew"):
        talk.handle_line("second")
    assert [m["content"] for m in talk.messages] == ["first", "4"]


def test_a_server_that_left_meanwhile_is_found_or_started_again(server: ScriptedServer) -> None:
    with ScriptedServer() as first:
        first.will_chat(thinking("", "from the first"))
        urls = [first.url, server.url]
        talk = Conversation(
            lambda: ModelClient(urls.pop(0)), {}, system="", thinking=False, log=False
        )
        talk.handle_line("hello")
    assert eventually(lambda: not talk.client.is_ready())
    talk.handle_line("still there?")
    assert said(server) == ["hello", "from the first", "still there?"]
    talk.client.close()


class Terminal:
    """`rig chat` at a real (pseudo) terminal."""

    def __init__(self, *words: str, **more: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm", "NO_COLOR": "1", **more})
            os.execv(RIG[0], [*RIG, *words])
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 20) -> bool:
        deadline = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 65536).decode("utf-8", "replace")
                except OSError:  # it has left
                    break
                if "\x1b[6n" in self.shown:  # prompt_toolkit asks where the cursor is
                    self.shown = self.shown.replace("\x1b[6n", "")
                    os.write(self.fd, b"\x1b[1;1R")
        return text in self.shown

    def type(self, keys: str) -> None:
        self.shown = ""
        os.write(self.fd, keys.encode())

    def code(self) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.wait_for("\0never", 0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it does not leave: {self.shown!r}")


def test_at_a_terminal_it_edits_remembers_stops_and_leaves(server: ScriptedServer) -> None:
    terminal = Terminal("chat", "--url", server.url, "--system", "")
    server.will_chat(thinking("", "good day"))
    assert terminal.wait_for("/help")
    terminal.type("helo\x7flo\r")  # a typing error, taken back
    assert terminal.wait_for("good day")
    assert said(server) == ["hello"]
    terminal.type("one\x1b\rtwo\r")  # Alt-Enter begins a new line
    assert eventually(lambda: said(server)[-1] == "one\ntwo")
    server.will_chat(Say(events(*[delta(f"n{n} ") for n in range(400)]), pause=0.05))
    terminal.type("count\r")
    assert terminal.wait_for("n3")
    terminal.type("\x03")
    assert terminal.wait_for("(stopped)")
    assert server.gone.wait(10)
    server.will_chat(thinking("", "fine"))
    terminal.type("\x1b[A\r")  # the arrow brings the last line back
    assert terminal.wait_for("fine")
    assert terminal.wait_for("| /help")
    assert said(server)[-1] == "count"
    assert said(server)[-2].startswith("n0 n1"), "what had come is kept"
    terminal.type("\x04")
    assert terminal.code() == 0
    assert (paths.state_dir() / "chat_history").stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------------------------------------
# the real thing


@pytest.fixture
def served(toy_gguf: Path, elsewhere: Path) -> Iterator[Path]:
    """The toy model as the one that rig.toml names; what serves it in the end is asked to leave."""
    (elsewhere / "rig.toml").write_text(f'[model]\nname = "{toy_gguf}"\nidle = 60\n')
    yield toy_gguf
    for found in running_servers.live_servers():
        connect.stop_server(found)
    assert eventually(lambda: not running_servers.live_servers())


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


def test_the_status_shows_it_and_stop_ends_it(served: Path) -> None:
    assert "no server runs" in run("serve", "status").stdout
    assert run("serve", "stop").exit_code == 1
    run("ask", "hello")
    (row,) = json.loads(run("serve", "status", "--json").stdout)["servers"]
    assert row["model"] == str(served)
    assert "api_key" not in row
    assert "is leaving" in run("serve", "stop", str(served)).stderr
    assert eventually(lambda: not psutil.pid_exists(row["pid"]))


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


def test_the_bench_prints_one_object_and_settings_that_rig_serve_takes(served: Path) -> None:
    done = run("bench", str(served), "--rounds", "1", "--tokens", "64", "--threads", "1", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prefill"] > 0 < found["decode"]
    assert found["bound"] == pytest.approx(found["bandwidth"] / found["bytes_per_token"])
    assert found["share_of_bound"] == pytest.approx(found["decode"] / found["bound"])
    assert [row["batch"] for row in found["batch"]] == [64, 128, 256, 512]
    assert {row["cache"] for row in found["cache"]} == {"f16", "q8_0"}
    assert found["prefix"]["bytes"] > 0
    words = found["command"].split()[2:]
    with rig.cli.main.commands["serve"].make_context("serve", words) as context:
        assert context.params["batch"] == found["settings"]["batch"]
    assert "tokens/s" in "\n".join(bench.format_report(found))


def rounds(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"prefill": read, "decode": write} for read, write in pairs]


@pytest.mark.parametrize(
    ("four", "chosen"),
    [
        (rounds((100, 12), (100, 12), (100, 12)), 4),
        (rounds((100, 12), (100, 12), (100, 9)), 2),  # once slower: that is no settled matter
        (rounds((101, 10), (101, 10), (101, 10)), 2),  # too little to be more than noise
        (rounds((500, 9.9), (500, 9.9), (500, 9.9)), 4),  # reading weighs too
    ],
)
def test_only_what_is_better_each_time_is_recommended(
    four: list[dict[str, float]], chosen: int
) -> None:
    usual = rounds((100, 10), (100, 10), (100, 10))
    report = {
        "threads_usual": 2,
        "threads": [{"threads": 2, "rounds": usual}, {"threads": 4, "rounds": four}],
        "batch": [{"batch": 256, "rounds": usual}],
        "cache": [{"cache": "f16", "rounds": usual}],
    }
    assert bench.choose_settings(report) == {"threads": chosen, "batch": 256, "cache_type": "f16"}


def test_what_each_token_reads_is_all_weights_but_the_unused_rows(toy_gguf: Path) -> None:
    found = gguf.read_header(toy_gguf)
    sizes = {tensor.name: tensor.bytes for tensor in found.tensors}
    skipped = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    assert bench.bytes_per_token(found) == sum(sizes.values()) - skipped


# ---------------------------------------------------------------------------------------------
# systemd


def test_a_datagram_reaches_a_named_and_an_abstract_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for address in (str(tmp_path / "socket"), f"@rig-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.bind("\0" + address[1:] if address[0] == "@" else address)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            assert sd_notify.notify_ready("serving")
            assert line.recv(99) == b"READY=1\nSTATUS=serving"
            assert sd_notify.extend_timeout(1.5)
            assert line.recv(99) == b"EXTEND_TIMEOUT_USEC=1500000"
    assert not sd_notify.ping_watchdog(), "systemd is gone: nothing to do about it"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sd_notify.notify_ready("")


@pytest.mark.parametrize(
    ("period", "owner", "seconds"),
    [
        ("60000000", "", 30.0),
        ("60000000", "1", None),  # meant for another process
        ("0", "", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog_is_pinged_twice_as_often_as_needed(
    monkeypatch: pytest.MonkeyPatch, period: str, owner: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", owner)
    assert sd_notify.watchdog_seconds() == seconds


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


def test_the_table_serve_of_rig_toml_reaches_the_server(toy_gguf: Path, elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text("[serve]\nprot = 1\n")
    done = run("serve", str(toy_gguf))
    assert done.exit_code == 2
    assert "[serve] has no 'prot'; did you mean 'port'?" in done.stderr
