"""A conversation: what was said, what a line means, and how the next answer comes. Knows no keyboard.

A line that begins with `/` is a command to rig, everything else is said to the model. What is sent is
always the whole conversation: when it no longer fits the context that is said, and nothing is cut.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rig.atomic import write_text
from rig.errors import RigError, suggest_name
from rig.prompts import Message
from rig.server.client import ChatCompletion, ContextOverflow, ModelClient
from serve.chat import history
from serve.chat.ask import call, head
from serve.chat.printer import Screen, figures

SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
}


class Left(Exception):
    """The person wants to go."""


class Talk:
    """One conversation with the server that `connect` finds; it may come and go meanwhile."""

    def __init__(
        self,
        connect: Callable[[], ModelClient],
        options: dict[str, Any],
        *,
        system: str | None,
        thinking: bool,
        log: bool,
    ) -> None:
        self._connect = connect
        self.client = connect()
        self.options = options
        self.system = system
        self.thinking = thinking
        self.log = log
        self.said: list[Message] = []
        self.last = ChatCompletion()
        self._conversation = uuid.uuid4().hex
        self._logged = 0
        self._attached = ""

    # -----------------------------------------------------------------------------------------
    # what a line means

    def take(self, line: str) -> None:
        """Do what a line says; raises `Left` when it is a goodbye, RigError when it can't be done."""
        text = line.strip()
        if not text:
            return
        if not text.startswith("/"):
            self.say(f"{self._attached}{text}")
            return
        name, _, rest = text[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise RigError(f"There is no /{name}; {suggest_name(name, COMMANDS)}")
        command(self, rest.strip())

    def say(self, text: str) -> None:
        """Say something and show the answer; Ctrl-C keeps what has come so far."""
        if not self.client.is_ready():  # it left while nobody spoke
            self.client.close()
            self.client = self._connect()
        self._attached = ""
        self.said.append({"role": "user", "content": text})
        first = head(self.client, self.system)
        answer, begun = ChatCompletion(), time.monotonic()
        screen = Screen(thinking=self.thinking)
        try:
            for thought, piece in self.client.stream_chat(
                first + self.said, into=answer, **self.options
            ):
                screen.show(thought, piece)
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True, nl=False)
        except ContextOverflow as error:
            self.said.pop()
            raise RigError(
                f"{error.message} /new begins anew, /undo forgets the last turn."
            ) from None
        except RigError:
            self.said.pop()
            raise
        finally:
            screen.end()
        if not answer.text and not answer.thought:
            self.said.pop()  # stopped before the first word: as if it had not been asked
            return
        self.said.append({"role": "assistant", "content": answer.text.strip()})
        self.last = answer
        if answer.finish == "length":
            click.echo(f"(cut off after {answer.completion_tokens} tokens)", err=True)
        if self.log:
            seconds = time.monotonic() - begun
            sent = self.said[self._logged : -1] if self._logged else first + self.said[:-1]
            history.record(
                call("chat", self._conversation, self.client, sent, answer, self.options, seconds)
            )
        self._logged = len(self.said)

    def status(self) -> str:
        """One line: who answers, and how full the context is."""
        context, name = self.client.context_length, self.client.model or self.client.url
        used = self.last.prompt_tokens + self.last.completion_tokens if self.said else 0
        room = f"{used} of {context} tokens" if context else f"{used} tokens"
        return f"{name} | {room} | /help"

    # -----------------------------------------------------------------------------------------
    # commands; the first line of each docstring is its help

    def help(self, _: str) -> None:
        """Show this."""
        for name, command in COMMANDS.items():
            click.echo(f"  /{name:<9} {(command.__doc__ or '').splitlines()[0]}", err=True)
        click.echo(
            "  Enter sends, Alt-Enter begins a new line, Ctrl-X Ctrl-E opens the editor,\n"
            "  Ctrl-R searches the history, Ctrl-C stops an answer, Ctrl-D leaves.",
            err=True,
        )

    def new(self, _: str) -> None:
        """Forget the conversation and begin anew."""
        self.said.clear()
        self._conversation, self._logged, self.last = uuid.uuid4().hex, 0, ChatCompletion()
        click.echo("A new conversation.", err=True)

    def undo(self, _: str) -> None:
        """Forget the last question and its answer."""
        if not self.said:
            raise RigError("Nothing has been said yet.")
        self._forget_turn()
        click.echo(f"{len(self.said) // 2} turns are left.", err=True)

    def retry(self, _: str) -> None:
        """Ask the last question once more."""
        if not self.said:
            raise RigError("Nothing has been said yet.")
        text = self.said[-2]["content"]
        self._forget_turn()
        self.say(text)

    def _forget_turn(self) -> None:
        del self.said[-2:]
        self._logged = min(self._logged, len(self.said))

    def set_system(self, rest: str) -> None:
        """Show the system prompt, or set it: /system TEXT (/system - for none)."""
        if rest:
            self.system = "" if rest == "-" else rest
        said = "".join(message["content"] for message in head(self.client, self.system))
        click.echo(said or "(no system prompt)", err=True)

    def set_thinking(self, _: str) -> None:
        """Show the thoughts from now on, or no longer."""
        self.thinking = not self.thinking
        click.echo(f"Thoughts are {'shown' if self.thinking else 'not shown'}.", err=True)

    def set_option(self, rest: str) -> None:
        """Show the settings, or set one: /set temperature 0.7 (/set temperature for the usual)."""
        name, _, value = rest.partition(" ")
        if name:
            if name not in SETTINGS:
                raise RigError(f"There is no setting {name!r}; {suggest_name(name, SETTINGS)}")
            try:
                self.options[name] = SETTINGS[name](value) if value else None
            except ValueError:
                raise RigError(f"{name} is a number, not {value!r}.") from None
        set_ = {key: value for key, value in self.options.items() if value is not None}
        click.echo(f"{set_ or 'everything as usual'}; there are: {', '.join(SETTINGS)}", err=True)

    def attach(self, rest: str) -> None:
        """Put a text file before the next question: /file PATH."""
        path = Path(rest).expanduser()
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise RigError(f"{path} is not a text file.") from None
        except OSError as error:
            raise RigError(f"{path}: {error.strerror}.") from None
        self._attached += f"{path.name}:\n{text.strip()}\n\n"
        click.echo(
            f"{path.name} ({len(text):,} characters) goes with your next question.", err=True
        )

    def save(self, rest: str) -> None:
        """Write the conversation to a file: /save PATH (.json as messages, else as Markdown)."""
        if not rest:
            raise RigError("Say where: /save PATH.")
        path = Path(rest).expanduser()
        if path.suffix == ".json":
            write_text(path, json.dumps(self.said, indent=2, ensure_ascii=False) + "\n")
        else:
            write_text(path, "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in self.said))
        click.echo(f"{len(self.said)} messages are in {path}.", err=True)

    def stats(self, _: str) -> None:
        """Show the figures of the last answer."""
        click.echo(figures(self.last, 0.0, self.client.context_length), err=True)

    def leave(self, _: str) -> None:
        """Leave (Ctrl-D does it too)."""
        raise Left


COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "help": Talk.help,
    "new": Talk.new,
    "undo": Talk.undo,
    "retry": Talk.retry,
    "system": Talk.set_system,
    "thinking": Talk.set_thinking,
    "set": Talk.set_option,
    "file": Talk.attach,
    "save": Talk.save,
    "stats": Talk.stats,
    "quit": Talk.leave,
}
