"""The keyboard side of `rig chat`: history, editing and completion at a terminal, plain lines without one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rig import paths
from rig.errors import RigError
from serve.chat.conversation import COMMANDS, SETTINGS, Conversation, ConversationEnded

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


def run_chat(talk: Conversation, *, keep_history: bool) -> bool:
    """Talk until the person leaves. From a pipe each line is one turn, and only answers go to stdout.

    Returns whether every line could be done.
    """
    well = True
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            click.echo(f"{talk.status_line()}, Ctrl-D leaves", err=True)
            _at_a_terminal(talk, _session(talk, keep_history))
        else:
            for line in sys.stdin:
                well = _take(talk, line) and well
    except ConversationEnded:
        pass
    finally:
        talk.client.close()
    return well


def _at_a_terminal(talk: Conversation, session: PromptSession[str]) -> None:
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:
            continue  # throws away the line, as in every shell
        except EOFError:
            return
        if line.strip():
            _take(talk, line)
            click.echo(err=True)


def _take(talk: Conversation, line: str) -> bool:
    try:
        talk.handle_line(line)
    except RigError as error:
        click.secho(error.format_message(), fg="red", err=True)
        return False
    return True


def _session(talk: Conversation, keep_history: bool) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import ColorDepth

    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what Enter becomes when it is typed while an answer is still coming
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        "> ",
        multiline=True,
        key_bindings=keys,
        history=FileHistory(str(_history())) if keep_history else InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=WordCompleter(list(_words()), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        prompt_continuation="  ",
        bottom_toolbar=talk.status_line,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )


def _words() -> Iterable[str]:
    for name in COMMANDS:
        yield f"/{name}"
    for name in SETTINGS:
        yield f"/set {name} "


def _history() -> Path:
    """What was typed, for its owner alone."""
    path = paths.state_dir() / "chat_history"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return path
