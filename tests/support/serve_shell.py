"""`rig ask`, `rig chat` and `rig serve` as a person types them, and the servers that they talk to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from click.testing import CliRunner, Result

import rig.cli
from rig.model.reply_format import TAUGHT
from rig.server import connect, running_servers
from support.scripted_http import Say, ScriptedServer, delta, events

RIG = [sys.executable, "-P", "-m", "rig"]


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


def thinking(thought: str, answer: str, finish: str = "stop") -> Say:
    usage = {"model": "toy", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    return Say(events(delta(reasoning_content=thought), delta(answer), delta(finish=finish), usage))


@contextlib.contextmanager
def thinking_server() -> Iterator[ScriptedServer]:
    """A server that thinks, then says `4`."""
    with ScriptedServer() as scripted:
        card = {"id": "toy", "meta": {"n_ctx": 4096}, "rig": TAUGHT.to_metadata()}
        scripted.will_say("/v1/models", Say({"data": [card]}))
        scripted.will_chat(thinking("2+2 is 4", "\n4\n"))
        yield scripted


def said(server: ScriptedServer) -> list[str]:
    """The turns of the last conversation that was sent."""
    return [m["content"] for m in server.asked[-1]["messages"] if m["role"] != "system"]


@contextlib.contextmanager
def named_model(model: Path, here: Path) -> Iterator[Path]:
    """The model as the one that rig.toml names; what serves it in the end is asked to leave."""
    (here / "rig.toml").write_text(f'[model]\nname = "{model}"\nidle = 60\n')
    yield model
    for found in running_servers.live_servers():
        connect.stop_server(found)
    assert eventually(lambda: not running_servers.live_servers())
