"""`rig chat`, from a pipe and at a terminal: `pytest tests/test_serve_chat.py`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import paths
from rig.errors import RigError
from rig.server.client import ModelClient
from serve.chat import history
from serve.chat.conversation import Conversation, ConversationEnded
from support.scripted_http import Say, ScriptedServer, delta, events
from support.serve_shell import RIG, eventually, run, said, thinking, thinking_server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with thinking_server() as scripted:
        yield scripted


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
