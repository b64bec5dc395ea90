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
from rig.model.chat_template import Message
from rig.server.client import ChatCompletion, ContextOverflow, ModelClient
from serve.chat import history
from serve.chat.ask import make_logged_call, system_messages
from serve.chat.printer import AnswerPrinter, format_stats

SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
}


class ConversationEnded(Exception):
    """The person wants to go."""


class Conversation:
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
        self.messages: list[Message] = []
        self.last_answer = ChatCompletion()
        self._conversation = uuid.uuid4().hex
        self._logged = 0
        self._attached = ""

    # -----------------------------------------------------------------------------------------
    # what a line means

    def handle_line(self, line: str) -> None:
        """Do what a line says; raises `ConversationEnded` at a goodbye, RigError when it can't be done."""
        text = line.strip()
        if not text:
            return
        if not text.startswith("/"):
            self.send_message(f"{self._attached}{text}")
            return
        name, _, rest = text[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise RigError(f"There is no /{name}; {suggest_name(name, COMMANDS)}")
        command(self, rest.strip())

    def send_message(self, text: str) -> None:
        """Say something and show the answer; Ctrl-C keeps what has come so far."""
        if not self.client.is_ready():  # it left while nobody spoke
            self.client.close()
            self.client = self._connect()
        self._attached = ""
        self.messages.append({"role": "user", "content": text})
        first = system_messages(self.client, self.system)
        answer, begun = ChatCompletion(), time.monotonic()
        screen = AnswerPrinter(thinking=self.thinking)
        try:
            for thought, piece in self.client.stream_chat(
                first + self.messages, into=answer, **self.options
            ):
                screen.print_piece(thought, piece)
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True, nl=False)
        except ContextOverflow as error:
            self.messages.pop()
            raise RigError(
                f"{error.message} /new begins anew, /undo forgets the last turn."
            ) from None
        except RigError:
            self.messages.pop()
            raise
        finally:
            screen.finish_answer()
        if not answer.text and not answer.thought:
            self.messages.pop()  # stopped before the first word: as if it had not been asked
            return
        self.messages.append({"role": "assistant", "content": answer.text.strip()})
        self.last_answer = answer
        if answer.finish == "length":
            click.echo(f"(cut off after {answer.completion_tokens} tokens)", err=True)
        if self.log:
            seconds = time.monotonic() - begun
            sent = self.messages[self._logged : -1] if self._logged else first + self.messages[:-1]
            history.record_call(
                make_logged_call(
                    "chat", self._conversation, self.client, sent, answer, self.options, seconds
                )
            )
        self._logged = len(self.messages)

    def status_line(self) -> str:
        """One line: who answers, and how full the context is."""
        context, name = self.client.context_length, self.client.model or self.client.url
        used = (
            self.last_answer.prompt_tokens + self.last_answer.completion_tokens
            if self.messages
            else 0
        )
        room = f"{used} of {context} tokens" if context else f"{used} tokens"
        return f"{name} | {room} | /help"

    # -----------------------------------------------------------------------------------------
    # commands; the first line of each docstring is its help

    def print_help(self, _: str) -> None:
        """Show this."""
        for name, command in COMMANDS.items():
            click.echo(f"  /{name:<9} {(command.__doc__ or '').splitlines()[0]}", err=True)
        click.echo(
            "  Enter sends, Alt-Enter begins a new line, Ctrl-X Ctrl-E opens the editor,\n"
            "  Ctrl-R searches the history, Ctrl-C stops an answer, Ctrl-D leaves.",
            err=True,
        )

    def start_over(self, _: str) -> None:
        """Forget the conversation and begin anew."""
        self.messages.clear()
        self._conversation, self._logged, self.last_answer = uuid.uuid4().hex, 0, ChatCompletion()
        click.echo("A new conversation.", err=True)

    def undo_turn(self, _: str) -> None:
        """Forget the last question and its answer."""
        if not self.messages:
            raise RigError("Nothing has been said yet.")
        self._forget_turn()
        click.echo(f"{len(self.messages) // 2} turns are left.", err=True)

    def retry_turn(self, _: str) -> None:
        """Ask the last question once more."""
        if not self.messages:
            raise RigError("Nothing has been said yet.")
        text = self.messages[-2]["content"]
        self._forget_turn()
        self.send_message(text)

    def _forget_turn(self) -> None:
        del self.messages[-2:]
        self._logged = min(self._logged, len(self.messages))

    def set_system(self, rest: str) -> None:
        """Show the system prompt, or set it: /system TEXT (/system - for none)."""
        if rest:
            self.system = "" if rest == "-" else rest
        said = "".join(message["content"] for message in system_messages(self.client, self.system))
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

    def attach_file(self, rest: str) -> None:
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

    def save_conversation(self, rest: str) -> None:
        """Write the conversation to a file: /save PATH (.json as messages, else as Markdown)."""
        if not rest:
            raise RigError("Say where: /save PATH.")
        path = Path(rest).expanduser()
        if path.suffix == ".json":
            write_text(path, json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")
        else:
            write_text(
                path, "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in self.messages)
            )
        click.echo(f"{len(self.messages)} messages are in {path}.", err=True)

    def print_stats(self, _: str) -> None:
        """Show the figures of the last answer."""
        click.echo(format_stats(self.last_answer, 0.0, self.client.context_length), err=True)

    def end_conversation(self, _: str) -> None:
        """Leave (Ctrl-D does it too)."""
        raise ConversationEnded


COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "help": Conversation.print_help,
    "new": Conversation.start_over,
    "undo": Conversation.undo_turn,
    "retry": Conversation.retry_turn,
    "system": Conversation.set_system,
    "thinking": Conversation.set_thinking,
    "set": Conversation.set_option,
    "file": Conversation.attach_file,
    "save": Conversation.save_conversation,
    "stats": Conversation.print_stats,
    "quit": Conversation.end_conversation,
}
