"""One question from the shell: the words given, and what comes in on stdin, become one message."""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import click

from rig.errors import RigError, WrongUse
from rig.model.chat_template import Message
from rig.server.client import ChatCompletion, ModelClient
from serve.chat import history
from serve.chat.printer import AnswerPrinter, format_stats

PATIENCE = 3.0
"""Seconds after which a person is told that stdin is being waited for."""


def read_question(words: tuple[str, ...]) -> str:
    """The prompt: the words, then what comes in on stdin; `-` reads stdin even from a terminal.

    A program that starts us with an open pipe and nothing to say would make us wait: so it is said.
    """
    given = " ".join(word for word in words if word != "-")
    piped = ""
    if "-" in words or (sys.stdin is not None and not sys.stdin.isatty()):
        piped = _stdin(hint=bool(given)).strip()
    text = "\n\n".join(part for part in (given, piped) if part)
    if not text:
        raise WrongUse("Ask something: rig ask 'What is GGUF?', or pipe a text in: rig ask < FILE.")
    return text


def system_messages(client: ModelClient, system: str | None) -> list[Message]:
    """The system message: `system`, or without one the words that the model was taught with.

    An empty one is sent only where the server would put in its own: there it means none at all.
    """
    taught = client.reply_format.system_prompt
    said = taught if system is None else system
    return [{"role": "system", "content": said}] if said or taught else []


def load_schema(path: str | None) -> dict[str, Any] | None:
    """A JSON schema from a file."""
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise WrongUse(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WrongUse(f"{path} is not a JSON schema: it must be an object.")
    return found


def ask_model(
    client: ModelClient,
    asked: list[Message],
    options: dict[str, Any],
    *,
    schema: dict[str, Any] | None,
    as_json: bool,
    thinking: bool,
    stats: bool,
    log: bool,
) -> None:
    """Ask, and show the answer as it comes; what a schema was given for is shown once it is whole."""
    answer, begun = ChatCompletion(), time.monotonic()
    screen = AnswerPrinter(thinking=thinking, live=not as_json and schema is None)
    try:
        for thought, text in client.stream_chat(asked, into=answer, schema=schema, **options):
            screen.print_piece(thought, text)
    finally:
        screen.finish_answer()
        seconds = time.monotonic() - begun
        if log and (answer.text or answer.thought):
            history.record_call(
                make_logged_call("ask", uuid.uuid4().hex, client, asked, answer, options, seconds)
            )
    data = _data(answer) if schema is not None else None
    if as_json:
        click.echo(json.dumps(_as_object(answer, data, seconds), ensure_ascii=False))
    elif schema is not None:
        click.echo(answer.text.strip())
    if answer.finish == "length":
        click.echo(
            f"Cut off after {answer.completion_tokens} tokens: raise --max-tokens.", err=True
        )
    if stats:
        click.echo(format_stats(answer, seconds), err=True)


def make_logged_call(
    command: str,
    conversation: str,
    client: ModelClient,
    sent: list[Message],
    answer: ChatCompletion,
    options: dict[str, Any],
    seconds: float,
) -> history.LoggedCall:
    """One row of the log."""
    return history.LoggedCall(
        command,
        conversation,
        answer.model,
        client.url,
        sent,
        answer.thought,
        answer.text,
        answer.finish,
        {name: value for name, value in options.items() if value is not None},
        answer.prompt_tokens,
        answer.completion_tokens,
        round(seconds, 3),
    )


def _data(answer: ChatCompletion) -> Any:
    """The JSON that was asked for."""
    if answer.finish == "length":
        raise RigError(
            f"The JSON was cut off after {answer.completion_tokens} tokens: raise --max-tokens."
        )
    try:
        return json.loads(answer.text)
    except ValueError:
        raise RigError(
            f"{answer.model or 'The model'} did not answer in JSON: its server ignores the schema."
        ) from None


def _as_object(answer: ChatCompletion, data: Any, seconds: float) -> dict[str, Any]:
    return {
        "answer": answer.text.strip(),
        "thought": answer.thought.strip(),
        "data": data,
        "finish": answer.finish,
        "model": answer.model,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": round(seconds, 3),
        "timings": answer.timings,
    }


def _stdin(hint: bool) -> str:
    import threading

    timer = threading.Timer(PATIENCE, _say_waiting)
    timer.daemon = True
    if hint or sys.stdin.isatty():
        timer.start()
    try:
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    finally:
        timer.cancel()


def _say_waiting() -> None:
    click.echo(
        "Waiting for text on stdin (Ctrl-D ends it; `< /dev/null` if there is none).", err=True
    )
